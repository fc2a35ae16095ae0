//! The pump's pure core: decides what happens to each record between source and commit.
//!
//! ```text
//!  deliver ─► ledger ─► route ─► enqueue ─► lane ─► open batch ─► dispatch ─► worker pool
//!                                   │ bound reached │ lane taken
//!                                   ▼               ▼
//!                                backlog        waits in its lane
//!
//!  finished ─► settle: ack, drop ──────────────► ledger.settle ─► frontier ─► commits_due
//!                 │    retry ─► parked ─► due ─► open batch
//!                 └──► emits, dead letter ─► produced ─► settle      (`produce`)
//!                         └─ refused ─► held ─► due ─► resent
//! ```
//!
//! It has no Kafka client, no thread and no clock: time arrives with [`Flow::tick`], batches leave through
//! [`crate::dispatch::WorkerPool`], produced records through [`crate::emit::Emitter`]. The seeded simulator scripts all
//! three, so whatever a decision depends on must come in through them. That includes the order of iteration: every
//! collection that decides something by being iterated is ordered or has a fixed hasher, or a seed would not reproduce
//! its run.
//!
//! One file per stage: `admit` (ledger, routing), `place` (lanes, batches, submission), `outcomes` (results, retries,
//! settling), `produce` (emits, dead letters), `draining` (revoked partitions), `closing` (handlers switched
//! off), `budget` (memory, pauses), `rest` (calls that run nothing), `reading` (stopped and restarted partitions),
//! `report`.

mod admit;
pub mod budget;
mod closing;
mod draining;
mod ending;
pub mod flights;
pub mod handler;
mod log;
mod outcomes;
mod ownership;
mod place;
mod position;
mod produce;
mod reading;
mod record_log;
mod refusals;
pub mod report;
mod rest;
pub mod slab;
mod standstill;
mod tasks;
#[cfg(test)]
// Single-range lists are intended.
#[allow(clippy::single_range_in_vec_init)]
mod tests;
mod topic_name;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::dispatch::{HandlerIx, Inbox, PumpMessage};
use crate::emit::Emitter;
use crate::partition::assignment::{Assignment, AssignmentState, LeaderEpochs, NewAssignment};
use crate::partition::committer::{CommitSettings, Committer, HandOver, Moment};
use crate::partition::ledger::Ledger;
use crate::partition::table::Partitions;
use crate::partition::trouble::LogLimit;
use crate::random::Random;
use crate::record::Record;
use crate::routing::{Router, RoutingIndex};
use crate::source::{AssignmentId, CommitEntry, CommitError, CommitResult, TopicPartition};
use flights::Flights;
use handler::{HandlerFlow, HandlerSettings};
use log::DeadLetterLog;
use record_log::RecordLog;
use refusals::Refusals;
use slab::Slab;
use tasks::Tasks;

/// Bounds and names of a flow.
#[derive(Clone, Debug)]
pub struct FlowSettings {
    /// Maximum uncommitted offsets per partition: what is reprocessed if this process dies (G3).
    pub max_uncommitted: i64,
    /// Maximum bytes of held records.
    pub budget_bytes: u64,
    /// A frontier that does not move for this long while records wait is reported.
    pub stall_timeout_ms: u64,
    /// Time between commits.
    pub commit_interval_ms: u64,
    /// How long a revoke waits for in-flight records, and how long a handler that is switched off may settle nothing before its
    /// remaining records are skipped.
    pub drain_timeout_ms: u64,
    /// The consumer group, for dead letters.
    pub group: Arc<str>,
    /// Seed for jitter.
    pub seed: u64,
}

/// Counters of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicCounts {
    /// Records delivered, without redeliveries.
    pub consumed: u64,
    /// Records that matched no handler.
    pub unrouted: u64,
    /// Records that the client delivered twice.
    pub repeats: u64,
    /// Partitions whose topic was deleted and created again.
    pub recreated: u64,
    /// Partitions whose commit metadata was not used.
    pub metadata_dropped: u64,
}

