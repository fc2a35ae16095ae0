//! From a routed record to a worker: bound, lane, open batch, submission.

use std::collections::{HashSet, VecDeque};

use super::batches::Ended;
use super::context::{Agenda, Context};
use super::lane::{lane_of, lane_of_key};
use super::lanes::{Claim, NO_BATCH};
use super::{HandlerQueue, MAX_BATCH_BYTES, OnFailure};
use smallvec::SmallVec;

use crate::dispatch::{Batch, BatchId, RecordId};
use crate::record::Record;
use crate::records::Records;
use crate::records::slab::RecordEntry;

/// Lanes whose places are read at once.
const TOUCHED: usize = 8;
/// Records that leave the backlog at once.
const BACKLOG_CHUNK: usize = 64;

impl HandlerQueue {
    /// Notes a record that is queued with the others of its run. `true`: it is the first of them.
    pub(crate) fn arrive(&mut self, key: RecordId) -> bool {
        self.arrived.push(key);
        self.arrived.len() == 1
    }

    /// Queues the records that have arrived, in order.
    pub(crate) fn enqueue_arrived<R: Record>(&mut self, ctx: &mut Context<R>) {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.enqueue(ctx, &arrived);
        arrived.clear();
        self.arrived = arrived;
    }

    /// Queues records, in order.
    pub(crate) fn enqueue<R: Record>(&mut self, ctx: &mut Context<R>, keys: &[RecordId]) {
        let taken = match self.backlog.is_empty() && !self.changes_order() {
            true => self.add_some(ctx, keys),
            false => 0,
        };
        self.backlog.extend(&keys[taken..]);
        self.mark_dirty(ctx);
    }

    /// Adds records to batches, in order, while there is room. Returns their number.
    fn add_some<R: Record>(&mut self, ctx: &mut Context<R>, keys: &[RecordId]) -> usize {
        match self.open.is_one() {
            true => self.add_run(ctx, keys),
            false => self.add_each(ctx, keys),
        }
    }

    /// Adds records to the batches of the workers that have their keys, while there is room. Returns their number.
    fn add_each<R: Record>(&mut self, ctx: &mut Context<R>, keys: &[RecordId]) -> usize {
        let mut taken = 0;
        while self.has_room()
            && let Some(&key) = keys.get(taken)
        {
            self.add_to_batch(ctx, key);
            taken += 1;
        }
        taken
    }

    /// Adds records to the open batch, while there is room: as [`Self::add_to_batch`] for each, with the batch in hand.
    /// Returns their number.
    fn add_run<R: Record>(&mut self, ctx: &mut Context<R>, keys: &[RecordId]) -> usize {
        let mut taken = 0;
        let mut id = self.open_batch(&mut ctx.agenda, 0);
        let Some(mut batch) = self.batches.take(id) else {
            return taken;
        };
        for (place, &key) in keys.iter().enumerate() {
            if !self.has_room() {
                break;
            }
            if place % TOUCHED == 0 {
                self.touch_lanes(&ctx.records, &keys[place..keys.len().min(place + TOUCHED)]);
            }
            taken += 1;
            let Some(entry) = ctx.records.slab.get_mut(key) else {
                continue;
            };
            if is_full(&batch, self.batch_limit) {
                self.batches.put_back(id, batch);
                id = self.open_batch(&mut ctx.agenda, 0);
                match self.batches.take(id) {
                    Some(next) => batch = next,
                    // The record stays where it was.
                    None => return taken - 1,
                }
            }
            let lane = lane_of(self.order, entry);
            if lane != 0 && !self.claim(lane, key, id) {
                continue;
            }
            if let Some(charge) = push_into(&mut batch, key, entry, lane, 1) {
                self.in_flight_records += 1;
                self.in_flight_bytes += charge;
            }
        }
        self.batches.put_back(id, batch);
        taken
    }

    /// Reads the places of lanes that are claimed next: each is likely a miss in the cache, and these overlap.
    fn touch_lanes<R: Record>(&self, records: &Records<R>, keys: &[RecordId]) {
        let lanes = keys.iter().filter_map(|key| records.slab.get(*key));
        let lanes = lanes.map(|entry| self.lanes.touch(lane_of(self.order, entry)));
        std::hint::black_box(lanes.fold(0, |all, one| all ^ one));
    }

    /// Claims a lane for a record that would join `id`; `false`: it waits in the lane.
    #[inline]
    fn claim(&mut self, lane: u64, key: RecordId, id: BatchId) -> bool {
        let batches = &self.batches;
        let is_live = |other| batches.is_live(other);
        let claim = self.lanes.claim(lane, key, id, true, is_live);
        let Claim::Waits { behind, first } = claim else {
            return true;
        };
        if first
            && behind != NO_BATCH
            && let Some(entry) = self.batches.get(behind)
        {
            entry.contended.push(lane);
        }
        false
    }

