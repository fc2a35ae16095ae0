//! Records in and out: from the source through ledger and routing into the handlers' queues, and from the frontiers to the
//! commits.
//!
//! ```text
//!  deliver ─► ledger ─► route ─► HandlerQueue::enqueue, for each handler that wants the record
//!  messages of workers and producer ─► the handler's queue ─► records: settled ─► frontier ─► commits_due
//! ```
//!
//! It has no Kafka client, no thread and no clock: time arrives with [`Flow::set_time`] and [`Flow::tick`], batches leave through
//! [`crate::dispatch::WorkerPool`], produced records through [`crate::emit::Emitter`]. The seeded simulator scripts all
//! three, so whatever a decision depends on must come in through them. That includes the order of iteration: every
//! collection that decides something by being iterated is ordered or has a fixed hasher, or a seed would not reproduce
//! its run.
//!
//! What one handler still has to do is in its [`crate::queue`]; here is what concerns several of them: `admit` (ledger,
//! routing), `draining` (revoked partitions), `closing` (which handlers are switched off), `budget` (memory, pauses),
//! `pinned` (fetch buffers), `reading` (stopped and restarted partitions), `ownership` (what pools are told), `report`.

mod admit;
pub mod budget;
mod closing;
mod draining;
mod ending;
mod ownership;
mod pinned;
mod position;
mod reading;
mod record_log;
pub mod report;
mod standstill;
#[cfg(test)]
// Single-range lists are intended.
#[allow(clippy::single_range_in_vec_init)]
mod tests;
mod topic_name;

use std::collections::HashMap;
use std::sync::Arc;

use sluicegate_abi::Fence;

use crate::dispatch::{HandlerIx, Inbox, PumpMessage, RecordId};
use crate::emit::shipment::Answered;
use crate::emit::{Delivery, Emitter};
use crate::partition::assignment::{Assignment, NewAssignment};
use crate::partition::committer::{CommitSettings, Committer, HandOver, Moment};
use crate::partition::trouble::LogLimit;
use crate::queue::context::Context;
use crate::queue::{HandlerQueue, HandlerSettings, Order};
use crate::record::Record;
use crate::routing::{Router, RoutingIndex};
use crate::source::{self, AssignmentId, CommitEntry, CommitError, CommitResult, TopicPartition};
use pinned::Pinned;
use record_log::RecordLog;

/// Number of answered records whose memory is fetched at once.
const PREFETCHED: usize = 16;

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
    ctx: Context<R>,
    router: Router,
    /// The queues of the handlers, by their place.
    queues: Vec<Option<HandlerQueue>>,
    /// Handlers that are switched off or removed and still have records.
    closing: Vec<HandlerIx>,
    /// When they are checked next.
    closing_due_ms: u64,
    /// Records that were started and unfinished when a drain timed out.
    unfinished_records: u64,
    /// What held records keep alive besides their own bytes.
    pinned: Pinned,
    /// Mean size of the records that were last held.
    last_mean_bytes: u64,
    /// When the settle rate of partitions was last measured.
    measured_ms: u64,
    /// Limit of the log lines about partitions paused for memory.
    memory_log: LogLimit,
    topics: HashMap<Arc<str>, TopicCounts>,
    /// One for each partition that was ever assigned. They are never freed: a hung call may read one after this flow has ended.
    fences: HashMap<TopicPartition, &'static Fence>,
    /// Offsets skipped because they have left the log.
    gone: HashMap<TopicPartition, u64>,
    committer: Committer,
    /// When positions were last queried.
    positions_ms: u64,
    /// The owned partitions must be announced to the pools before the next batch.
    ownership_changed: bool,
    /// When to check again whether the last record of a partition that a new route excludes is settled.
    ownership_due_ms: Option<u64>,
    /// `None` while the record log is off.
    record_log: Option<RecordLog>,
    /// The records of the run that is being routed; kept for its memory.
    keys: Vec<RecordId>,
    /// The queues that records of the run being routed have arrived at; kept for its memory.
    arrived: Vec<HandlerIx>,
    /// Records that leave the queue of their partition; kept for its memory.
    queued: Vec<source::Delivery<R>>,
    /// Records of which the producer has answered everything; kept for its memory.
    answered: Vec<Answered>,
}

