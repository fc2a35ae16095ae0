//! The engine of one Kafka client: `step(Event) → Effects`.
//!
//! A partition's life, from the group's offer to its hand-over. No step waits for a broker.
//!
//! ```text
//!  Assigned ─► offered ─ Find ─► Found ─► token ─ Start ─► read ──► Revoked, or a stop ─► drained ─ last commit ─ Release
//!                 └─ NotFound: reported; the others do not wait       │    ▲
//!                                                                     ▼    │
//!                                    OffsetMissing ─ AskBounds ─► Bounds: Seek, continue elsewhere, or stopped
//!                                    PartitionError ─► unreadable, until a record is read or the error expires
//! ```
//!
//! `offers` has the partitions without a known start; an owned one is an
//! [`Assignment`](crate::partition::assignment::Assignment); what keeps it from being read is in `troubles` (`missing`,
//! `faults`); `handover` and [`stop`] end it, one by one or all at once.

mod fault;
mod faults;
mod handover;
mod missing;
mod observe;
mod offers;
mod recovery;
pub mod stop;
mod troubles;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::clock::WallClock;
use crate::dispatch::{HandlerIx, Inbox};
use crate::emit::Emitter;
use crate::event::{Effect, Event};
use crate::flow::{Flow, FlowSettings};
use crate::partition::trouble::LogLimit;
use crate::queue::HandlerSettings;
use crate::record::Record;
use crate::routing::RoutingIndex;
use crate::source::{
    AssignmentId, ClientErrorKind, Membership, SourceEvent, StartAt, TopicPartition,
};
use crate::status::{Explanation, PumpReport};
use handover::Handovers;
use observe::Observations;
use offers::Offers;
use stop::{StopReport, Stopping};
use troubles::ReadTroubles;

/// Maximum (topic, kind) pairs with a log limit of their own; all limits are reset when it is reached.
const MAX_LOG_KINDS: usize = 1_024;

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Bounds of its flow.
    pub flow: FlowSettings,
    /// Start position of a partition without a committed offset.
    pub start: StartAt,
    /// Reset position of a partition whose offset is out of range; `None` stops the partition (G12).
    pub offset_out_of_range: Option<StartAt>,
}

