//! What a partition holds: records in flight and records that wait for room, their share in the byte budget, how fast they
//! are freed, and whether the partition is paused.

use crate::partition::overflow::Overflow;
use crate::record::Record;
use crate::source::Delivery;

/// Window over which a partition's settle rate is measured.
pub(crate) const RATE_WINDOW_MS: u64 = 500;
/// A partition that needs longer than this to settle its records is slow.
const SLOW_DRAIN_MS: u64 = 2_000;
/// How long a partition is full before its fetching is paused: a pause discards prefetched records.
const PAUSE_AFTER_MS: u64 = 500;

/// Why the fetching of a partition is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedFor {
    /// The partition is stopped, or has reached `max_uncommitted`.
    Bound,
    /// The partition holds memory that others need.
    Memory,
}

/// Records and bytes held by a partition.
pub struct Holdings<R> {
    /// Records that wait for room.
    overflow: Overflow<R>,
    /// Number of its live slab entries, and how many of them some handler has to settle.
    entries: u32,
    unsettled: u32,
    /// Shares of its records that wait for their next attempt, over all handlers.
    parked: u64,
    /// Bytes of its in-flight records, as charged.
    entry_bytes: u64,
    /// Bytes freed since it was assigned, now and at the start of the window.
    freed_bytes: u64,
    freed_before: u64,
    /// Bytes freed in the last complete window; `None` before the first.
    freed_in_window: Option<u64>,
    /// Fetching is paused.
    paused: bool,
    /// Bytes that it held when it was paused for memory; `None` while it is not.
    paused_at: Option<u64>,
    /// Paused because of its own bound.
    bound: bool,
}

impl<R> Default for Holdings<R> {
    fn default() -> Self {
        Self {
            overflow: Overflow::default(),
            entries: 0,
            unsettled: 0,
            parked: 0,
            entry_bytes: 0,
            freed_bytes: 0,
            freed_before: 0,
            freed_in_window: None,
            paused: false,
            paused_at: None,
            bound: false,
        }
    }
}

impl<R> Holdings<R> {
    /// The records that wait for room.
    pub fn overflow(&self) -> &Overflow<R> {
        &self.overflow
    }

    /// Bytes of its records, as charged: in flight and waiting.
    pub fn bytes(&self) -> u64 {
        self.entry_bytes + self.overflow.bytes()
    }

    /// Shares of its records that wait for their next attempt, over all handlers.
    pub fn parked(&self) -> u64 {
        self.parked
    }

    /// Whether no entry is left.
    pub(super) fn has_no_entries(&self) -> bool {
        self.entries == 0
    }

    /// Whether some handler has to settle a record.
    pub(super) fn has_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// Queues a record until there is room for it.
    pub(crate) fn push_overflow(&mut self, delivery: Delivery<R>, charge: u64, now_ms: u64) {
        self.overflow.push(delivery, charge, now_ms);
    }

    /// Returns a record that has waited since `since_ms` to the front of the queue.
    pub(crate) fn put_back(&mut self, delivery: Delivery<R>, charge: u64, since_ms: u64) {
        self.overflow.put_back(delivery, charge, since_ms);
    }

    /// Takes the oldest queued record and its charge.
    pub(crate) fn pop_overflow(&mut self) -> Option<(Delivery<R>, u64)> {
        self.overflow.pop()
    }

    /// Frees the memory of the empty queue.
    pub(super) fn forget_overflow(&mut self) {
        self.overflow.forget();
    }

    /// A record is in flight.
    #[inline]
    pub(crate) fn insert(&mut self, charge: u64) {
        self.entries += 1;
        self.unsettled += 1;
        self.entry_bytes += charge;
    }

    /// No handler has to settle a record any more.
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.unsettled -= 1;
    }

    /// A record no longer counts, although a call may still read it.
    #[inline]
    pub(crate) fn uncharge(&mut self, charge: u64) {
        self.entry_bytes -= charge;
    }

    /// A record that no longer counts is freed.
    #[inline]
    pub(crate) fn free(&mut self, charge: u64) {
        self.entries -= 1;
        self.freed_bytes += charge;
    }

    /// So many records are settled and freed.
    #[inline]
    pub(super) fn settle_run(&mut self, count: u32, bytes: u64) {
        self.unsettled -= count;
        self.entries -= count;
        self.entry_bytes -= bytes;
        self.freed_bytes += bytes;
    }

    /// Changes the number of parked shares.
    #[inline]
    pub(crate) fn count_parked(&mut self, by: i64) {
        self.parked = self.parked.saturating_add_signed(by);
    }

    /// Ends the measuring window, the first since the assignment or a later one.
    pub(super) fn end_window(&mut self, first: bool) {
        let freed = self.freed_bytes - self.freed_before;
        self.freed_before = self.freed_bytes;
        self.freed_in_window = (!first).then_some(freed);
    }

    /// Whether all of it needs longer than `SLOW_DRAIN_MS` to be freed at the present rate.
    pub(crate) fn is_slow(&self) -> bool {
        let held = self.bytes();
        let windows = SLOW_DRAIN_MS / RATE_WINDOW_MS;
        self.freed_in_window
            .is_some_and(|freed| held > freed.saturating_mul(windows))
    }

    /// Whether fetching is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether fetching is paused, or about to be, because others need the memory.
    pub(crate) fn is_paused_for_memory(&self) -> bool {
        self.paused_at.is_some()
    }

    /// Why fetching is paused; `None` if it is not.
    pub fn paused_for(&self) -> Option<PausedFor> {
        match self.paused_at {
            _ if !self.paused => None,
            Some(_) => Some(PausedFor::Memory),
            None => Some(PausedFor::Bound),
        }
    }

    /// Others need the memory: fetching is paused until half of what is held is freed.
    pub(crate) fn pause_for_memory(&mut self) {
        self.paused_at = Some(self.bytes());
    }

    /// Decides whether fetching is paused now, with hysteresis; `Some` if that changes. `has_room`: half of the bound on
    /// uncommitted records is free.
    pub(super) fn update_pause(
        &mut self,
        stopped: bool,
        has_room: bool,
        now_ms: u64,
    ) -> Option<bool> {
        let full_since_ms = self.overflow.full_since_ms();
        let full = stopped
            || full_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= PAUSE_AFTER_MS);
        let has_room = has_room && self.overflow.is_empty();
        self.bound = full || (self.bound && !has_room);
        let held = self.bytes();
        self.paused_at = self.paused_at.filter(|&paused_at| held > paused_at / 2);
        let pause = self.bound || self.paused_at.is_some();
        let changed = pause != self.paused;
        self.paused = pause;
        changed.then_some(pause)
    }
}

impl<R: Record> Holdings<R> {
    /// Copies the records that wait for room out of the client's memory.
    pub(crate) fn detach_overflow(&mut self) {
        self.overflow.detach();
    }
}
