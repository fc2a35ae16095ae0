//! Which partitions are read, and which are paused (G8): the byte budget of a pump is shared by its partitions.
//!
//! ```text
//!  0                      3/4                    1        of the room that paused partitions leave
//!  ├── records are read ───┼── kept for the others ┤
//!                          └─► the largest partition whose records are slow to go is paused: the rest may go on
//! ```
//!
//! Partitions that are read fill at most three quarters of the room that the others leave. What is there then belongs to
//! handlers that are slow, held, or hang, or merely to a rush. A partition that would not be done with its records within
//! `SLOW_MS` at its present pace is paused, the largest first, and the next quarter of room is for the others: one held
//! handler does not stop the topics that it does not read. A paused partition is read again once half of its records are
//! gone. At most the budget is held in any case.

use super::Flow;
use crate::assignment::{Assignment, AssignmentState};
use crate::source::AssignmentId;

/// Records of full partitions that are kept in hand; beyond it nothing is read until one has room, or is paused.
const MAX_OVERFLOW: usize = 8 * 1024;
/// How long a partition is full before its fetching is paused: a pause throws away what was fetched ahead.
const PAUSE_AFTER_MS: u64 = 500;
/// Share of what may be held below which a poll is not worth it.
const LEAST_ROOM: u64 = 16;
/// Records of a poll while nothing is known of how large they are.
const FIRST_POLL: usize = 32;
/// Over how long the pace of a partition is measured.
const WINDOW_MS: u64 = 500;
/// A partition whose records stay for longer than this is slow.
const SLOW_MS: u64 = 2_000;

/// Why the fetching of a partition is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedFor {
    /// It is stopped, or as many records as it may have are uncommitted.
    Bound,
    /// It has taken up the memory that others need.
    Memory,
}

/// Bytes of a partition, and how fast they go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes of its records under way, as charged.
    pub entry_bytes: u64,
    /// Bytes freed since it was assigned.
    pub freed_bytes: u64,
    /// The same when the window began.
    freed_before: u64,
    /// Bytes freed in the last whole window; `None` before there was one.
    freed_in_window: Option<u64>,
    /// What it held when it was paused for want of memory, while it is.
    paused_at: Option<u64>,
    /// It is paused because of a bound of its own.
    bound: bool,
}

impl Usage {
    /// The window is over.
    fn end_window(&mut self, first: bool) {
        let freed = self.freed_bytes - self.freed_before;
        self.freed_before = self.freed_bytes;
        self.freed_in_window = (!first).then_some(freed);
    }
}

impl Assignment {
    /// Bytes of its records, as charged: those under way and those in hand.
    pub fn held_bytes(&self) -> u64 {
        self.usage.entry_bytes + self.overflow_bytes
    }

    /// Why its fetching is paused, if it is.
    pub fn paused_for(&self) -> Option<PausedFor> {
        match self.usage.paused_at {
            _ if !self.paused => None,
            Some(_) => Some(PausedFor::Memory),
            None => Some(PausedFor::Bound),
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.admits() && !self.paused
    }

    /// Whether its records stay for long at its present pace.
    fn is_slow(&self) -> bool {
        let pace = self.usage.freed_in_window;
        pace.is_some_and(|freed| self.held_bytes() > freed.saturating_mul(SLOW_MS / WINDOW_MS))
    }
}

/// What the partitions that are read hold together.
#[derive(Default)]
struct Reading {
    partitions: u64,
    bytes: u64,
    /// One of them would take a record.
    takes: bool,
    /// Some record of them is under way, and frees its memory when it has settled.
    waits: bool,
    /// Records in hand of all partitions.
    in_hand: usize,
    /// The same of those whose fetching is not paused.
    in_hand_records: usize,
    in_hand_bytes: u64,
}

impl Flow {
    /// How many records may be read from the source just now, at most `most`, as far as can be told from those that are
    /// held (G8).
    pub fn read_quota(&self, most: usize) -> usize {
        let reading = self.reading();
        let in_hand = reading.in_hand_records < MAX_OVERFLOW
            && reading.in_hand_bytes < self.settings.budget_bytes / 4;
        if !in_hand || !(reading.takes || self.current.is_empty()) {
            return 0;
        }
        let limit = self.read_limit(&reading);
        let room = limit.saturating_sub(reading.bytes);
        // A poll for a record or two costs as much as one for many: they wait until some more have settled.
        if room <= limit / LEAST_ROOM {
            // Where nothing is under way there is nothing to wait for: records go on one by one beside what calls that
            // hang, or paused partitions, keep.
            return usize::from(!reading.waits);
        }
        match self.mean_bytes(&reading).unwrap_or(self.last_mean_bytes) {
            0 => most.min(FIRST_POLL),
            mean => most.min((room / mean) as usize).max(1),
        }
    }