impl<R: Record> Flow<R> {
    /// A flow without partitions and handlers.
    pub fn new(settings: FlowSettings, emitter: Arc<dyn Emitter>, inbox: Arc<Inbox>) -> Self {
        let committer = Committer::new(CommitSettings {
            group: settings.group.clone(),
            interval_ms: settings.commit_interval_ms,
            max_uncommitted: settings.max_uncommitted,
        });
        let ctx = Context::new(emitter, inbox, settings.group.clone(), settings.seed);
        let no_routes = RoutingIndex::compile(0, Vec::new()).expect("no routes cannot be refused");
        Self {
            settings,
            ctx,
            router: Router::new(no_routes),
            queues: Vec::new(),
            closing: Vec::new(),
            closing_due_ms: 0,
            unfinished_records: 0,
            pinned: Pinned::default(),
            last_mean_bytes: 0,
            measured_ms: 0,
            memory_log: LogLimit::default(),
            topics: HashMap::new(),
            fences: HashMap::new(),
            gone: HashMap::new(),
            committer,
            positions_ms: 0,
            ownership_changed: false,
            ownership_due_ms: None,
            record_log: None,
            keys: Vec::new(),
            arrived: Vec::new(),
            queued: Vec::new(),
            answered: Vec::new(),
        }
    }

    /// Advances the clock; what is due runs with the next [`Flow::tick`].
    pub fn set_time(&mut self, now_ms: u64) {
        self.ctx.now_ms = now_ms;
        self.ctx.outbox.tick(now_ms);
    }

    /// Advances the clock and runs everything that is due.
    pub fn tick(&mut self, now_ms: u64) {
        self.set_time(now_ms);
        self.ownership_changed |= self.ownership_due_ms.is_some_and(|due_ms| now_ms >= due_ms);
        self.end_overdue_drains();
        self.run_due();
        self.run_closing();
        self.detach_waiting();
    }

    /// Runs what is due: next attempts, resends of what the producer refused, and handlers whose backoff has ended.
    fn run_due(&mut self) {
        let now_ms = self.ctx.now_ms;
        for ix in self.ctx.agenda.take_refusals_over() {
            if let Some(queue) = self.queues[ix.0 as usize].as_mut() {
                queue.log_ended_refusals(now_ms);
            }
        }
        while let Some((due_ms, ix, key)) = self.ctx.agenda.take_due(now_ms) {
            if let Some(queue) = self.queues[ix.0 as usize].as_mut() {
                queue.run_due(&mut self.ctx, key, due_ms);
            }
        }
        while let Some((until_ms, ix)) = self.ctx.agenda.take_backoff(now_ms) {
            if let Some(queue) = self.queues[ix.0 as usize].as_mut() {
                queue.end_backoff(&mut self.ctx, until_ms);
            }
        }
    }

    /// Submits the ready batches of the handlers that have some.
    pub fn dispatch(&mut self) {
        if std::mem::take(&mut self.ownership_changed) {
            self.announce_ownership();
        }
        for ix in self.ctx.agenda.take_dirty() {
            if let Some(queue) = self.queues[ix.0 as usize].as_mut() {
                queue.dispatch(&mut self.ctx);
            }
        }
    }

    /// Applies the handlers and routes of a plan, both at once: no record is routed by a mixture of two plans (G9).
    pub fn apply(&mut self, index: Arc<RoutingIndex>, handlers: Vec<(HandlerIx, HandlerSettings)>) {
        let mut wanted = vec![false; self.queues.len()];
        for (ix, settings) in handlers {
            let place = ix.0 as usize;
            if place >= self.queues.len() {
                self.queues.resize_with(place + 1, || None);
            }
            wanted.resize(self.queues.len(), false);
            wanted[place] = true;
            match &mut self.queues[place] {
                Some(queue) => queue.replace(&mut self.ctx, settings),
                empty => empty
                    .insert(HandlerQueue::new(ix, settings))
                    .mark_dirty(&mut self.ctx),
            }
        }
        for (queue, wanted) in self.queues.iter_mut().zip(wanted) {
            if let Some(queue) = queue
                && !wanted
            {
                queue.retire();
            }
        }
        self.router.swap(index);
        self.ownership_changed = true;
        for assignment in self.ctx.records.partitions.iter_mut() {
            if assignment.is_assigned() {
                let plan = self.router.plan(&assignment.at().topic);
                assignment.replan(plan);
            }
        }
        self.record_closed();
        self.drop_retired();
    }

