//! The pump's pure core: what becomes of each record between the source and the commit.
//!
//! ```text
//!  deliver ─► ledger ─► route ─► enqueue ─► place: lane ─► open flight ─► dispatch ─► worker pool
//!                                   │ bound reached          │ lane taken
//!                                   ▼                        ▼
//!                                backlog                  waits in its lane
//!
//!  finished ─► settle: ack, drop ──────────────► ledger.settle ─► frontier ─► commits_due
//!                 │    retry ─► parked ─► due ─► open flight
//!                 └──► emits, dead letter ─► produced ─► settle      (`produce`)
//!                         └─ refused ─► held ─► due ─► sent again
//! ```
//!
//! It knows no Kafka, no thread and no clock: time comes in with [`Flow::tick`], batches leave through
//! [`crate::dispatch::WorkerPool`], produced records through [`crate::emit::Emitter`]. The seeded simulator scripts
//! all three.

mod admit;
pub mod budget;
mod closing;
pub mod commits;
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
// Lists of one range are meant.
#[allow(clippy::single_range_in_vec_init)]
mod tests;
mod topic_name;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::assignment::{Assignment, AssignmentState, LeaderEpochs, NewAssignment};
use crate::dispatch::{HandlerIx, Inbox, PumpMessage};
use crate::emit::Emitter;
use crate::ledger::Ledger;
use crate::routing::{Router, RoutingIndex};
use crate::source::{AssignmentId, CommitEntry, TopicPartition};
use crate::trouble::LogLimit;
use commits::Commits;
use flights::Flights;
use handler::{HandlerFlow, HandlerSettings};
use log::GivenUp;
use record_log::RecordLog;
use refusals::Refusals;
use slab::Slab;
use tasks::Tasks;

/// Bounds and names of a flow.
#[derive(Clone, Debug)]
pub struct FlowSettings {
    /// Records that an owner lost without notice may make somebody repeat, a partition (G3).
    pub max_uncommitted: i64,
    /// Bytes of records that may be held.
    pub budget_bytes: u64,
    /// A frontier that stands still this long while records wait is reported.
    pub stall_timeout_ms: u64,
    /// Time between commits.
    pub commit_interval_ms: u64,
    /// How long a handler that is switched off may go without settling anything before the rest of it is skipped.
    pub drain_timeout_ms: u64,
    /// The consumer group, for dead letters.
    pub group: Arc<str>,
    /// Seeds jitter.
    pub seed: u64,
}

/// What a topic has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicCounts {
    /// Records delivered, repeats not counted.
    pub consumed: u64,
    /// Records that no handler wanted.
    pub unrouted: u64,
    /// Records that the client delivered twice.
    pub repeats: u64,
    /// Partitions whose topic was deleted and created again.
    pub recreated: u64,
    /// Partitions whose commit metadata was not used.
    pub metadata_dropped: u64,
}

/// The pump's pure core.
pub struct Flow {
    settings: FlowSettings,
    now_ms: u64,
    assignments: Vec<Assignment>,
    /// Ordered, as all that is walked through here: a seed must give the same run again.
    current: BTreeMap<TopicPartition, AssignmentId>,
    router: Router,
    slab: Slab,
    flights: Flights,
    handlers: Vec<Option<HandlerFlow>>,
    /// Handlers with something to submit.
    listed: Vec<HandlerIx>,
    /// Handlers that are switched off or removed and still have records.
    closing: Vec<HandlerIx>,
    /// When they are looked at next.
    closing_due_ms: u64,
    /// Handlers that rest, by when they go on.
    resting: BTreeSet<(u64, HandlerIx)>,
    tasks: Tasks,
    refusals: Refusals,
    /// A dead letter's topic was not there, or not to be written to.
    missed_target: bool,
    given_up: GivenUp,
    /// Records that drains left behind.
    overrun: u64,
    emitter: Arc<dyn Emitter>,
    inbox: Arc<Inbox>,
    charged: u64,
    /// Mean size of the records that were held last.
    last_mean_bytes: u64,
    /// When the pace of partitions was measured last.
    measured_ms: u64,
    /// Lines that say that partitions are paused for want of memory.
    memory_log: LogLimit,
    random: u64,
    topics: HashMap<Arc<str>, TopicCounts>,
    /// Offsets that were passed over because they are not in the log any more.
    gone: HashMap<TopicPartition, u64>,
    commits: Commits,
    /// When positions were asked for last.
    positions_ms: u64,
    late_outcomes: u64,
    fault: Option<Arc<str>>,
    /// Pools are to be told which partitions are ours before the next batch.
    ownership_changed: bool,
    /// When to look again whether the last record of a partition is over that pools are still told of.
    ownership_due_ms: Option<u64>,
    /// `None` while it is off.
    record_log: Option<RecordLog>,
}

impl Flow {
    /// A flow without partitions and handlers.
    pub fn new(settings: FlowSettings, emitter: Arc<dyn Emitter>, inbox: Arc<Inbox>) -> Self {
        let random = settings.seed | 1;
        let no_routes = RoutingIndex::compile(0, Vec::new()).expect("no routes cannot be refused");
        Self {
            settings,
            now_ms: 0,
            assignments: Vec::new(),
            current: BTreeMap::new(),
            router: Router::new(no_routes),
            slab: Slab::default(),
            flights: Flights::default(),
            handlers: Vec::new(),
            listed: Vec::new(),
            closing: Vec::new(),
            closing_due_ms: 0,
            resting: BTreeSet::new(),
            tasks: Tasks::default(),
            refusals: Refusals::default(),
            missed_target: false,
            given_up: GivenUp::default(),
            overrun: 0,
            emitter,
            inbox,
            charged: 0,
            last_mean_bytes: 0,
            measured_ms: 0,
            memory_log: LogLimit::default(),
            random,
            topics: HashMap::new(),
            gone: HashMap::new(),
            commits: Commits::default(),
            positions_ms: 0,
            late_outcomes: 0,
            fault: None,
            ownership_changed: false,
            ownership_due_ms: None,
            record_log: None,
        }
    }

