//! Which partitions are read and which are paused (G8): the partitions of a pump share its byte budget.
//!
//! ```text
//!  0                      3/4                    1        of the room that paused partitions leave
//!  ├── records are read ───┼── reserve ────────────┤
//!                          └─► the largest slow partition is paused; the others may fill the reserve
//! ```
//!
//! Partitions that are read fill at most three quarters of the room that the paused ones leave. The records in it then
//! belong to handlers that are slow, held or hung, or to a burst. A partition that needs more than `SLOW_DRAIN_MS` for
//! its records at its present rate is paused, the largest first, and the remaining quarter is for the others: one held
//! handler does not stop the topics that it does not read. A paused partition resumes once half of its records are
//! freed. A poll is sized by the mean size of records, so a
//! burst of unusually large ones can exceed the budget once.

use super::Flow;
use crate::partition::holdings::RATE_WINDOW_MS;
use crate::record::Record;
use crate::source::AssignmentId;

/// Maximum number of queued records of full partitions; beyond it nothing is read until one has room or is paused.
const MAX_OVERFLOW: usize = 8 * 1024;
/// A poll is skipped while less than this fraction of the limit is free.
const MIN_ROOM_DIVISOR: u64 = 16;
/// Records per poll while the mean record size is unknown.
const FIRST_POLL: usize = 32;

/// Totals over the partitions that are read.
#[derive(Default)]
struct Reading {
    partitions: u64,
    bytes: u64,
    /// At least one of them accepts another record.
    takes: bool,
    /// At least one of their records is in flight, and frees its memory when it settles.
    waits: bool,
    /// Queued records of all partitions.
    total_overflow: usize,
    /// Queued records of the partitions whose fetching is not paused.
    overflow_records: usize,
    overflow_bytes: u64,
}

impl<R: Record> Flow<R> {
    /// Number of records to read from the source in this poll, at most `most`, estimated from the mean size of held
    /// records (G8).
    pub fn read_quota(&self, most: usize) -> usize {
        let reading = self.reading();
        let has_overflow_room = reading.overflow_records < MAX_OVERFLOW
            && reading.overflow_bytes < self.settings.budget_bytes / 4;
        if !has_overflow_room || !(reading.takes || self.ctx.records.partitions.is_empty()) {
            return 0;
        }
        let limit = self.read_limit(&reading);
        let room = limit.saturating_sub(reading.bytes);
        // A poll for one or two records costs as much as one for many: wait until more have settled.
        if room <= limit / MIN_ROOM_DIVISOR {
            // With nothing in flight there is nothing to wait for: admit one record at a time next to what hung calls
            // or paused partitions hold.
            return usize::from(!reading.waits);
        }
        match self.mean_bytes(&reading).unwrap_or(self.last_mean_bytes) {
            0 => most.min(FIRST_POLL),
            mean => most.min((room / mean) as usize).max(1),
        }
    }

    /// Mean size of held records, if there are any.
    fn mean_bytes(&self, reading: &Reading) -> Option<u64> {
        let records = self.ctx.records.slab.live() + reading.total_overflow;
        self.ctx.records.charged().checked_div(records as u64)
    }

    /// Whether reading is blocked by lack of memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let reading = self.reading();
        self.is_filled(&reading)
    }

    /// Whether the partitions that are read have used so much of their room that none is read.
    fn is_filled(&self, reading: &Reading) -> bool {
        let limit = self.read_limit(reading);
        reading.bytes >= limit - limit / MIN_ROOM_DIVISOR
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading::default();
        for (_, assignment) in self.ctx.records.partitions.each() {
            let overflow = assignment.overflow();
            reading.total_overflow += overflow.len();
            if !assignment.holdings().is_paused() {
                reading.overflow_records += overflow.len();
                reading.overflow_bytes += overflow.bytes();
            }
            if assignment.is_read() {
                reading.partitions += 1;
                reading.bytes += assignment.holdings().bytes();
                reading.takes |= overflow.is_empty();
                reading.waits |= assignment.waits();
            }
        }
        reading
    }

    /// Bytes that the partitions that are read may hold together: a quarter of what the paused ones leave stays free as
    /// the reserve that pausing one of them opens.
    fn read_limit(&self, reading: &Reading) -> u64 {
        let all = self.ctx.records.charged() + self.ctx.outbox.kept_bytes() + self.excess_bytes();
        let others = all.saturating_sub(reading.bytes);
        let room = self.settings.budget_bytes.saturating_sub(others);
        room - room / 4
    }

    /// Partitions whose fetching is to be paused or resumed, with hysteresis: a pause discards prefetched records.
    pub fn pauses_due(&mut self) -> Vec<(AssignmentId, bool)> {
        self.measure();
        self.pause_for_memory();
        let mut due = Vec::new();
        let max_uncommitted = self.settings.max_uncommitted;
        let now_ms = self.ctx.now_ms;
        self.ctx
            .records
            .partitions
            .for_each_mut(|slot, assignment| {
                let changed = assignment.update_pause(max_uncommitted, now_ms);
                due.extend(changed.map(|pause| (slot, pause)));
            });
        due
    }

    /// Measures, once per window, how fast partitions settle their records.
    fn measure(&mut self) {
        if self.ctx.now_ms < self.measured_ms + RATE_WINDOW_MS {
            return;
        }
        let began_ms = self.measured_ms;
        self.measured_ms = self.ctx.now_ms;
        let partitions = &mut self.ctx.records.partitions;
        partitions.for_each_mut(|_, assignment| assignment.end_window(began_ms));
    }

    /// Pauses the largest slow partition if the partitions that are read have used up their room.
    fn pause_for_memory(&mut self) {
        let reading = self.reading();
        self.last_mean_bytes = self.mean_bytes(&reading).unwrap_or(self.last_mean_bytes);
        if reading.partitions < 2 || !self.is_filled(&reading) {
            return;
        }
        let slow = self.ctx.records.partitions.each();
        let largest = slow
            .filter(|(_, assignment)| assignment.is_read() && assignment.holdings().is_slow())
            .max_by_key(|(_, assignment)| assignment.holdings().bytes());
        let Some((slot, _)) = largest else { return };
        let assignment = &mut self.ctx.records.partitions[slot];
        let held = assignment.holdings().bytes();
        // If bursts of other partitions hold most of the memory, pausing a small one frees little.
        if held.saturating_mul(2 * reading.partitions) < reading.bytes {
            return;
        }
        assignment.holdings_mut().pause_for_memory();
        if let Some(pauses) = self.memory_log.count(self.ctx.now_ms) {
            let all = self.ctx.records.partitions.each();
            let partitions = all
                .filter(|(_, one)| one.holdings().is_paused_for_memory())
                .count();
            let at = self.ctx.records.partitions[slot].at();
            tracing::warn!(
                partitions,
                pauses,
                largest = %at,
                held_bytes = held,
                budget_bytes = self.settings.budget_bytes,
                "partitions paused to leave memory for the others: their records settle slowly; `sluicegate explain {at}` \
                 shows what blocks the largest; fix that, or raise processing.memory"
            );
        }
    }
}
