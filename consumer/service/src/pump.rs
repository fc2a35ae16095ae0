//! One OS thread per Kafka client: polls, routes, dispatches, collects outcomes, commits. It never blocks on a handler.
//!
//! ```text
//!  turn: clock ─► inbox (outcomes, control) ─► events (assign, revoke, commit answers) ─► dispatch
//!         ┌────────────────────────────────────────────────────────────────────────────────┘
//!         └─► up to 4 × (poll ─► deliver ─► dispatch) ─► positions ─► commit ─► renewals ─► pauses ─► hand-overs, stop
//!  a turn without work is followed by `wait`, until a record, an event, a message or the next timer
//! ```
//!
//! All decisions are made in [`sluicegate_engine::flow`], a pure core; this module owns the source, the clock and the order of the
//! steps. A loop that blocks on a handler exceeds `max.poll.interval.ms` and loses the membership of the group
//! (ADR 0002).
//!
//! - Outcomes are received before records are read: a turn frees memory before it takes more (G8).
//! - A turn takes the whole inbox, because [`Inbox::push`] wakes the pump only if the inbox was empty.
//! - Positions are queried after all polled records are delivered to the flow: the client's consumed position covers
//!   polled records, and a frontier moved past an undelivered one would be committed (G2).
//! - The flow is dropped before the source: its records borrow the client's memory.

mod address;
mod attention;
mod client_state;
mod closing;
mod join_gate;
mod last_rebalance;
mod missing;
mod position;
mod renewal;
mod starting;
mod stuck;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use address::{PumpAddress, PumpHandle};
pub use closing::LEAVE_GRACE;
pub use join_gate::JoinGate;
pub use renewal::SourceFactory;
pub use stuck::Probe;

use attention::Attention;
use client_state::ClientState;
use closing::Revoke;
use last_rebalance::LastRebalance;
use missing::{Missing, Unreadable};
use renewal::PumpWake;
use sluicegate_engine::dispatch::{HandlerIx, Inbox, PumpMessage};
use sluicegate_engine::emit::Emitter;
use sluicegate_engine::flow::handler::HandlerSettings;
use sluicegate_engine::flow::report::WallClock;
use sluicegate_engine::flow::{Flow, FlowSettings};
use sluicegate_engine::partition::trouble::LogLimit;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{
    ClientErrorKind, Delivery, Source, SourceError, SourceEvent, StartAt,
};
use sluicegate_engine::status::{ClientStatistics, PumpReport};
use sluicegate_kafka::RecordBuf;
use starting::Starting;
use stuck::StuckClient;

/// Maximum records per poll. Equal to the maximum that the source takes from librdkafka's queue in one call.
const POLL_RECORDS: usize = 1_024;
/// Maximum polls per turn, so that the inbox is served between them.
const POLLS_PER_TURN: usize = 4;
/// Maximum sleep between turns: bounds the delay of a lost wake-up.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// Maximum (topic, kind) pairs with a log limit of their own; all limits are reset when it is reached.
const MAX_LOG_KINDS: usize = 1_024;

/// Settings of a pump.
pub struct PumpSettings {
    /// The pump's index, from 0.
    pub number: u32,
    /// Bounds of its flow.
    pub flow: FlowSettings,
    /// Start position of a partition without a committed offset.
    pub start: StartAt,
    /// Reset position of a partition whose offset is out of range; `None` stops the partition (G12).
    pub offset_out_of_range: Option<StartAt>,
    /// How long a revoke waits for in-flight records.
    pub drain_timeout: Duration,
    /// Passed before the pump joins the group.
    pub join_gate: Arc<JoinGate>,
    /// Asks whether the cluster answers, while the pump's own client reaches no broker.
    pub probe: Probe,
}

/// Work that a shutdown left behind; the next owners reprocess it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Records still in flight at the drain deadline.
    pub unfinished: u64,
    /// Partitions whose last commit failed.
    pub uncommitted: u64,
    /// Members whose leave was not confirmed: the group may keep their partitions assigned until their sessions expire.
    pub members: u64,
}

impl StopReport {
    /// Whether nothing is reprocessed and the group does not wait for this member.
    pub fn is_graceful(&self) -> bool {
        *self == Self::default()
    }
}

/// Describes the work left behind and its consequences.
impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_graceful() {
            return f.write_str("nothing left behind");
        }
        if self.unfinished + self.uncommitted > 0 {
            write!(
                f,
                "unfinished records: {}, partitions whose last commit failed: {}; the next owners reprocess these records",
                self.unfinished, self.uncommitted
            )?;
        }
        if self.members > 0 {
            let separator = if self.unfinished + self.uncommitted > 0 {
                "; "
            } else {
                ""
            };
            write!(
                f,
                "{separator}members without a confirmed leave: {}; their partitions stay idle until their sessions expire \
                 (session.timeout.ms, 45 s by default)",
                self.members
            )?;
        }
        Ok(())
    }
}

