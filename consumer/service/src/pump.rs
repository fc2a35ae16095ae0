//! One OS thread per Kafka client: polls, steps the engine, carries out its effects. It never blocks on a handler.
//!
//! ```text
//!  turn: Clock ─► inbox (outcomes) ─► Tick ─► commands ─► source events ─► Observed, once per second ─► dispatch
//!         ┌────────────────────────────────────────────────────────────────────────────────────────────┘
//!         └─► up to 4 × (poll ─► Records) ─► Polled: positions ─► TurnEnd: commits, pauses, hand-overs, stop
//!  a turn without work is followed by `wait`, until a record, an event, a message or the next timer
//! ```
//!
//! All decisions about partitions, records and commits are made by [`sluicegate_engine::engine::Engine`], which is pure; this
//! module owns the source, the clock and the order of the events. The connection is its own concern: errors of the client
//! (`client_state`), a client that alone reaches no broker (`stuck`), its replacement (`renewal`). A loop that blocks on
//! a handler exceeds `max.poll.interval.ms` and loses the membership of the group (ADR 0002).
//!
//! - Outcomes are received before records are read: a turn frees memory before it takes more (G8); and before what is due
//!   runs: what ended before a drain deadline counts.
//! - A turn takes the whole inbox, because [`Inbox::push`] wakes the pump only if the inbox was empty.
//! - Positions are queried after all polled records are passed on: the client's consumed position covers polled records, and a
//!   frontier moved past an undelivered one would be committed (G2).
//! - The engine is dropped before the source: its records borrow the client's memory.

mod address;
mod client_state;
mod command;
mod effects;
#[cfg(test)]
mod harness;
mod join_gate;
mod renewal;
mod stuck;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

pub use address::{PumpAddress, PumpHandle};
pub use join_gate::JoinGate;
pub use renewal::SourceFactory;
pub use sluicegate_engine::engine::stop::StopReport;
pub use stuck::Probe;

use client_state::ClientState;
use command::Commands;
use renewal::PumpWake;
use sluicegate_engine::clock::WallClock;
use sluicegate_engine::dispatch::{HandlerIx, Inbox, PumpMessage};
use sluicegate_engine::emit::Emitter;
use sluicegate_engine::engine::stop::LEAVE_GRACE_MS;
use sluicegate_engine::engine::{Engine, EngineSettings};
use sluicegate_engine::event::{Effect, Event, Observation};
use sluicegate_engine::queue::HandlerSettings;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{
    Delivery, Membership, Source, SourceError, SourceEvent, TopicPartition,
};
use sluicegate_engine::status::{ClientStatistics, Explanation, PumpReport};
use sluicegate_kafka::RecordBuf;
use stuck::StuckClient;

/// Time after the drain deadline for the last commit and for leaving the group.
pub const LEAVE_GRACE: Duration = Duration::from_millis(LEAVE_GRACE_MS);

/// Maximum records per poll. Equal to the maximum that the source takes from librdkafka's queue in one call.
const POLL_RECORDS: usize = 1_024;
/// Maximum polls per turn, so that the inbox is served between them.
const POLLS_PER_TURN: usize = 4;
/// Maximum sleep between turns: bounds the delay of a lost wake-up.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// Settings of a pump.
pub struct PumpSettings {
    /// The pump's index, from 0.
    pub number: u32,
    /// Settings of its engine.
    pub engine: EngineSettings,
    /// Passed before the pump joins the group.
    pub join_gate: Arc<JoinGate>,
    /// Asks whether the cluster answers, while the pump's own client reaches no broker.
    pub probe: Probe,
}

/// Why a pump failed.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The source could not be created, or has failed permanently.
    #[error("kafka client failed: {0}")]
    Source(String),
    /// An invariant is violated; nothing was committed afterwards (G13).
    #[error("internal fault, stopped without committing: {0}")]
    Fault(String),
    /// The thread did not exit in time; the next owner reprocesses its uncommitted records.
    #[error("the pump did not stop in time")]
    Overdue,
    /// The thread panicked.
    #[error("the pump's thread panicked: {0}")]
    Panicked(String),
}