    /// Claims the record's lane: adds it to the open batch if the lane is free, else queues it in the lane.
    fn add_to_batch<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId) {
        let Some(entry) = ctx.records.slab.get_mut(key) else {
            return;
        };
        let lane = lane_of(self.order, entry);
        let place = self.open.place_of(self.order, entry);
        let id = self.open_batch(&mut ctx.agenda, place);
        if lane == 0 || self.claim(lane, key, id) {
            self.push_record(key, entry, id, lane, 1);
        }
    }

    /// Adds a record that has waited (retry, resend) to a batch again; it already holds its lane.
    pub(super) fn requeue<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        lane: u64,
        attempt: u32,
    ) {
        let Some(entry) = ctx.records.slab.get_mut(key) else {
            return;
        };
        let place = self.open.place_of(self.order, entry);
        let alone = self.takes_batches(place);
        if alone {
            // A record that failed in a batch is retried alone, so that one bad record does not fail its neighbours
            // again.
            self.close_open(true);
        }
        let id = self.open_batch(&mut ctx.agenda, place);
        if lane != 0 {
            self.lanes.unhold(lane);
            self.lanes.give(lane, id);
        }
        self.push_record(key, entry, id, lane, attempt);
        if alone {
            self.close_open(true);
        }
        self.mark_dirty(ctx);
    }

    fn push_record<R: Record>(
        &mut self,
        key: RecordId,
        entry: &mut RecordEntry<R>,
        id: BatchId,
        lane: u64,
        attempt: u32,
    ) {
        if let Some(batch) = self.batches.batch(id)
            && let Some(charge) = push_into(batch, key, entry, lane, attempt)
        {
            self.in_flight_records += 1;
            self.in_flight_bytes += charge;
        }
    }

    /// Submits the ready batches.
    pub(crate) fn dispatch<R: Record>(&mut self, ctx: &mut Context<R>) {
        self.dirty = false;
        for lane in std::mem::take(&mut self.to_advance) {
            self.advance(ctx, lane);
        }
        if std::mem::take(&mut self.small_batches) && !self.changes_order() {
            self.requeue_unsubmitted(ctx);
        }
        loop {
            self.fill_from_backlog(ctx);
            if self.settings.on_failure == OnFailure::DeadLetter
                && !self.settings.targets.is_empty()
                && self.has_failed()
            {
                if !self.dead_letter_queued(ctx) {
                    return;
                }
                continue;
            }
            if self.open.all_blocked() || self.backoff_until_ms.is_some() {
                return;
            }
            self.close_open(false);
            let mut withheld = self.withhold(ctx);
            let (submitted, freed) = self.submit_ready(ctx);
            self.ready.append(&mut withheld);
            let queued =
                !self.backlog.is_empty() || !self.runnable.is_empty() || !self.due.is_empty();
            let done = freed.is_empty() && (!submitted || !queued);
            for lane in freed {
                self.release_lane(ctx, lane);
            }
            if done {
                return;
            }
        }
    }

    /// Whether one call is to find out if calls run something again.
    fn tries_one(&self) -> bool {
        let is_live = |trial| self.batches.is_live(trial);
        self.fruitless_calls > 0 && self.trial.is_some_and(is_live)
    }

    /// Submits ready batches, those of a target until its pool refuses one. Returns whether it accepted any, and the lanes that are free.
    fn submit_ready<R: Record>(&mut self, ctx: &mut Context<R>) -> (bool, Vec<u64>) {
        let mut submitted = false;
        let mut refused = VecDeque::new();
        let mut freed = Vec::new();
        let mut full: SmallVec<[usize; 4]> = SmallVec::new();
        while let Some(id) = self.ready.pop_front() {
            let Some(place) = self.batches.place(id) else {
                continue;
            };
            let (number, _) = self.open.target_of(place);
            let target = self.settings.targets.get(number);
            let Some(target) = target.filter(|_| !self.open.is_blocked(number)) else {
                refused.push_back(id);
                continue;
            };
            if self.tries_one() {
                refused.push_back(id);
                continue;
            }
            let Some(mut batch) = self.batches.submit(id, target, ctx.now_ms) else {
                continue;
            };
            if batch.records.is_empty() {
                // Its records were taken out when their partition was revoked.
                self.batches.recycle(batch);
                freed.append(&mut self.end_batch(ctx, id).contended);
                continue;
            }
            batch.shipment = ctx.outbox.reserve();
            match target.pool.submit(batch, &ctx.inbox) {
                Ok(()) => {
                    submitted = true;
                    self.trial = (self.fruitless_calls > 0).then_some(id);
                }
                Err(batch) => {
                    self.batches.put_back(id, batch);
                    refused.push_back(id);
                    // A batch for another worker may be accepted.
                    match target.keeps_key_state {
                        true => full.push(number),
                        false => self.open.block(number),
                    }
                    if self.open.all_blocked() {
                        break;
                    }
                }
            }
        }
        full.into_iter().for_each(|number| self.open.block(number));
        refused.append(&mut self.ready);
        self.ready = refused;
        (submitted, freed)
    }

    /// Ends a batch, and counts it if draining partitions wait for it.
    pub(super) fn end_batch<R: Record>(&mut self, ctx: &mut Context<R>, id: BatchId) -> Ended {
        let ended = self.batches.end(id);
        ctx.agenda.end_wait_for_calls(usize::from(ended.stopped));
        ended
    }

    /// Sets aside the ready batches that wait for stopped calls.
    fn withhold<R: Record>(&mut self, ctx: &Context<R>) -> VecDeque<BatchId> {
        let mut withheld = VecDeque::new();
        if !ctx.agenda.waits_for_calls() {
            return withheld;
        }
        let batches = &mut self.batches;
        self.ready.retain(|&id| {
            let waits = batches
                .batch(id)
                .is_some_and(|batch| waits_for_stopped_calls(&ctx.records, &batch.keys));
            if waits {
                withheld.push_back(id);
            }
            !waits
        });
        withheld
    }

    fn fill_from_backlog<R: Record>(&mut self, ctx: &mut Context<R>) {
        self.follow_order(ctx);
        if self.changes_order() {
            return;
        }
        self.run_queued_due(ctx);
        while self.has_room()
            && let Some(lane) = self.runnable.pop_front()
        {
            self.release_lane(ctx, lane);
        }
        let mut chunk = [RecordId::NONE; BACKLOG_CHUNK];
        while !self.backlog.is_empty() && self.has_room() {
            // Copied out, because the queue changes while they are added.
            let count = self.backlog.len().min(BACKLOG_CHUNK);
            let first = self.backlog.iter().copied();
            chunk.iter_mut().zip(first).for_each(|(to, key)| *to = key);
            let taken = self.add_some(ctx, &chunk[..count]);
            self.backlog.drain(..taken);
            if taken == 0 {
                break;
            }
        }
    }

    /// Fills unsubmitted batches again, after targets, the number of workers or the order have changed: a batch is for one of
    /// them, and a key would otherwise be handled by two.
    pub(super) fn requeue_unsubmitted<R: Record>(&mut self, ctx: &mut Context<R>) {
        // In the order in which they arrived: those of a lane are in one batch, or wait behind it. By offset, a partition with low ones
        // would always come first.
        let taken = self.take_queued(ctx, |_| true);
        let again = |queue: &Self, key| queue.deferred.get(key).map(|share| share.attempt);
        // They hold their lanes before others claim these.
        for &(key, lane) in &taken {
            if let Some(attempt) = again(self, key) {
                self.park_now(ctx, key, lane, attempt);
            }
        }
        for &(key, _) in &taken {
            if again(self, key).is_none() {
                self.enqueue(ctx, &[key]);
            }
        }
    }

    /// Adds the records waiting in a lane to a batch, if no batch has and no record holds the lane.
    pub(crate) fn release_lane<R: Record>(&mut self, ctx: &mut Context<R>, lane: u64) {
        if lane == 0 {
            return;
        }
        if self.changes_order() {
            self.runnable.push_back(lane);
            self.mark_dirty(ctx);
            return;
        }
        let mut placed = false;
        loop {
            let batches = &self.batches;
            let first = match placed {
                true => self.lanes.first(lane),
                false => self.lanes.next(lane, |id| batches.is_live(id)),
            };
            let Some(place) = first
                .and_then(|key| ctx.records.slab.get(key))
                .map(|entry| self.open.place_of(self.order, entry))
            else {
                break;
            };
            if !placed && !self.has_room() {
                self.runnable.push_back(lane);
                break;
            }
            let open = self.open_batch(&mut ctx.agenda, place);
            let several = self.has_room();
            let batches = &self.batches;
            let is_live = |id| batches.is_live(id);
            let Some(key) = self.lanes.advance(lane, open, several, is_live) else {
                break;
            };
            placed = true;
            if let Some(entry) = ctx.records.slab.get_mut(key) {
                self.push_record(key, entry, open, lane, 1);
            }
        }
        if placed {
            self.mark_contended(lane);
        }
        self.mark_dirty(ctx);
    }

    /// The batch that has a lane in which records wait releases it when it ends.
    pub(super) fn mark_contended(&mut self, lane: u64) {
        if let Some(id) = self.lanes.waited_for(lane)
            && let Some(entry) = self.batches.get(id)
        {
            entry.contended.push(lane);
        }
    }

    /// The batch that a record of this place would join; a full one is closed first.
    fn open_batch(&mut self, agenda: &mut Agenda, place: usize) -> BatchId {
        if let Some(id) = *self.open.at(place) {
            let limit = self.batch_limit;
            let batch = self.batches.batch(id);
            match batch.map(|batch| is_full(batch, limit)) {
                Some(false) => return id,
                Some(true) => self.ready.push_back(id),
                None => {}
            }
        }
        let id = self.batches.open(self.ix, place, agenda.next_serial());
        if let (_, Some(worker)) = self.open.target_of(place)
            && let Some(batch) = self.batches.batch(id)
        {
            batch.worker = Some(worker);
        }
        *self.open.at(place) = Some(id);
        id
    }

    /// Moves the open batches that have records to the ready queue, those of blocked targets only with `blocked`: they fill up.
    fn close_open(&mut self, blocked: bool) {
        for place in 0..self.open.places() {
            let (target, _) = self.open.target_of(place);
            if (blocked || !self.open.is_blocked(target))
                && let Some(id) = *self.open.at(place)
                && self
                    .batches
                    .batch(id)
                    .is_none_or(|batch| !batch.records.is_empty())
            {
                self.ready.push_back(id);
                *self.open.at(place) = None;
            }
        }
    }

    /// Removes the records that `wanted` selects from where no worker has them: backlog, lanes, open and ready batches.
    pub(super) fn take_queued<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        wanted: impl Fn(RecordId) -> bool,
    ) -> Vec<(RecordId, u64)> {
        let mut taken = Vec::new();
        let mut emptied = Vec::new();
        for id in self.ready.iter().copied().chain(self.open.iter()) {
            let Some(batch) = self.batches.batch(id) else {
                continue;
            };
            let before = taken.len();
            let mut kept = 0;
            for i in 0..batch.keys.len() {
                let key = batch.keys[i];
                if wanted(key) {
                    taken.push((key, batch.records[i].lane));
                    continue;
                }
                batch.keys.swap(kept, i);
                batch.records.swap(kept, i);
                kept += 1;
            }
            let out = batch.keys.drain(kept..).zip(batch.records.drain(kept..));
            for (key, record) in out {
                if let Some(entry) = ctx.records.slab.get_mut(key) {
                    entry.return_record(record);
                    batch.bytes -= u64::from(entry.charge);
                    self.in_flight_bytes -= u64::from(entry.charge);
                }
                self.in_flight_records -= 1;
            }
            if kept == 0 && taken.len() > before {
                emptied.push(id);
            }
        }
        let (slab, order) = (&ctx.records.slab, self.order);
        let from_lanes = self.lanes.retain(|key| !wanted(key));
        taken.extend(
            from_lanes
                .into_iter()
                .map(|key| (key, lane_of_key(slab, order, key))),
        );
        self.backlog.retain(|&key| {
            let take = wanted(key);
            if take {
                taken.push((key, lane_of_key(slab, order, key)));
            }
            !take
        });
        self.end_emptied(ctx, &emptied);
        self.mark_dirty(ctx);
        taken
    }

    /// Ends batches that have lost all their records: they are never submitted, so their lanes would stay occupied.
    fn end_emptied<R: Record>(&mut self, ctx: &mut Context<R>, emptied: &[BatchId]) {
        let all: HashSet<BatchId> = emptied.iter().copied().collect();
        for place in self.open.each_mut() {
            *place = place.filter(|id| !all.contains(id));
        }
        self.ready.retain(|id| !all.contains(id));
        let mut freed = Vec::new();
        for &id in emptied {
            freed.append(&mut self.end_batch(ctx, id).contended);
        }
        for lane in freed {
            self.release_lane(ctx, lane);
        }
    }
}

/// Whether a batch must not be dispatched yet: while stopped calls are running, it is unknown which records of a draining
/// partition they have started, which must then be finished in all handlers.
fn waits_for_stopped_calls<R: Record>(records: &Records<R>, keys: &[RecordId]) -> bool {
    keys.iter().any(|key| {
        records
            .slab
            .get(*key)
            .is_some_and(|entry| records.partitions[entry.slot].is_draining())
    })
}

/// Whether a batch takes no further record.
#[inline]
fn is_full(batch: &Batch, limit: u32) -> bool {
    batch.records.len() as u32 >= limit || batch.bytes >= MAX_BATCH_BYTES
}

/// Lends a record to a batch. Returns its charge; `None` if its bytes are gone.
// Inlined, so that the record is built where it is kept and not copied there.
#[inline(always)]
fn push_into<R: Record>(
    batch: &mut Batch,
    key: RecordId,
    entry: &mut RecordEntry<R>,
    lane: u64,
    attempt: u32,
) -> Option<u64> {
    let charge = u64::from(entry.charge);
    batch.records.push(entry.lend(lane, attempt)?);
    batch.keys.push(key);
    batch.bytes += charge;
    Some(charge)
}
