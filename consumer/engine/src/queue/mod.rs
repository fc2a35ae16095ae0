//! One handler's queue: every share of a record that the handler has not settled, from the backlog to its settlement.
//!
//! ```text
//!  enqueue ─► backlog ─► lane free? ─► open batch ─► ready ─► worker pool      (`submit`)
//!                          │ taken: waits in its lane ◄── the batch that has the lane ends
//!  finished ─► ack, drop ───────────────────────────────► Records::settle_share (`outcomes`)
//!      │  ├─► retry ─► parked ─► due ─► a batch of the next attempt             (`outcomes`)
//!      │  ├─► emits, dead letter ─► produced ─► settle · refused ─► resent      (`produce`)
//!      │  └─► not run ─► back to the head of its lane                           (`outcomes`)
//!      └─► a call that runs nothing ─► back-off                                 (`backoff`)
//!  switched off, and not finished by its handler ─► skipped                     (`closing`)
//!  finished in a call that outlasts a drain ─► settled before the call returns  (`published`)
//!  another order ─► calls end ─► deferred shares move to other lanes            (`order`)
//! ```
//!
//! A share is a record × handler. Where it is follows from who has it (backlog, lane, batch, `deferred`); its state is
//! written down only while it is deferred, so a record that succeeds at once costs nothing here, and one that also emits only a place
//! in a chain (`pending`). A queue reaches nothing but
//! itself and its `Context`: no other handler's queue, no route, no commit.

mod backoff;
pub(crate) mod batches;
mod call_size;
mod chains;
mod check;
mod closing;
pub(crate) mod context;
mod counts;
pub(crate) mod deferred;
mod errors;
mod lane;
mod lanes;
mod links;
mod log;
mod order;
mod outcomes;
mod pending;
mod produce;
mod published;
mod refusals;
mod report;
mod settings;
mod submit;
mod targets;
mod trouble;

use lanes::Lanes;
pub use settings::{HandlerSettings, OnFailure, Order};
pub use targets::{BUCKETS, GenerationId, Target};

pub(crate) use report::ReportTime;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::dispatch::{BatchId, HandlerIx, OwnedPartition, RecordId};
use crate::emit::outbox::Outbox;
use crate::record::Record;
use crate::records::Records;
use crate::source::AssignmentId;
use batches::{BatchTable, InFlightBatch};
use call_size::{CallSize, Declared};
use chains::Chains;
use closing::Closing;
use context::Context;
use counts::VersionCounts;
use deferred::{DeferredShares, Share};
use errors::HandlerErrors;
use log::{DeadLetterLog, HungLog};
use refusals::Refusals;
use targets::OpenBatches;

/// The shares of one handler, and what bounds them.
pub(crate) struct HandlerQueue {
    /// Its place in the pump's table.
    ix: HandlerIx,
    /// How it is run.
    settings: HandlerSettings,
    /// Retiring: finishes its in-flight records, then is removed.
    retiring: bool,
    /// Set while it is switched off or removed and still has records.
    closing: Option<Closing>,
    /// The order of the records that have left the backlog; the settings' order applies once the calls under way have ended.
    order: Order,
    /// Its lanes.
    lanes: Lanes,
    /// Its batches: being filled, waiting for a worker, or with one.
    batches: BatchTable,
    /// Batches being filled: one, or one per worker when keys stay with a worker.
    open: OpenBatches,
    /// Full batches that wait for a worker.
    ready: VecDeque<BatchId>,
    /// Records of the run being routed, until they are queued together.
    arrived: Vec<RecordId>,
    /// Records that wait because its bound is reached, in order.
    backlog: VecDeque<RecordId>,
    /// Parked records whose time has come while there was no room; some may be over.
    due: VecDeque<RecordId>,
    /// Free lanes with waiting records for which there was no room.
    runnable: VecDeque<u64>,
    /// Shares that are parked or wait for the producer.
    deferred: DeferredShares,
    /// Records that have run and settle in the order of their lanes.
    chains: Chains,
    /// Lanes whose chains have changed, or whose trouble waits for a call to end: checked when batches are submitted.
    to_advance: Vec<u64>,
    /// What the producer refused of them.
    refusals: Refusals,
    dead_letter_log: DeadLetterLog,
    hung_log: HungLog,
    /// The producer has so much of it that nothing is added.
    backed_up: bool,
    /// Records in flight.
    in_flight_records: u32,
    /// Bytes in flight.
    in_flight_bytes: u64,
    /// What runs new records, or the last that did.
    current: Arc<GenerationId>,
    /// Consecutive calls that ran none of their records.
    fruitless_calls: u32,
    /// The call that finds out whether calls run something again, after those that did not.
    trial: Option<BatchId>,
    /// Backing off: nothing is submitted before this time, on the flow's clock.
    backoff_until_ms: Option<u64>,
    /// It is in the list of handlers with something to submit.
    dirty: bool,
    /// How many records a call gets.
    call_size: CallSize,
    /// Maximum number of records of the next call.
    batch_limit: u32,
    /// Unsubmitted batches have less than half of that.
    small_batches: bool,
    /// Shares and troubles that hold a lane.
    held: u32,
    /// Shares that wait for the producer, or for those before them, and hold no lane: pending ones (see [`pending`]), and deferred
    /// ones.
    passing: u32,
    counts: VersionCounts,
    errors: HandlerErrors,
    /// The partitions last announced to its pool.
    announced: Vec<(AssignmentId, OwnedPartition)>,
}