/// The pump's pure core.
pub struct Flow<R: Record> {
    settings: FlowSettings,
    now_ms: u64,
    partitions: Partitions<R>,
    router: Router,
    slab: Slab<R>,
    flights: Flights,
    handlers: Vec<Option<HandlerFlow>>,
    /// Handlers with something to submit.
    dirty: Vec<HandlerIx>,
    /// Handlers that are switched off or removed and still have records.
    closing: Vec<HandlerIx>,
    /// When they are checked next.
    closing_due_ms: u64,
    /// Handlers that back off, by the time at which they resume.
    backing_off: BTreeSet<(u64, HandlerIx)>,
    tasks: Tasks,
    refusals: Refusals,
    /// A dead-letter topic was missing or not writable.
    missed_target: bool,
    dead_letter_log: DeadLetterLog,
    /// Records that were started and unfinished when a drain timed out.
    unfinished_records: u64,
    emitter: Arc<dyn Emitter>,
    inbox: Arc<Inbox>,
    charged: u64,
    /// When waiting records were last copied out of fetch buffers.
    detached_ms: u64,
    /// Mean size of the records that were last held.
    last_mean_bytes: u64,
    /// When the settle rate of partitions was last measured.
    measured_ms: u64,
    /// Limit of the log lines about partitions paused for memory.
    memory_log: LogLimit,
    random: Random,
    topics: HashMap<Arc<str>, TopicCounts>,
    /// Offsets skipped because they have left the log.
    gone: HashMap<TopicPartition, u64>,
    committer: Committer,
    /// When positions were last queried.
    positions_ms: u64,
    late_outcomes: u64,
    fault: Option<Arc<str>>,
    /// The owned partitions must be announced to the pools before the next batch.
    ownership_changed: bool,
    /// When to check again whether the last record of a partition that a new route excludes is settled.
    ownership_due_ms: Option<u64>,
    /// `None` while the record log is off.
    record_log: Option<RecordLog>,
}

impl<R: Record> Flow<R> {
    /// A flow without partitions and handlers.
    pub fn new(settings: FlowSettings, emitter: Arc<dyn Emitter>, inbox: Arc<Inbox>) -> Self {
        let random = Random::new(settings.seed);
        let committer = Committer::new(CommitSettings {
            group: settings.group.clone(),
            interval_ms: settings.commit_interval_ms,
            max_uncommitted: settings.max_uncommitted,
        });
        let no_routes = RoutingIndex::compile(0, Vec::new()).expect("no routes cannot be refused");
        Self {
            settings,
            now_ms: 0,
            partitions: Partitions::default(),
            router: Router::new(no_routes),
            slab: Slab::default(),
            flights: Flights::default(),
            handlers: Vec::new(),
            dirty: Vec::new(),
            closing: Vec::new(),
            closing_due_ms: 0,
            backing_off: BTreeSet::new(),
            tasks: Tasks::default(),
            refusals: Refusals::default(),
            missed_target: false,
            dead_letter_log: DeadLetterLog::default(),
            unfinished_records: 0,
            emitter,
            inbox,
            charged: 0,
            detached_ms: 0,
            last_mean_bytes: 0,
            measured_ms: 0,
            memory_log: LogLimit::default(),
            random,
            topics: HashMap::new(),
            gone: HashMap::new(),
            committer,
            positions_ms: 0,
            late_outcomes: 0,
            fault: None,
            ownership_changed: false,
            ownership_due_ms: None,
            record_log: None,
        }
    }