    /// Adds an assigned partition.
    pub fn assign(&mut self, new: NewAssignment) -> AssignmentId {
        let plan = self.router.plan(&new.at.topic);
        self.topics.entry(new.at.topic.clone()).or_default();
        self.ownership_changed = true;
        let topic = topic_name::kept(&new.at.topic, new.topic_id);
        let fence =
            *(self.fences.entry(new.at.clone())).or_insert_with(|| Box::leak(Box::default()));
        let (at, now_ms) = (new.at.clone(), self.ctx.now_ms);
        let begin = |id| Assignment::new(id, new, (topic, fence), plan, now_ms);
        self.ctx.records.partitions.insert(at, begin)
    }

    /// Counts how a partition of a topic started.
    pub fn count_start(&mut self, topic: &Arc<str>, recreated: bool, metadata_dropped: bool) {
        let counts = self.topics.entry(topic.clone()).or_default();
        counts.recreated += u64::from(recreated);
        counts.metadata_dropped += u64::from(metadata_dropped);
    }

    /// The assignment of an owned partition.
    pub fn slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        self.ctx.records.partitions.owned(at)
    }

    /// The assignment behind a slot.
    pub fn assignment(&self, slot: AssignmentId) -> &Assignment<R> {
        &self.ctx.records.partitions[slot]
    }

    /// The order of a handler's records that have left its backlog.
    pub fn order_of(&self, ix: HandlerIx) -> Option<Order> {
        let queue = self.queues.get(ix.0 as usize)?.as_ref()?;
        Some(queue.order())
    }

    /// A handler whose records are not all where something will find them, and why (G8): for tests, which call it after each
    /// step. Visits everything in flight.
    pub fn broken_queue(&self) -> Option<String> {
        let mut queues = self.queues.iter().flatten();
        queues.find_map(|queue| {
            let broken = queue.broken(&self.ctx.outbox)?;
            Some(format!("{}: {broken}", queue.settings().name))
        })
    }

    /// All owned partitions.
    pub fn partitions(&self) -> impl Iterator<Item = (&TopicPartition, AssignmentId)> {
        self.ctx.records.partitions.iter()
    }

    /// The violated invariant, if one was found: the process must exit without committing (G13).
    pub fn fault(&self) -> Option<&str> {
        self.ctx.records.fault()
    }

    /// Handles one message of the inbox.
    pub fn receive(&mut self, message: PumpMessage) {
        match message {
            PumpMessage::Finished(batch) => {
                let Some(queue) = self.queues[batch.handler.0 as usize].as_mut() else {
                    // The handler has been removed: its calls were abandoned.
                    self.ctx.return_late(batch);
                    return;
                };
                let stopped = queue.finished(&mut self.ctx, batch);
                self.received(stopped);
            }
            PumpMessage::CallTimedOut {
                handler,
                batch,
                published,
            } => {
                if let Some(queue) = self.queues[handler.0 as usize].as_mut() {
                    let stopped = queue.call_timed_out(&mut self.ctx, batch, &published);
                    self.received(stopped);
                }
            }
            PumpMessage::Delivered(deliveries) => {
                self.receive_deliveries(deliveries);
                self.received(false);
            }
            PumpMessage::PoolFree => {
                for queue in self.queues.iter_mut().flatten() {
                    queue.unblock(&mut self.ctx);
                }
            }
        }
    }

    /// Handles answers of the producer.
    fn receive_deliveries(&mut self, deliveries: Vec<Delivery>) {
        let mut answered = std::mem::take(&mut self.answered);
        self.ctx.outbox.answer(deliveries, &mut answered);
        for some in answered.chunks_mut(PREFETCHED) {
            // Most of these records are freed now, long after they were last touched.
            for one in &*some {
                self.ctx.records.slab.prefetch(one.key);
                if let Some(queue) = &self.queues[one.handler.0 as usize] {
                    std::hint::black_box(queue.touch(one));
                }
            }
            for one in some {
                match self.queues[one.handler.0 as usize].as_mut() {
                    Some(queue) => queue.produced(&mut self.ctx, one),
                    None => self.ctx.outbox.forget(one.refused.take()),
                }
            }
        }
        answered.clear();
        self.answered = answered;
        for queue in self.queues.iter_mut().flatten() {
            queue.follow_producer(&mut self.ctx);
        }
    }

    /// A message was handled, after which draining partitions may wait for no stopped call any more, or a handler be over.
    fn received(&mut self, stopped: bool) {
        if self.queues.iter().flatten().any(HandlerQueue::is_over) {
            self.drop_retired();
        }
        self.call_ended(stopped);
    }

    /// The partitions now.
    fn now(&self) -> Moment<'_, R> {
        Moment {
            partitions: &self.ctx.records.partitions,
            ms: self.ctx.now_ms,
        }
    }

    /// Commits that are due, unless one is in flight; the result is passed to [`Flow::committed`]. None is due once an
    /// invariant was violated: what is settled is not known any more (G13).
    pub fn commits_due(&mut self) -> Vec<CommitEntry> {
        if self.fault().is_some() {
            return Vec::new();
        }
        let now = Moment {
            partitions: &self.ctx.records.partitions,
            ms: self.ctx.now_ms,
        };
        self.committer.due(now)
    }

    /// Handles the result of the commit in flight.
    pub fn committed(&mut self, results: &[CommitResult], error: Option<&CommitError>) {
        let now = (self.ctx.now_ms, &mut self.ctx.random);
        self.committer
            .answered(&mut self.ctx.records.partitions, now, results, error);
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
        self.committer.has_lost_membership(self.ctx.now_ms)
    }

    /// Bytes of held records.
    pub fn charged(&self) -> u64 {
        self.ctx.records.charged()
    }

    /// Bytes of emitted records that are kept because they were refused, or wait behind others; they count against the budget.
    pub fn kept_bytes(&self) -> u64 {
        self.ctx.outbox.kept_bytes()
    }

    /// Number of held records.
    pub fn held_records(&self) -> usize {
        self.ctx.records.slab.live()
    }

    /// Number of calls and dead letters of which something is with the producer, or kept to be sent again.
    pub fn shipments(&self) -> usize {
        self.ctx.outbox.len()
    }

    /// Whether some call still has a record, settled or not.
    pub fn has_lent_records(&self) -> bool {
        self.ctx.records.slab.lent().next().is_some()
    }

    /// When [`Flow::tick`] has something to do next, on its clock.
    pub fn next_due(&self) -> Option<u64> {
        let last_commit = self.committer.last_commit_due(&self.ctx.records.partitions);
        self.ctx
            .agenda
            .next_due()
            .into_iter()
            .chain(last_commit)
            .min()
    }

    /// Whether a dead-letter topic was found missing or not writable since the last call.
    pub fn take_missed_target(&mut self) -> bool {
        self.ctx.take_missed_target()
    }

    /// Logs the counts of dead-lettered records that no line stands for yet: `all` of them, when the pump ends, or those
    /// older than the interval.
    pub fn log_suppressed(&mut self, all: bool) {
        for queue in self.queues.iter_mut().flatten() {
            queue.log_suppressed(self.ctx.now_ms, all);
        }
    }

    fn drop_retired(&mut self) {
        let now_ms = self.ctx.now_ms;
        for place in &mut self.queues {
            if let Some(mut queue) = place.take_if(|queue| queue.is_over()) {
                queue.log_ended_refusals(now_ms);
                queue.log_suppressed(now_ms, true);
            }
        }
    }
}