/// Number of unanswered emits from which on a handler's records wait: a fraction of the producer's queue, which all handlers share
/// (`queue.buffering.max.messages`, 100,000). The calls under way can exceed it.
const MAX_UNANSWERED: u32 = 20_000;
/// Limit from which on batches that are filled already are not filled again when it grows.
const SMALL_BATCH: u32 = 64;
/// Maximum number of bytes per call.
const MAX_BATCH_BYTES: u64 = 4 << 20;

impl HandlerQueue {
    /// A handler without records.
    pub(crate) fn new(ix: HandlerIx, settings: HandlerSettings) -> Self {
        let call_size = CallSize::new(settings.first_call);
        let mut this = Self {
            ix,
            order: settings.order,
            open: OpenBatches::of(&settings.targets),
            settings,
            retiring: false,
            closing: None,
            lanes: Lanes::default(),
            batches: BatchTable::default(),
            ready: VecDeque::new(),
            arrived: Vec::new(),
            backlog: VecDeque::new(),
            due: VecDeque::new(),
            runnable: VecDeque::new(),
            deferred: DeferredShares::default(),
            chains: Chains::default(),
            to_advance: Vec::new(),
            refusals: Refusals::default(),
            dead_letter_log: DeadLetterLog::default(),
            hung_log: HungLog::default(),
            backed_up: false,
            in_flight_records: 0,
            in_flight_bytes: 0,
            current: Arc::default(),
            trial: None,
            fruitless_calls: 0,
            backoff_until_ms: None,
            dirty: false,
            call_size,
            batch_limit: 1,
            small_batches: false,
            held: 0,
            passing: 0,
            counts: VersionCounts::default(),
            errors: HandlerErrors::default(),
            announced: Vec::new(),
        };
        this.follow_targets();
        this
    }

    /// Applies new settings; open batches are closed, so that a batch has one set of settings.
    pub(crate) fn replace<R: Record>(&mut self, ctx: &mut Context<R>, settings: HandlerSettings) {
        let ran = |settings: &HandlerSettings| -> Vec<Arc<GenerationId>> {
            let targets = settings.targets.iter();
            targets.map(|target| target.generation.clone()).collect()
        };
        if ran(&settings) != ran(&self.settings) {
            self.errors.succeeded();
        }
        self.settings = settings;
        self.follow_targets();
        self.retiring = false;
        self.fruitless_calls = 0;
        self.backoff_until_ms = None;
        let open = OpenBatches::of(&self.settings.targets);
        let before = std::mem::replace(&mut self.open, open);
        self.ready.extend(before.iter());
        self.mark_dirty(ctx);
        if self.changes_order() || !self.open.places_like(&before) {
            self.requeue_unsubmitted(ctx);
        }
    }

    /// Its settings.
    pub(crate) fn settings(&self) -> &HandlerSettings {
        &self.settings
    }

    /// The order of its records that have left the backlog.
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// Whether new records reach it.
    pub(crate) fn takes_records(&self) -> bool {
        self.settings.gate_open && !self.settings.targets.is_empty()
    }