/// The decisions of one pump: what happens to partitions, records and commits.
///
/// It has no client, thread or clock; see [`crate::event`] for how it is driven.
pub struct Engine<R: Record> {
    pub(crate) settings: EngineSettings,
    pub(crate) now_ms: u64,
    pub(crate) flow: Flow<R>,
    pub(crate) offers: Offers,
    /// What keeps owned partitions from being read.
    pub(crate) troubles: ReadTroubles,
    pub(crate) observations: Observations,
    pub(crate) handovers: Handovers,
    pub(crate) stopping: Stopping,
    /// Work that the stop leaves to the next owners.
    pub(crate) left: StopReport,
    /// Rate limits of log lines, per topic and kind.
    log: BTreeMap<(Arc<str>, &'static str), LogLimit>,
    /// Effects of the current step.
    pub(crate) effects: VecDeque<Effect>,
}

impl<R: Record> Engine<R> {
    /// An engine without partitions and handlers.
    pub fn new(settings: EngineSettings, emitter: Arc<dyn Emitter>, inbox: Arc<Inbox>) -> Self {
        Self {
            now_ms: 0,
            flow: Flow::new(settings.flow.clone(), emitter, inbox),
            settings,
            offers: Offers::default(),
            troubles: ReadTroubles::default(),
            observations: Observations::default(),
            handovers: Handovers::default(),
            stopping: Stopping::No,
            left: StopReport::default(),
            log: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// Handles one event and appends what is to be done. The caller carries out all effects, in order, before the next
    /// event.
    pub fn step(&mut self, event: Event<'_, R>, effects: &mut VecDeque<Effect>) {
        std::mem::swap(&mut self.effects, effects);
        match event {
            Event::Clock(now_ms) => {
                self.now_ms = now_ms;
                self.flow.set_time(now_ms);
            }
            Event::Tick(now_ms) => {
                self.now_ms = now_ms;
                self.flow.tick(now_ms);
            }
            Event::Message(message) => self.flow.receive(message),
            Event::Source(event, membership) => self.source_event(event, membership),
            Event::Observed(observations) => self.observed(observations),
            Event::Records(records) => {
                self.flow.deliver_all(records);
                self.flow.dispatch();
            }
            Event::Polled => self.polled(),
            Event::Positions(positions) => self.positions(positions),
            Event::Sought(slot, result) => self.sought(slot, result),
            Event::Stop { rebalancing } => self.stop(rebalancing),
            Event::ClientStuck => self.replace_client(),
            Event::Left { confirmed } => self.left_group(confirmed),
            Event::ClientRenewed => self.client_renewed(),
            Event::TurnEnd { rebalancing } => self.end_turn(rebalancing),
        }
        std::mem::swap(&mut self.effects, effects);
    }

    fn source_event(&mut self, event: SourceEvent, membership: Membership) {
        match event {
            SourceEvent::Assigned(partitions) => {
                self.flow.group_settled();
                self.stopping.add_assigned(&partitions);
                self.offered(&partitions);
            }
            SourceEvent::Found(found) => self.found(found, membership),
            SourceEvent::NotFound { at, reason } => self.not_found(&at, &reason),
            SourceEvent::TopicRecreated { topic } => self.topic_recreated(&topic),
            SourceEvent::ClusterChanged { was, is } => {
                tracing::error!(
                    was,
                    is,
                    "another Kafka cluster answers at kafka.bootstrap_servers"
                );
                self.effects.push_back(Effect::Fail(format!(
                    "another Kafka cluster answers at kafka.bootstrap_servers (cluster id {is}, previously {was}): its \
                     offsets are unrelated to those read so far; check the address, then restart"
                )));
            }
            SourceEvent::Revoked { partitions, lost } => self.revoked(partitions, lost),
            SourceEvent::Committed { results, error } => {
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
                kind: ClientErrorKind::Topic,
                fatal: false,
                ..
            } => self.effects.push_back(Effect::ListTopics),
            SourceEvent::ClientError {
                fatal: true,
                reason,
                ..
            } => self.effects.push_back(Effect::Fail(reason)),
            // The connection and the statistics are the client's state, not the partitions'.
            SourceEvent::ClientError { .. } | SourceEvent::Statistics(_) => {}
        }
    }

    /// Everything that was polled has been delivered.
    fn polled(&mut self) {
        self.clear_read();
        let idle = self.flow.positions_due();
        if !idle.is_empty() {
            self.effects.push_back(Effect::LearnPositions(idle));
        }
    }

    fn end_turn(&mut self, rebalancing: bool) {
        self.run_recoveries();
        if self.flow.take_missed_target() {
            self.effects.push_back(Effect::ListTopics);
        }
        let entries = self.flow.commits_due();
        if !entries.is_empty() {
            self.effects.push_back(Effect::Commit(entries));
        }
        self.rejoin_if_forgotten();
        for (slot, paused) in self.flow.pauses_due() {
            self.effects.push_back(Effect::Pause(slot, paused));
        }
        self.finish_revokes();
        self.finish_rebalance(rebalancing);
        self.finish_stop();
    }

    /// How many records may be read now, `max` at the most.
    pub fn read_quota(&self, max: usize) -> usize {
        self.flow.read_quota(max)
    }

    /// When the next [`Event::Tick`] has something to do, if that is known.
    pub fn next_due(&self) -> Option<u64> {
        self.flow.next_due()
    }

    /// Switches the log line per record on or off.
    pub fn set_record_log(&mut self, on: bool) {
        self.flow.set_record_log(on);
    }

    /// Whether each offered partition has either a known start offset or a reported problem.
    pub fn has_reported_starts(&self) -> bool {
        self.offers.is_reported()
    }

    /// Batches that no record has completed are dispatched too: between two polls, and at the begin of a turn.
    pub fn dispatch(&mut self) {
        self.flow.dispatch();
    }

    /// Applies handlers and routes, both at once (G9).
    pub fn apply(&mut self, index: Arc<RoutingIndex>, handlers: Vec<(HandlerIx, HandlerSettings)>) {
        self.flow.apply(index, handlers);
    }

    /// The records in flight, and what becomes of them.
    pub fn flow(&self) -> &Flow<R> {
        &self.flow
    }

    /// The same, for tests and for what a pump sets directly, such as the record log.
    pub fn flow_mut(&mut self) -> &mut Flow<R> {
        &mut self.flow
    }

    /// All owned partitions that are read, drained or stopped.
    pub fn slots(&self) -> Vec<AssignmentId> {
        self.flow.partitions().map(|(_, slot)| slot).collect()
    }

    /// The state of the partitions, records and commits. `end_of`: what the client knows of the end of a log now.
    pub fn report(
        &self,
        clock: WallClock,
        end_of: impl Fn(AssignmentId) -> Option<i64>,
    ) -> PumpReport {
        let mut report = self.flow.report(clock, |slot| {
            end_of(slot).max(self.observations.queried_end(slot))
        });
        report.partitions.extend(self.offers.reports(clock));
        report
    }

    /// What blocks a partition, or one of its records.
    pub fn explain(
        &self,
        at: &TopicPartition,
        offset: Option<i64>,
        clock: WallClock,
    ) -> Option<Explanation> {
        let running = self.flow.explain(at, offset, clock);
        running.or_else(|| self.offers.explain(at, self.now_ms))
    }

    /// Counts an event of a topic's partitions. `Some(n)`: a log line is due, which stands for `n` events.
    pub(crate) fn count_for_log(&mut self, topic: &Arc<str>, what: &'static str) -> Option<u64> {
        if self.log.len() >= MAX_LOG_KINDS && !self.log.contains_key(&(topic.clone(), what)) {
            self.log.clear();
        }
        self.log
            .entry((topic.clone(), what))
            .or_default()
            .count(self.now_ms)
    }
}