/// State of a pump, owned by its thread.
pub struct Pump {
    settings: PumpSettings,
    // Dropped before the source: its records borrow the client's memory.
    engine: Engine<RecordBuf>,
    source: Box<dyn Source<Record = RecordBuf>>,
    make_source: SourceFactory,
    wake: Arc<PumpWake>,
    inbox: Arc<Inbox>,
    commands: Arc<Commands>,
    started: Instant,
    clock: WallClock,
    /// Effects of the last step that are not carried out yet.
    effects: VecDeque<Effect>,
    /// State of the connection to the cluster and the group.
    client: ClientState,
    stuck: StuckClient,
    /// Whether the group was joined and every partition of the first assignment is either started or reported. Never reset.
    has_joined: bool,
    /// Number of missing topics met; the control thread polls it to list the cluster's topics early.
    missed: Arc<AtomicU64>,
    closed: bool,
    failed: Option<String>,
    statistics: Option<ClientStatistics>,
    topics: Vec<String>,
}

/// Buffers that every turn uses again.
struct Buffers {
    records: Vec<Delivery<RecordBuf>>,
    messages: Vec<PumpMessage>,
    events: Vec<SourceEvent>,
    observations: Vec<Observation>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            records: Vec::with_capacity(POLL_RECORDS),
            messages: Vec::new(),
            events: Vec::new(),
            observations: Vec::new(),
        }
    }
}