    /// Counts records that its closed gate passes.
    pub(crate) fn count_skipped(&mut self, records: u64) {
        self.counts.of(&self.current).skipped += records;
    }

    /// The handler is not declared any more.
    pub(crate) fn retire(&mut self) {
        self.retiring = true;
    }

    /// Whether it can be removed.
    pub(crate) fn is_over(&self) -> bool {
        self.retiring && self.is_idle()
    }

    /// Counts for the generations that new records go to; the present one, of several, is the first.
    fn follow_targets(&mut self) {
        if let Some(first) = self.settings.targets.first() {
            self.current = first.generation.clone();
            self.batch_limit = self.call_size.limit(self.declared(&self.current));
        }
        let others = self.settings.targets.iter().skip(1);
        let others = others.map(|target| &target.generation.version);
        for version in others.chain([&self.current.version]) {
            self.counts.count_for(version);
        }
    }

    /// Follows what the producer has of it: a broker that does not answer would fill the producer's queue, which all handlers share.
    pub(crate) fn follow_producer<R: Record>(&mut self, ctx: &mut Context<R>) {
        let backed_up = ctx.outbox.unanswered(self.ix) >= MAX_UNANSWERED;
        if std::mem::replace(&mut self.backed_up, backed_up) && !backed_up {
            self.mark_dirty(ctx);
        }
    }

    /// Whether its bounds admit another record.
    #[inline]
    fn has_room(&self) -> bool {
        !self.backed_up
            && self.in_flight_records < self.settings.max_in_flight_records
            && self.in_flight_bytes < self.settings.max_in_flight_bytes
    }