impl std::ops::AddAssign for StopReport {
    fn add_assign(&mut self, other: Self) {
        self.unfinished += other.unfinished;
        self.uncommitted += other.uncommitted;
        self.members += other.members;
    }
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
    flow: Flow<RecordBuf>,
    source: Box<dyn Source<Record = RecordBuf>>,
    make_source: SourceFactory,
    wake: Arc<PumpWake>,
    inbox: Arc<Inbox>,
    started: Instant,
    clock: WallClock,
    starting: Starting,
    /// Partitions whose offset is out of range or could not be read (G12).
    missing: Vec<Missing>,
    /// Partitions with a read error.
    unreadable: Vec<Unreadable>,
    /// State of the connection to the cluster and the group.
    client: ClientState,
    stuck: StuckClient,
    attention: Attention,
    /// Whether the group was joined and every partition of the first assignment is either started or reported. Never reset.
    has_joined: bool,
    /// Number of missing topics met; the control thread polls it to list the cluster's topics early.
    missed: Arc<AtomicU64>,
    /// Rate limits of log lines, per topic and kind.
    log: BTreeMap<(Arc<str>, &'static str), LogLimit>,
    revokes: Vec<Revoke>,
    /// The rebalance that a requested stop waits for.
    last_rebalance: Option<LastRebalance>,
    /// Deadline for leaving the group, once the stop has begun.
    stopping: Option<Instant>,
    /// Whether the stop only replaces the client, which then rejoins the group.
    renewing: bool,
    closed: bool,
    /// Work that the stop leaves to the next owners.
    left: StopReport,
    failed: Option<String>,
    statistics: Option<ClientStatistics>,
    topics: Vec<String>,
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
        let inbox = Arc::new(Inbox::new());
        let thread_inbox = inbox.clone();
        let missed = Arc::new(AtomicU64::new(0));
        let thread_missed = missed.clone();
        let thread = std::thread::Builder::new()
            .name(format!("pump-{}", settings.number))
            .spawn(move || {
                let pump = Pump::new(settings, source, emitter, thread_inbox);
                let mut pump = pump.map_err(|error| PumpError::Source(error.to_string()))?;
                pump.missed = thread_missed;
                pump.run()
            })?;
        Ok(PumpHandle {
            address: PumpAddress { inbox, missed },
            thread: Some(thread),
        })
    }

    fn new(
        settings: PumpSettings,
        make_source: SourceFactory,
        emitter: Arc<dyn Emitter>,
        inbox: Arc<Inbox>,
    ) -> Result<Self, SourceError> {
        let source = make_source()?;
        let wake = PumpWake::new(source.waker());
        inbox.set_waker(wake.clone());
        let flow = Flow::new(settings.flow.clone(), emitter, inbox.clone());
        let now = Instant::now();
        let client = ClientState::new(settings.flow.group.clone());
        Ok(Self {
            settings,
            source,
            make_source,
            wake,
            flow,
            inbox,
            started: now,
            clock: WallClock {
                epoch_ms: sluicegate_pool::clock::now_ms(),
            },
            starting: Starting::default(),
            missing: Vec::new(),
            unreadable: Vec::new(),
            client,
            stuck: StuckClient::default(),
            attention: Attention::default(),
            has_joined: false,
            missed: Arc::default(),
            log: BTreeMap::new(),
            revokes: Vec::new(),
            last_rebalance: None,
            stopping: None,
            renewing: false,
            closed: false,
            left: StopReport::default(),
            failed: None,
            statistics: None,
            topics: Vec::new(),
        })
    }

    fn run(mut self) -> Result<StopReport, PumpError> {
        let mut records = Vec::with_capacity(POLL_RECORDS);
        let mut messages = Vec::new();
        let mut events = Vec::new();
        while !self.closed {
            let busy = self.turn(&mut records, &mut messages, &mut events);
            if let Some(fault) = self.flow.fault() {
                return Err(PumpError::Fault(fault.to_owned()));
            }
            if let Some(reason) = self.failed.take() {
                return Err(PumpError::Source(reason));
            }
            if !busy && !self.closed {
                self.source.wait(self.sleep());
            }
        }
        Ok(StopReport {
            unfinished: self.flow.take_unfinished(),
            ..self.left
        })
    }

    /// Runs one turn of all steps. Returns `false` if there was nothing to do.
    fn turn(
        &mut self,
        records: &mut Vec<Delivery<RecordBuf>>,
        messages: &mut Vec<PumpMessage>,
        events: &mut Vec<SourceEvent>,
    ) -> bool {
        let now_ms = self.now_ms();
        self.flow.tick(now_ms);
        self.inbox.take(messages);
        let mut busy = !messages.is_empty();
        for message in messages.drain(..) {
            match message {
                PumpMessage::Control(request) => request.run(self),
                other => self.flow.receive(other),
            }
        }
        self.source.events(events);
        for event in events.drain(..) {
            self.event(event);
        }
        self.check_missing_offsets();
        self.run_checks();
        self.flow.dispatch();
        for _ in 0..POLLS_PER_TURN {
            let quota = self.flow.read_quota(POLL_RECORDS);
            if quota == 0 {
                break;
            }
            self.source.poll(quota, records);
            let full = records.len() == quota;
            if !records.is_empty() {
                busy = true;
                self.client.broker_answered(now_ms);
            }
            for delivery in records.drain(..) {
                self.flow.deliver(delivery);
            }
            self.flow.dispatch();
            if !full {
                break;
            }
        }
        if self.flow.take_missed_target() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        self.clear_readable();
        self.learn_positions();
        self.commit();
        self.rejoin_if_forgotten();
        self.replace_stuck_client();
        for (slot, paused) in self.flow.pauses_due() {
            self.source.pause(slot, paused);
        }
        self.finish_revokes();
        self.finish_rebalance();
        self.finish_stop();
        busy
    }