impl Pump {
    /// Starts a pump on its own thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn spawn(
        settings: PumpSettings,
        source: SourceFactory,
        emitter: Arc<dyn Emitter>,
    ) -> std::io::Result<PumpHandle> {
        let address = PumpAddress::default();
        let thread_address = address.clone();
        let thread = std::thread::Builder::new()
            .name(format!("pump-{}", settings.number))
            .spawn(move || {
                let pump = Pump::new(settings, source, emitter, thread_address);
                let pump = pump.map_err(|error| PumpError::Source(error.to_string()))?;
                pump.run()
            })?;
        Ok(PumpHandle {
            address,
            thread: Some(thread),
        })
    }

    fn new(
        settings: PumpSettings,
        make_source: SourceFactory,
        emitter: Arc<dyn Emitter>,
        address: PumpAddress,
    ) -> Result<Self, SourceError> {
        let source = make_source()?;
        let wake = PumpWake::new(source.waker());
        let inbox = Arc::new(Inbox::new());
        inbox.set_waker(wake.clone());
        address.commands.set_waker(wake.clone());
        let engine = Engine::new(settings.engine.clone(), emitter, inbox.clone());
        let client = ClientState::new(settings.engine.flow.group.clone());
        Ok(Self {
            settings,
            source,
            make_source,
            wake,
            engine,
            inbox,
            commands: address.commands,
            started: Instant::now(),
            clock: WallClock {
                epoch_ms: sluicegate_pool::clock::now_ms(),
            },
            effects: VecDeque::new(),
            client,
            stuck: StuckClient::default(),
            has_joined: false,
            missed: address.missed,
            closed: false,
            failed: None,
            statistics: None,
            topics: Vec::new(),
        })
    }

    fn run(mut self) -> Result<StopReport, PumpError> {
        let mut buffers = Buffers::default();
        while !self.closed {
            let busy = self.turn(&mut buffers);
            if let Some(fault) = self.engine.flow().fault() {
                return Err(PumpError::Fault(fault.to_owned()));
            }
            if let Some(reason) = self.failed.take() {
                return Err(PumpError::Source(reason));
            }
            if !busy && !self.closed {
                self.source.wait(self.sleep());
            }
        }
        Ok(self.engine.left_behind())
    }

    /// Runs one turn of all steps. Returns `false` if there was nothing to do.
    fn turn(&mut self, buffers: &mut Buffers) -> bool {
        let Buffers {
            records,
            messages,
            events,
            observations,
        } = buffers;
        let now_ms = self.now_ms();
        self.step(Event::Clock(now_ms));
        self.inbox.take(messages);
        let mut busy = !messages.is_empty();
        for message in messages.drain(..) {
            self.step(Event::Message(message));
        }
        self.step(Event::Tick(now_ms));
        busy |= self.run_commands();
        self.source.events(events);
        for event in events.drain(..) {
            self.source_event(event, now_ms);
        }
        self.observe(observations);
        self.engine.dispatch();
        for _ in 0..POLLS_PER_TURN {
            let quota = self.engine.read_quota(POLL_RECORDS);
            if quota == 0 {
                break;
            }
            self.source.poll(quota, records);
            let full = records.len() == quota;
            if !records.is_empty() {
                busy = true;
                self.client.broker_answered(now_ms);
            }
            self.step(Event::Records(records));
            if !full {
                break;
            }
        }
        self.step(Event::Polled);
        let rebalancing = self.engine.awaits_rebalance() && self.source.is_rebalancing();
        self.step(Event::TurnEnd { rebalancing });
        self.replace_stuck_client();
        busy
    }

    fn sleep(&self) -> Duration {
        let now_ms = self.now_ms();
        let due = self
            .engine
            .next_due()
            .map(|due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
        due.map_or(MAX_WAIT, |due| {
            due.clamp(Duration::from_millis(1), MAX_WAIT)
        })
    }

    /// Milliseconds since the pump's start: the engine's clock.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Passes an event of the source on, after taking what it says about the client.
    fn source_event(&mut self, event: SourceEvent, now_ms: u64) {
        let mut membership = Membership::default();
        match &event {
            SourceEvent::Assigned(_) => self.client.assigned(now_ms),
            SourceEvent::Found(_) => membership = self.source.membership(),
            SourceEvent::Revoked { lost: true, .. } => self.client.lost(now_ms),
            SourceEvent::Committed { results, .. }
                if results.iter().any(|result| result.error.is_none()) =>
            {
                self.client.committed(now_ms);
            }
            SourceEvent::ClientError {
                kind,
                reason,
                remedy,
                fatal: false,
            } => self.client.error(*kind, reason, remedy, now_ms),
            SourceEvent::Statistics(json) => {
                self.client.statistics(json, now_ms);
                self.statistics = Some(ClientStatistics(json.clone()));
            }
            _ => {}
        }
        self.step(Event::Source(event, membership));
    }

    /// Once per second: what the client knows about its partitions, and its membership.
    fn observe(&mut self, observations: &mut Vec<Observation>) {
        let now_ms = self.now_ms();
        if self.client.membership_query_due(now_ms) {
            let membership = self.source.membership();
            self.client.membership(membership, now_ms);
        }
        self.has_joined |= self.client.is_member() && self.engine.has_reported_starts();
        if !self.engine.observation_due() {
            return;
        }
        self.client.forget_old(now_ms);
        observations.clear();
        for slot in self.engine.slots() {
            observations.push(Observation {
                slot,
                end: self.source.end_offset(slot),
                fetch: self.source.fetch_state(slot),
            });
        }
        self.step(Event::Observed(observations));
    }

    fn apply(
        &mut self,
        index: Arc<RoutingIndex>,
        handlers: Vec<(HandlerIx, HandlerSettings)>,
        topics: Vec<String>,
    ) -> Result<(), SourceError> {
        self.engine.apply(index, handlers);
        self.subscribe(topics)
    }

    fn subscribe(&mut self, topics: Vec<String>) -> Result<(), SourceError> {
        if self.engine.is_renewing() {
            // Subscribed when the new client joins the group.
            self.topics = topics;
            return Ok(());
        }
        if topics != self.topics {
            if self.engine.is_stopping() || !self.settings.join_gate.pass() {
                let reason = "the service is stopping and no longer joins the group";
                return Err(SourceError::Terminal(reason.to_owned()));
            }
            self.source.subscribe(&topics)?;
            self.client.subscribed(!topics.is_empty(), self.now_ms());
            self.topics = topics;
        }
        Ok(())
    }

    /// Begins the stop; during a rebalance, the drain starts only after it.
    fn stop(&mut self) {
        let rebalancing = self.source.is_rebalancing();
        self.step(Event::Stop { rebalancing });
    }

    fn report(&self) -> PumpReport {
        let source = &self.source;
        let mut report = self
            .engine
            .report(self.clock, |slot| source.end_offset(slot));
        report.pump = self.settings.number;
        report.client.clone_from(&self.statistics);
        report.joined = self.topics.is_empty() || self.has_joined;
        let away_ms = self.client.unreachable_ms();
        report.kafka_unreachable_since_ms = away_ms.map(|since_ms| self.clock.at(since_ms));
        let of_client = self.client.problems(self.now_ms(), self.clock);
        report.problems.extend(of_client);
        report
    }

    /// What blocks a partition, or one of its records: the engine's reason, and the client's problems.
    fn explain(
        &self,
        at: &TopicPartition,
        offset: Option<i64>,
        clock: WallClock,
    ) -> Option<Explanation> {
        let mut explanation = self.engine.explain(at, offset, clock)?;
        let of_client = self.client.problems(self.now_ms(), clock);
        let reasons = explanation.reason.into_iter();
        let present_ms = clock.at(self.now_ms());
        let all = reasons.chain(of_client.iter().map(|problem| problem.sentence(present_ms)));
        explanation.reason = all.reduce(|all, more| format!("{all}\n{more}"));
        Some(explanation)
    }
}