    /// Whether it has no record left.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight_records == 0
            && self.backlog.is_empty()
            && self.deferred.is_empty()
            && self.passing == 0
            && self.lanes.waiters() == 0
    }

    /// Whether what runs the records of a place takes batches as a whole.
    fn takes_batches(&self, place: usize) -> bool {
        let (target, _) = self.open.target_of(place);
        let target = self.settings.targets.get(target);
        target.is_some_and(|target| target.generation.takes_batches)
    }

    /// What would run a record now.
    fn generation_for<R: Record>(&self, ctx: &Context<R>, key: RecordId) -> &Arc<GenerationId> {
        let entry = ctx.records.slab.get(key);
        let place = entry.map(|entry| self.open.place_of(self.order, entry));
        let target = place.map(|place| self.open.target_of(place).0);
        let target = target.and_then(|number| self.settings.targets.get(number));
        target.map_or(&self.current, |target| &target.generation)
    }

    /// Whether nothing runs its records.
    fn has_failed(&self) -> bool {
        targets::all_failed(&self.settings.targets)
    }

    /// Learns from a call how many records the next one gets.
    fn learn_cost(&mut self, records: u32, elapsed_us: u64, ran_by: &GenerationId) {
        let declared = self.declared(ran_by);
        let grew = self.call_size.learn(records, elapsed_us, declared);
        // Batches are filled ahead of their submission: those of the first calls would keep their size.
        self.small_batches |= self.ready.len() > 1 && grew && self.batch_limit < SMALL_BATCH;
        self.batch_limit = self.call_size.limit(declared);
    }

    /// What is known about calls of a generation.
    fn declared(&self, generation: &GenerationId) -> Declared {
        let workers = self.settings.targets.iter();
        let workers = workers.map(|target| target.pool.workers()).sum::<u32>();
        let in_flight = self.settings.max_in_flight_records;
        let overlapping = generation.concurrency.saturating_mul(2);
        Declared {
            concurrency: generation.concurrency,
            wish: generation.max_batch.map_or(u32::MAX, NonZeroU32::get),
            timeout_us: generation.call_timeout_ms.saturating_mul(1_000),
            // One more than there are workers, so that a call waits for the worker that ends first.
            share: (in_flight / workers.saturating_add(1))
                .max(overlapping.min(in_flight / workers.max(1))),
        }
    }

    /// Marks that it may have something to submit.
    pub(crate) fn mark_dirty<R: Record>(&mut self, ctx: &mut Context<R>) {
        if !std::mem::replace(&mut self.dirty, true) {
            ctx.agenda.push_dirty(self.ix);
        }
    }

    /// One of its pools may accept batches again.
    pub(crate) fn unblock<R: Record>(&mut self, ctx: &mut Context<R>) {
        if self.open.unblock() {
            self.mark_dirty(ctx);
        }
    }

    /// Puts a share in a deferred state, in which it stays until that is changed or the share is over.
    fn defer<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        let slot = share.slot;
        if let Some(due_ms) = share.state.due_ms() {
            ctx.agenda.add_due(self.ix, key, due_ms);
        }
        let is_parked = share.state.is_parked();
        self.passing += u32::from(share.is_passing());
        let replaced = self.deferred.insert(key, share);
        let was_passing = replaced.before.as_ref().is_some_and(Share::is_passing);
        self.passing -= u32::from(was_passing);
        let was_parked = replaced.before.as_ref().map(|one| one.state.is_parked());
        ctx.records.count_parked(
            slot,
            i64::from(is_parked) - i64::from(was_parked == Some(true)),
        );
        if let Some((next, due_ms)) = replaced.next {
            ctx.agenda.add_due(self.ix, next, due_ms);
        }
    }

    /// Ends the deferral of a share: it is over, or is run for the first time again.
    fn end_deferral<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId) -> Option<Share> {
        let replaced = self.deferred.remove(key);
        let share = replaced.before?;
        self.passing -= u32::from(share.is_passing());
        if share.state.is_parked() {
            ctx.records.count_parked(share.slot, -1);
        }
        if let Some((next, due_ms)) = replaced.next {
            ctx.agenda.add_due(self.ix, next, due_ms);
        }
        Some(share)
    }

    /// Removes the records of partitions that leave them to their next owner. Returns the lanes that are free then, to be
    /// released once the records are gone.
    pub(crate) fn abandon<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        gone: &HashSet<RecordId>,
    ) -> Vec<u64> {
        self.take_queued(ctx, |key| gone.contains(&key));
        self.defer_all_pending(ctx);
        let mine = self.deferred.iter().map(|(key, _)| key);
        let mut mine: Vec<RecordId> = mine.filter(|key| gone.contains(key)).collect();
        mine.sort_unstable();
        let mut freed = Vec::new();
        for key in mine {
            if let Some(share) = self.end_share(ctx, key)
                && share.holds()
            {
                self.unhold(share.lane);
                freed.push(share.lane);
            }
        }
        freed
    }

    /// Records that it has started: with a worker, or waiting for the producer. A parked record has had no effect yet.
    pub(crate) fn started(&self, outbox: &Outbox) -> impl Iterator<Item = RecordId> {
        let deferred = self.deferred.iter();
        let deferred = deferred.filter(|(_, share)| !share.state.is_parked());
        self.submitted()
            .chain(outbox.pending(self.ix).map(|(key, ..)| key))
            .chain(deferred.map(|(key, _)| key))
    }

    /// Whether one of the records that `wanted` selects is with a worker, parked, or with the producer.
    pub(crate) fn has_unfinished(
        &self,
        outbox: &Outbox,
        wanted: impl Fn(&RecordId) -> bool,
    ) -> bool {
        self.submitted().any(|key| wanted(&key))
            || self.deferred.iter().any(|(key, _)| wanted(&key))
            || outbox.pending(self.ix).any(|(key, ..)| wanted(&key))
    }

    /// Ends the calls with records that `wanted` selects, each after its current record.
    pub(crate) fn stop_calls<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        wanted: impl Fn(&Records<R>, &RecordId) -> bool,
    ) {
        let records = &ctx.records;
        let hit = |batch: &InFlightBatch| batch.keys.iter().any(|key| wanted(records, key));
        let stopped = self.batches.stop(hit);
        ctx.agenda.wait_for_calls(stopped);
        if stopped > 0 {
            self.recall_queued();
        }
    }

    /// Cancels the calls with records that `wanted` selects; what they have not finished does not count.
    pub(crate) fn cancel_calls<R: Record>(
        &mut self,
        ctx: &Context<R>,
        wanted: impl Fn(&Records<R>, &RecordId) -> bool,
    ) -> bool {
        let mut any = false;
        for batch in self.batches.submitted() {
            let hit = |key| wanted(&ctx.records, key);
            if !batch.recalled && batch.keys.iter().any(hit) {
                batch.recall();
                any = true;
            }
        }
        any
    }

    /// Stops waiting for stopped calls without records that `wanted` selects.
    pub(crate) fn keep_stopped<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        wanted: impl Fn(&Records<R>, &RecordId) -> bool,
    ) {
        let records = &ctx.records;
        let hit = |batch: &InFlightBatch| batch.keys.iter().any(|key| wanted(records, key));
        ctx.agenda
            .end_wait_for_calls(self.batches.keep_stopped(hit));
    }

    /// Makes its pools return the queued batches that were stopped or cancelled. A pool of an earlier generation returned its
    /// queue when it was replaced.
    pub(crate) fn recall_queued(&self) {
        for target in &self.settings.targets {
            target.pool.recall();
        }
    }

    /// Cancels all its calls: nothing waits for their results any more (G5).
    pub(crate) fn cancel_all(&mut self) {
        for batch in self.batches.submitted() {
            batch.recall();
        }
    }

    /// Announces the partitions whose records it may receive to its pools; adds those of which it still has records. Returns
    /// whether there are any of these.
    pub(crate) fn announce<R: Record>(
        &mut self,
        ctx: &Context<R>,
        mut owned: Vec<(AssignmentId, OwnedPartition)>,
    ) -> bool {
        let lingering = self.add_lingering(ctx, &mut owned);
        let partitions: Vec<OwnedPartition> = owned.iter().map(|(_, at)| at.clone()).collect();
        self.announced = owned;
        for target in &self.settings.targets {
            target.pool.own(&ctx.inbox, &partitions);
        }
        lingering
    }

    /// Adds the announced partitions that its route now excludes but of which it still has records.
    fn add_lingering<R: Record>(
        &self,
        ctx: &Context<R>,
        owned: &mut Vec<(AssignmentId, OwnedPartition)>,
    ) -> bool {
        let left_out = |(slot, _): &&(AssignmentId, OwnedPartition)| {
            let assignment = ctx.records.partitions.get(*slot);
            assignment.is_some_and(|assignment| !assignment.is_fenced())
                && !owned.iter().any(|(new, _)| new == slot)
        };
        let mut lingering: Vec<_> = self.announced.iter().filter(left_out).cloned().collect();
        if lingering.is_empty() {
            return false;
        }
        let held = self.slots(ctx);
        lingering.retain(|(slot, _)| held.contains(slot));
        let some = !lingering.is_empty();
        owned.append(&mut lingering);
        owned.sort_by(|(_, one), (_, other)| one.cmp(other));
        some
    }

    /// The partitions of its records: queued, with a worker, parked, or with the producer.
    fn slots<R: Record>(&self, ctx: &Context<R>) -> BTreeSet<AssignmentId> {
        let mut held = BTreeSet::new();
        let mut hold = |key| held.extend(ctx.records.slab.get(key).map(|entry| entry.slot));
        self.backlog.iter().copied().for_each(&mut hold);
        self.lanes.waiting().for_each(&mut hold);
        for batch in self.batches.iter() {
            let keys = batch.batch.as_ref().map_or(&batch.keys, |b| &b.keys);
            keys.iter().copied().for_each(&mut hold);
        }
        self.deferred.iter().for_each(|(key, _)| hold(key));
        let pending = ctx.outbox.pending(self.ix);
        pending.for_each(|(key, ..)| hold(key));
        held
    }

    /// Copies the records of batches that no worker has out of their fetch buffers, those that have waited.
    pub(crate) fn detach_waiting<R: Record>(&mut self, records: &mut Records<R>) {
        for batch in self.batches.unsubmitted() {
            if !batch.keys.iter().any(|key| records.slab.is_to_detach(*key)) {
                continue;
            }
            let views = std::mem::take(&mut batch.records);
            let keys = batch.keys.iter().copied();
            let views = keys
                .zip(views)
                .map(|(key, view)| records.slab.detach_queued(key, view));
            batch.records = views.collect();
        }
    }

    /// The records that a worker has.
    pub(crate) fn submitted(&self) -> impl Iterator<Item = RecordId> {
        let submitted = self.batches.iter().filter(|batch| batch.is_submitted());
        submitted.flat_map(|batch| batch.keys.iter().copied())
    }
}