    /// Sets the clock and does what has come due.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.ownership_changed |= self.ownership_due_ms.is_some_and(|due_ms| now_ms >= due_ms);
        self.end_overdue_drains();
        self.run_due();
        self.end_rests();
        self.run_closing();
    }

    /// Takes handlers and routes of a plan, both at once: no record is routed by a mixture (G9).
    pub fn apply(&mut self, index: Arc<RoutingIndex>, handlers: Vec<(HandlerIx, HandlerSettings)>) {
        let mut wanted = vec![false; self.handlers.len()];
        for (ix, settings) in handlers {
            let place = ix.0 as usize;
            if place >= self.handlers.len() {
                self.handlers.resize_with(place + 1, || None);
            }
            wanted.resize(self.handlers.len(), false);
            wanted[place] = true;
            match &mut self.handlers[place] {
                Some(handler) => handler.replace(settings),
                empty => *empty = Some(HandlerFlow::new(settings)),
            }
            self.list(ix);
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
        for assignment in &mut self.assignments {
            if assignment.state == AssignmentState::Assigned {
                assignment.plan = self.router.plan(&assignment.at.topic);
            }
        }
        self.note_closed();
        self.drop_retired();
    }

    /// Takes a partition.
    pub fn assign(&mut self, new: NewAssignment) -> AssignmentId {
        let slot = AssignmentId(self.assignments.len() as u32);
        let plan = self.router.plan(&new.at.topic);
        self.topics.entry(new.at.topic.clone()).or_default();
        self.current.insert(new.at.clone(), slot);
        self.ownership_changed = true;
        let mut leader_epochs = LeaderEpochs::default();
        if let Some(epoch) = new.leader_epoch {
            leader_epochs.note(new.start - 1, epoch);
        }
        self.assignments.push(Assignment {
            topic: topic_name::kept(&new.at.topic, new.topic_id),
            at: new.at,
            topic_id: new.topic_id,
            epoch: new.epoch,
            fenced: false,
            token_first: new.token_first,
            token_kept: false,
            leader_epochs,
            // Without one nothing can be said against the list.
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
            end: None,
            awaited: None,
            entries: 0,
            delivered: 0,
            repeats: 0,
            moved_ms: self.now_ms,
            begun_ms: self.now_ms,
            assigned_ms: self.now_ms,
            usage: Default::default(),
        });
        slot
    }

    /// Counts what a topic's partitions began with.
    pub fn count_start(&mut self, topic: &Arc<str>, recreated: bool, metadata_dropped: bool) {
        let counts = self.topics.entry(topic.clone()).or_default();
        counts.recreated += u64::from(recreated);
        counts.metadata_dropped += u64::from(metadata_dropped);
    }

    /// The slot of a partition that is ours.
    pub fn slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        self.current.get(at).copied()
    }

    /// The assignment behind a slot.
    pub fn assignment(&self, slot: AssignmentId) -> &Assignment {
        &self.assignments[slot.0 as usize]
    }

    /// Every partition that is ours.
    pub fn partitions(&self) -> impl Iterator<Item = (&TopicPartition, AssignmentId)> {
        self.current.iter().map(|(at, slot)| (at, *slot))
    }

    /// A broken invariant, if one was found: the process must exit without committing (G13).
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Handles one message of the inbox; control requests are the pump's.
    pub fn receive(&mut self, message: PumpMessage) {
        match message {
            PumpMessage::Finished(batch) => self.finished(batch),
            PumpMessage::Overrun { flight, completed } => self.overrun(flight, &completed),
            PumpMessage::Produced {
                handler,
                entry,
                refused,
            } => self.produced(handler, entry, refused),
            PumpMessage::PoolFree => self.unblock_all(),
            PumpMessage::Control(_) => debug_assert!(false, "the pump runs control requests"),
        }
    }

    /// What there is to commit for a partition that is ours, if that is news.
    fn commit_entry(&self, slot: AssignmentId) -> Option<CommitEntry> {
        let assignment = &self.assignments[slot.0 as usize];
        let offset = assignment.ledger.frontier();
        let metadata = assignment.metadata(&self.settings.group);
        let news = offset > assignment.committed || metadata != assignment.committed_metadata;
        news.then(|| CommitEntry {
            at: assignment.at.clone(),
            offset,
            leader_epoch: assignment.leader_epochs.at(offset - 1),
            metadata,
        })
    }

    /// Bytes of the records that are held.
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Bytes of emitted records that were refused and are kept for a further try; they count against the budget.
    pub fn kept_bytes(&self) -> u64 {
        self.refusals.held_bytes()
    }

    /// Records that are held.
    pub fn held_records(&self) -> usize {
        self.slab.live()
    }

    /// Whether some call has a record, wanted or not.
    pub fn lends(&self) -> bool {
        self.slab.lent().next().is_some()
    }

    /// When [`Flow::tick`] has something to do next, on its clock.
    pub fn next_due(&self) -> Option<u64> {
        let rested = self.resting.first().map(|(until_ms, _)| *until_ms);
        let due = self.tasks.next_due().into_iter().chain(rested);
        due.chain(self.last_commit_due()).min()
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

    /// Uniform in 0..1 (xorshift; jitter needs no better).
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}