    /// Mean size of the records that are held, if any are.
    fn mean_bytes(&self, reading: &Reading) -> Option<u64> {
        let records = self.slab.live() + reading.in_hand;
        self.charged.checked_div(records as u64)
    }

    /// Whether reading stands still for want of memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let reading = self.reading();
        self.is_filled(&reading)
    }

    /// Whether the partitions that are read have filled the room that they have, so far that none is read.
    fn is_filled(&self, reading: &Reading) -> bool {
        let limit = self.read_limit(reading);
        reading.bytes >= limit - limit / LEAST_ROOM
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading::default();
        for slot in self.current.values() {
            let assignment = &self.assignments[slot.0 as usize];
            reading.in_hand += assignment.overflow.len();
            if !assignment.paused {
                reading.in_hand_records += assignment.overflow.len();
                reading.in_hand_bytes += assignment.overflow_bytes;
            }
            if assignment.is_read() {
                reading.partitions += 1;
                reading.bytes += assignment.held_bytes();
                reading.takes |= assignment.overflow.is_empty();
                reading.waits |= !assignment.ledger.is_settled() || !assignment.overflow.is_empty();
            }
        }
        reading
    }

    /// What the partitions that are read may hold together: a quarter of what the others leave stays free for the case
    /// that one of them is paused.
    fn read_limit(&self, reading: &Reading) -> u64 {
        let all = self.charged + self.refusals.held_bytes();
        let others = all.saturating_sub(reading.bytes);
        let room = self.settings.budget_bytes.saturating_sub(others);
        room - room / 4
    }

    /// Partitions whose fetching is to be stopped or resumed, with hysteresis: a pause throws away what was fetched.
    pub fn pauses_due(&mut self) -> Vec<(AssignmentId, bool)> {
        self.measure();
        self.pause_for_memory();
        let mut due = Vec::new();
        let max_uncommitted = self.settings.max_uncommitted;
        let now_ms = self.now_ms;
        for &slot in self.current.values() {
            let assignment = &mut self.assignments[slot.0 as usize];
            if assignment.state != AssignmentState::Assigned {
                continue;
            }
            let full = assignment.stopped.is_some()
                || assignment
                    .full_since_ms
                    .is_some_and(|since| now_ms.saturating_sub(since) >= PAUSE_AFTER_MS);
            let has_room =
                assignment.overflow.is_empty() && assignment.uncommitted() <= max_uncommitted / 2;
            let held = assignment.held_bytes();
            let usage = &mut assignment.usage;
            usage.bound = full || (usage.bound && !has_room);
            usage.paused_at = usage.paused_at.filter(|&paused_at| held > paused_at / 2);
            let pause = usage.bound || usage.paused_at.is_some();
            if pause != assignment.paused {
                assignment.paused = pause;
                due.push((slot, pause));
            }
        }
        due
    }

    /// Measures, now and then, how fast partitions are done with their records.
    fn measure(&mut self) {
        if self.now_ms < self.measured_ms + WINDOW_MS {
            return;
        }
        // A partition that came in between has not had a whole window.
        let began_ms = self.measured_ms;
        self.measured_ms = self.now_ms;
        for &slot in self.current.values() {
            let assignment = &mut self.assignments[slot.0 as usize];
            let first = assignment.assigned_ms >= began_ms;
            assignment.usage.end_window(first);
        }
    }

    /// Pauses the largest slow partition, if the partitions that are read have filled the room that they have.
    fn pause_for_memory(&mut self) {
        let reading = self.reading();
        self.last_mean_bytes = self.mean_bytes(&reading).unwrap_or(self.last_mean_bytes);
        if reading.partitions < 2 || !self.is_filled(&reading) {
            return;
        }
        let largest = self
            .current
            .values()
            .copied()
            .filter(|slot| {
                let assignment = &self.assignments[slot.0 as usize];
                assignment.is_read() && assignment.is_slow()
            })
            .max_by_key(|slot| self.assignments[slot.0 as usize].held_bytes());
        let Some(slot) = largest else { return };
        let assignment = &mut self.assignments[slot.0 as usize];
        let held = assignment.held_bytes();
        // Beside partitions in a rush a small one is not what takes up the memory.
        if held.saturating_mul(2 * reading.partitions) < reading.bytes {
            return;
        }
        assignment.usage.paused_at = Some(held);
        if let Some(pauses) = self.memory_log.count(self.now_ms) {
            let now_paused = self.current.values().filter(|slot| {
                let usage = &self.assignments[slot.0 as usize].usage;
                usage.paused_at.is_some()
            });
            let partitions = now_paused.count();
            let at = &self.assignments[slot.0 as usize].at;
            tracing::warn!(
                partitions,
                pauses,
                largest = %at,
                held_bytes = held,
                budget_bytes = self.settings.budget_bytes,
                "partitions paused to leave memory to the others: their records are slow to settle; `sluicegate explain {at}` \
                 tells what holds the largest; mend that, or raise processing.memory"
            );
        }
    }
}