    /// Advances the clock and runs everything that is due.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.ownership_changed |= self.ownership_due_ms.is_some_and(|due_ms| now_ms >= due_ms);
        self.end_overdue_drains();
        self.run_due();
        self.end_backoffs();
        self.run_closing();
        self.detach_waiting();
    }

    /// Applies the handlers and routes of a plan, both at once: no record is routed by a mixture of two plans (G9).
    pub fn apply(&mut self, index: Arc<RoutingIndex>, handlers: Vec<(HandlerIx, HandlerSettings)>) {
        let mut wanted = vec![false; self.handlers.len()];
        let mut other_workers = Vec::new();
        for (ix, settings) in handlers {
            let place = ix.0 as usize;
            if place >= self.handlers.len() {
                self.handlers.resize_with(place + 1, || None);
            }
            wanted.resize(self.handlers.len(), false);
            wanted[place] = true;
            match &mut self.handlers[place] {
                Some(handler) => {
                    if handler.replace(settings) {
                        other_workers.push(ix);
                    }
                }
                empty => *empty = Some(HandlerFlow::new(settings)),
            }
            self.mark_dirty(ix);
        }
        for (place, handler) in self.handlers.iter_mut().enumerate() {
            if let Some(handler) = handler
                && !wanted[place]
            {
                handler.retiring = true;
            }
        }
        self.router.swap(index);
        self.ownership_changed = true;
        for assignment in self.partitions.iter_mut() {
            if assignment.state == AssignmentState::Assigned {
                assignment.plan = self.router.plan(&assignment.at.topic);
            }
        }
        for ix in other_workers {
            self.place_again(ix);
        }
        self.record_closed();
        self.drop_retired();
    }

    /// Adds an assigned partition.
    pub fn assign(&mut self, new: NewAssignment) -> AssignmentId {
        let plan = self.router.plan(&new.at.topic);
        self.topics.entry(new.at.topic.clone()).or_default();
        self.ownership_changed = true;
        let mut leader_epochs = LeaderEpochs::default();
        if let Some(epoch) = new.leader_epoch {
            leader_epochs.record(new.start - 1, epoch);
        }
        let (at, now_ms) = (new.at.clone(), self.now_ms);
        self.partitions.insert(at, |id| Assignment {
            id,
            topic: topic_name::kept(&new.at.topic, new.topic_id),
            at: new.at,
            topic_id: new.topic_id,
            epoch: new.epoch,
            fenced: false,
            token_first: new.token_first,
            token_kept: false,
            leader_epochs,
            // Without a leader epoch the inherited list cannot be contradicted.
            finished_leader_epoch: new.inherited.leader_epoch.unwrap_or(i32::MAX),
            state: AssignmentState::Assigned,
            ledger: Ledger::new(new.start, new.inherited.finished),
            plan,
            committed: new.start,
            committed_metadata: String::new(),
            overflow: std::collections::VecDeque::new(),
            overflow_bytes: 0,
            full_since_ms: None,
            paused: false,
            stopped: None,
            unreadable: None,
            fault: None,
            recovery: None,
            leaderless_since_ms: None,
            end: None,
            awaited: None,
            entries: 0,
            unsettled: 0,
            delivered: 0,
            repeats: 0,
            moved_ms: now_ms,
            begun_ms: now_ms,
            assigned_ms: now_ms,
            usage: Default::default(),
        })
    }

    /// Counts how a partition of a topic started.
    pub fn count_start(&mut self, topic: &Arc<str>, recreated: bool, metadata_dropped: bool) {
        let counts = self.topics.entry(topic.clone()).or_default();
        counts.recreated += u64::from(recreated);
        counts.metadata_dropped += u64::from(metadata_dropped);
    }

    /// The assignment of an owned partition.
    pub fn slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        self.partitions.owned(at)
    }

    /// The assignment behind a slot.
    pub fn assignment(&self, slot: AssignmentId) -> &Assignment<R> {
        &self.partitions[slot]
    }

    /// Whether something may still refer to an assignment.
    pub(crate) fn is_known(&self, slot: AssignmentId) -> bool {
        self.partitions.get(slot).is_some()
    }

    /// The assignment behind a slot.
    pub(crate) fn assignment_mut(&mut self, slot: AssignmentId) -> &mut Assignment<R> {
        &mut self.partitions[slot]
    }

    /// The order of a handler's records that have left its backlog.
    pub fn order_of(&self, ix: HandlerIx) -> Option<handler::Order> {
        let handler = self.handlers.get(ix.0 as usize)?.as_ref()?;
        Some(handler.order)
    }

    /// All owned partitions.
    pub fn partitions(&self) -> impl Iterator<Item = (&TopicPartition, AssignmentId)> {
        self.partitions.iter()
    }

    /// The violated invariant, if one was found: the process must exit without committing (G13).
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Handles one message of the inbox.
    pub fn receive(&mut self, message: PumpMessage) {
        match message {
            PumpMessage::Finished(batch) => self.finished(batch),
            PumpMessage::CallTimedOut { flight, completed } => {
                self.call_timed_out(flight, &completed)
            }
            PumpMessage::Produced {
                handler,
                entry,
                refused,
            } => self.produced(handler, entry, refused),
            PumpMessage::PoolFree => self.unblock_all(),
        }
    }

    /// The partitions now.
    fn now(&self) -> Moment<'_, R> {
        Moment {
            partitions: &self.partitions,
            ms: self.now_ms,
        }
    }

    /// Commits that are due, unless one is in flight; the result is passed to [`Flow::committed`]. None is due once an
    /// invariant was violated: what is settled is not known any more (G13).
    pub fn commits_due(&mut self) -> Vec<CommitEntry> {
        if self.fault.is_some() {
            return Vec::new();
        }
        let now = Moment {
            partitions: &self.partitions,
            ms: self.now_ms,
        };
        self.committer.due(now)
    }

    /// Handles the result of the commit in flight.
    pub fn committed(&mut self, results: &[CommitResult], error: Option<&CommitError>) {
        let now = (self.now_ms, &mut self.random);
        self.committer
            .answered(&mut self.partitions, now, results, error);
        self.admit_overflow();
    }

    /// Progress of handing over these partitions, all of which drain.
    pub fn hand_over(&self, slots: &[AssignmentId]) -> HandOver {
        self.committer.hand_over(self.now(), slots)
    }

    /// The rebalance is over: rejected commits are resent at once.
    pub fn group_settled(&mut self) {
        self.committer.group_settled();
    }

    /// Another client commits from now on, so the result of the commit in flight will not arrive. To be called while no
    /// partition is owned.
    pub fn client_renewed(&mut self) {
        self.committer.client_renewed();
    }

    /// Whether the group has rejected this member for so long that the client cannot have noticed: otherwise it would
    /// have reported lost partitions and rejoined.
    pub fn has_lost_membership(&self) -> bool {
        self.committer.has_lost_membership(self.now_ms)
    }

    /// Bytes of held records.
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Bytes of refused emitted records that are kept for a resend; they count against the budget.
    pub fn kept_bytes(&self) -> u64 {
        self.refusals.held_bytes()
    }

    /// Number of held records.
    pub fn held_records(&self) -> usize {
        self.slab.live()
    }

    /// Whether some call still has a record, settled or not.
    pub fn has_lent_records(&self) -> bool {
        self.slab.lent().next().is_some()
    }

    /// When [`Flow::tick`] has something to do next, on its clock.
    pub fn next_due(&self) -> Option<u64> {
        let resumed = self.backing_off.first().map(|(until_ms, _)| *until_ms);
        let due = self.tasks.next_due().into_iter().chain(resumed);
        due.chain(self.committer.last_commit_due(&self.partitions))
            .min()
    }

    fn drop_retired(&mut self) {
        for place in &mut self.handlers {
            if let Some(handler) = place.take_if(|handler| handler.retiring && handler.is_idle()) {
                for flight in handler.open.into_iter().flatten().chain(handler.ready) {
                    self.flights.end(flight);
                }
            }
        }
    }
}
