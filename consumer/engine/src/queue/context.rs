//! What the queues of all handlers use, and all that a queue can reach besides itself: the records, the agenda, the producer
//! and the time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::dispatch::{Batch, HandlerIx, Inbox, RecordId};
use crate::emit::Emitter;
use crate::emit::outbox::Outbox;
use crate::random::Random;
use crate::record::Record;
use crate::records::Records;

/// What a handler's queue can reach besides itself.
pub(crate) struct Context<R: Record> {
    /// The flow's clock.
    pub(crate) now_ms: u64,
    pub(crate) records: Records<R>,
    pub(crate) agenda: Agenda,
    /// What is with the producer.
    pub(crate) outbox: Outbox,
    pub(crate) emitter: Arc<dyn Emitter>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) random: Random,
    /// The consumer group, for dead letters.
    pub(crate) group: Arc<str>,
    /// A dead-letter topic was missing or not writable.
    missed_target: bool,
    /// Records that a call had handled and that the next owner handles again.
    unfinished: u64,
}

impl<R: Record> Context<R> {
    /// At time 0, without records.
    pub(crate) fn new(
        emitter: Arc<dyn Emitter>,
        inbox: Arc<Inbox>,
        group: Arc<str>,
        seed: u64,
    ) -> Self {
        Self {
            now_ms: 0,
            records: Records::default(),
            agenda: Agenda::default(),
            outbox: Outbox::default(),
            emitter,
            inbox,
            random: Random::new(seed),
            group,
            missed_target: false,
            unfinished: 0,
        }
    }

    /// A call that timed out had handled a record, and its outcome does not count: if its partition is being revoked, the next
    /// owner handles it again.
    pub(crate) fn count_handled_again(&mut self, key: RecordId) {
        let entry = self.records.slab.get(key);
        let slot = entry
            .filter(|entry| entry.unsettled > 0)
            .map(|entry| entry.slot);
        if slot.is_some_and(|slot| self.records.partitions[slot].is_draining()) {
            self.unfinished += 1;
        }
    }

    /// Takes the number of records that calls had handled and that the next owners handle again.
    pub(crate) fn take_unfinished(&mut self) -> u64 {
        std::mem::take(&mut self.unfinished)
    }

    /// A dead-letter topic was missing or not writable.
    pub(crate) fn miss_target(&mut self) {
        self.missed_target = true;
    }

    /// Whether a dead-letter topic was found missing or not writable since the last call.
    pub(crate) fn take_missed_target(&mut self) -> bool {
        std::mem::take(&mut self.missed_target)
    }

    /// A batch that was abandoned earlier: its records are returned, its outcomes are discarded.
    pub(crate) fn return_late(&mut self, mut batch: Box<Batch>) -> Box<Batch> {
        if !batch.output.emits.is_empty() {
            // Their answers may still come; the records wait for none.
            self.outbox.ship_late(&mut batch);
        }
        for (record, &key) in batch.records.drain(..).zip(&batch.keys) {
            self.records.return_record(key, record);
            self.records.free_if_done(key);
        }
        batch
    }
}

/// Which handlers have something to do, and when.
#[derive(Default)]
pub(crate) struct Agenda {
    /// Handlers with something to submit.
    dirty: Vec<HandlerIx>,
    /// Handlers whose producer refusals may have ended.
    refusals_over: Vec<HandlerIx>,
    /// Handlers that back off, by the time at which they resume.
    backing_off: BTreeSet<(u64, HandlerIx)>,
    /// Deferred shares by the time at which they are due, those of equal times in the order in which they were added; some
    /// are over or due at another time.
    due: BinaryHeap<Reverse<(u64, u64, HandlerIx, RecordId)>>,
    added: u64,
    /// The serial of the last batch.
    serial: u32,
    /// Number of calls that end after their current record and that draining partitions wait for.
    stopped_calls: usize,
}

impl Agenda {
    /// Draining partitions wait for so many more calls, which end after their current record.
    pub(crate) fn wait_for_calls(&mut self, calls: usize) {
        self.stopped_calls += calls;
    }

    /// So many of these calls have ended, or are not waited for any more.
    pub(crate) fn end_wait_for_calls(&mut self, calls: usize) {
        self.stopped_calls -= calls;
    }

    /// Whether draining partitions wait for calls.
    pub(crate) fn waits_for_calls(&self) -> bool {
        self.stopped_calls > 0
    }

    /// A handler may have something to submit; it says so once until it is taken.
    pub(crate) fn push_dirty(&mut self, ix: HandlerIx) {
        self.dirty.push(ix);
    }

    /// The handlers with something to submit.
    pub(crate) fn take_dirty(&mut self) -> Vec<HandlerIx> {
        std::mem::take(&mut self.dirty)
    }

    /// A handler's producer refusals may have ended.
    pub(crate) fn push_refusals_over(&mut self, ix: HandlerIx) {
        self.refusals_over.push(ix);
    }

    /// The handlers whose producer refusals may have ended.
    pub(crate) fn take_refusals_over(&mut self) -> Vec<HandlerIx> {
        std::mem::take(&mut self.refusals_over)
    }

    /// A handler backs off until `until_ms`.
    pub(crate) fn back_off(&mut self, ix: HandlerIx, until_ms: u64) {
        self.backing_off.insert((until_ms, ix));
    }

    /// A handler whose backoff has ended, and the time until which it lasted.
    pub(crate) fn take_backoff(&mut self, now_ms: u64) -> Option<(u64, HandlerIx)> {
        let (until_ms, _) = *self.backing_off.first()?;
        if until_ms > now_ms {
            return None;
        }
        self.backing_off.pop_first()
    }

    /// A deferred share is due at `due_ms`.
    pub(crate) fn add_due(&mut self, ix: HandlerIx, key: RecordId, due_ms: u64) {
        self.added += 1;
        self.due.push(Reverse((due_ms, self.added, ix, key)));
    }

    /// The next share whose time has come, and that time. It may be over or due at another time by now.
    pub(crate) fn take_due(&mut self, now_ms: u64) -> Option<(u64, HandlerIx, RecordId)> {
        let &Reverse((due_ms, _, ix, key)) = self.due.peek()?;
        if due_ms > now_ms {
            return None;
        }
        self.due.pop();
        Some((due_ms, ix, key))
    }

    /// The serial of a new batch; those of one pump differ while batches are in flight.
    pub(crate) fn next_serial(&mut self) -> NonZeroU32 {
        self.serial = self.serial.wrapping_add(1);
        NonZeroU32::new(self.serial).unwrap_or_else(|| {
            self.serial = 1;
            NonZeroU32::MIN
        })
    }

    /// When something is due next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let share = self.due.peek().map(|Reverse((due_ms, ..))| *due_ms);
        let backoff = self.backing_off.first().map(|(until_ms, _)| *until_ms);
        share.into_iter().chain(backoff).min()
    }
}