    fn sleep(&self) -> Duration {
        let now_ms = self.now_ms();
        let due = self
            .flow
            .next_due()
            .map(|due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
        due.map_or(MAX_WAIT, |due| {
            due.clamp(Duration::from_millis(1), MAX_WAIT)
        })
    }

    /// Milliseconds since the pump's start: the flow's clock.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn event(&mut self, event: SourceEvent) {
        let now_ms = self.now_ms();
        match event {
            SourceEvent::Assigned(partitions) => {
                self.client.assigned(now_ms);
                self.flow.group_settled();
                if let Some(last) = &mut self.last_rebalance {
                    last.add_assigned(&partitions);
                }
                self.assigned(&partitions);
            }
            SourceEvent::Found(found) => self.found(found),
            SourceEvent::NotFound { at, reason } => self.not_found(&at, &reason),
            SourceEvent::TopicRecreated { topic } => self.topic_recreated(&topic),
            SourceEvent::ClusterChanged { was, is } => {
                tracing::error!(
                    was,
                    is,
                    "another Kafka cluster answers at kafka.bootstrap_servers"
                );
                self.failed = Some(format!(
                    "another Kafka cluster answers at kafka.bootstrap_servers (cluster id {is}, previously {was}): its \
                     offsets are unrelated to those read so far; check the address, then restart"
                ));
            }
            SourceEvent::Revoked { partitions, lost } => self.revoked(partitions, lost),
            SourceEvent::Committed { results, error } => {
                if results.iter().any(|result| result.error.is_none()) {
                    self.client.committed(now_ms);
                }
                self.flow.committed(&results, error.as_ref());
            }
            SourceEvent::OffsetMissing {
                at,
                asked,
                fetched,
                truncated,
                reason,
            } => self.offset_missing(&at, asked, fetched, truncated, reason),
            SourceEvent::Bounds { at, bounds } => self.bounds(&at, bounds),
            SourceEvent::PartitionError { at, reason, fault } => {
                self.partition_error(&at, &reason, fault);
            }
            SourceEvent::ClientError {
                kind,
                reason,
                remedy,
                fatal,
            } => {
                if fatal {
                    self.failed = Some(reason);
                } else {
                    if kind == ClientErrorKind::Topic {
                        self.missed.fetch_add(1, Ordering::Relaxed);
                    }
                    self.client.error(kind, &reason, remedy, now_ms);
                }
            }
            SourceEvent::Statistics(json) => {
                self.client.statistics(&json, now_ms);
                self.statistics = Some(ClientStatistics(json));
            }
        }
    }

    /// Counts an event of a topic's partitions. `Some(n)`: a log line is due, which stands for `n` events.
    fn count_for_log(&mut self, topic: &Arc<str>, what: &'static str) -> Option<u64> {
        let now_ms = self.now_ms();
        if self.log.len() >= MAX_LOG_KINDS && !self.log.contains_key(&(topic.clone(), what)) {
            self.log.clear();
        }
        self.log
            .entry((topic.clone(), what))
            .or_default()
            .count(now_ms)
    }

    fn apply(
        &mut self,
        index: Arc<RoutingIndex>,
        handlers: Vec<(HandlerIx, HandlerSettings)>,
        topics: Vec<String>,
    ) -> Result<(), SourceError> {
        self.flow.apply(index, handlers);
        self.subscribe(topics)
    }

    fn subscribe(&mut self, topics: Vec<String>) -> Result<(), SourceError> {
        if self.renewing {
            // Subscribed when the new client joins the group.
            self.topics = topics;
            return Ok(());
        }
        if topics != self.topics {
            if self.is_stopping() || !self.settings.join_gate.pass() {
                let reason = "the service is stopping and no longer joins the group";
                return Err(SourceError::Terminal(reason.to_owned()));
            }
            self.source.subscribe(&topics)?;
            self.client.subscribed(!topics.is_empty(), self.now_ms());
            self.topics = topics;
        }
        Ok(())
    }

    fn report(&self) -> PumpReport {
        let mut report = self.flow.report(self.clock, |slot| self.end_offset(slot));
        report.pump = self.settings.number;
        report.partitions.extend(self.starting.reports(self.clock));
        report.client.clone_from(&self.statistics);
        report.joined = self.topics.is_empty() || self.has_joined;
        let away_ms = self.client.unreachable_ms();
        report.kafka_unreachable_since_ms = away_ms.map(|since_ms| self.clock.at(since_ms));
        let of_client = self.client.problems(self.now_ms(), self.clock);
        report.problems.extend(of_client);
        report
    }
}
