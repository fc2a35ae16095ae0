//! What held records keep alive besides their own bytes: a record in a fetch buffer keeps all of it, a megabyte or more.
//!
//! ```text
//!                        measured every 250 ms, and whenever much has been read
//!  pinned ≤ 2 × charged + an eighth ──► records that wait for 250 to 500 ms are copied out of their buffers
//!  pinned >             ,,          ──► those that wait are copied at once
//!                                        └─ still so: calls have them ──► records are copied when they are admitted
//! ```
//!
//! A record is copied at most once, and records of a fast handler are not: they are gone before they count, all of a buffer
//! at the same time. What is pinned beyond the charge and the eighth counts as used memory, up to half of the budget (see
//! `budget`).

use std::collections::HashSet;

use super::Flow;
use crate::dispatch::RecordId;
use crate::record::Record;

/// How long a record waits, at least, before it is copied out of its fetch buffer; twice that at the most. Longer than
/// records of a fast handler live, so that these are never copied.
const COPY_INTERVAL_MS: u64 = 250;
/// Pinned memory may be this many times as large as what is charged, and a fraction of the budget larger.
const FACTOR: u64 = 2;
const SLACK_DIVISOR: u64 = 8;
/// Pinned memory is measured once the mean of held records says that so much of the budget has been read, and after so
/// many records in any case: those that are not held may be larger.
const MEASURE_DIVISOR: u64 = 16;
const MEASURE_RECORDS: u64 = 16 * 1024;
/// Number of queued records per partition from which it is estimated.
const SAMPLE: usize = 64;

/// What is known about pinned memory.
#[derive(Default)]
pub(super) struct Pinned {
    /// When waiting records were last copied.
    copied_ms: u64,
    /// Number of records delivered to the present partitions when it was last measured.
    delivered: u64,
    /// Bytes as last measured, and what was charged then.
    bytes: u64,
    charged: u64,
}

impl<R: Record> Flow<R> {
    /// Measures what held records pin if that is due, and copies records that wait.
    pub(super) fn detach_waiting(&mut self) {
        if self.ctx.records.charged() == 0 {
            (self.pinned.bytes, self.pinned.charged) = (0, 0);
            self.ctx.records.slab.copy_new(false);
            return;
        }
        let delivered = self.delivered();
        let records = delivered.abs_diff(self.pinned.delivered);
        let enough = records >= MEASURE_RECORDS
            || records.saturating_mul(self.last_mean_bytes)
                >= self.settings.budget_bytes / MEASURE_DIVISOR;
        let timed = self.ctx.now_ms.saturating_sub(self.pinned.copied_ms) >= COPY_INTERVAL_MS;
        if !enough && !timed {
            return;
        }
        self.pinned.delivered = delivered;
        self.measure_pinned();
        let much = self.pins_more_than(self.slack());
        if timed || (much && !self.ctx.records.slab.copies_new()) {
            self.copy_waiting(much);
            self.measure_pinned();
        }
        // Copies change nothing about what calls have, so it lasts until most of that is back.
        let usual = match self.ctx.records.slab.copies_new() {
            true => self.slack() / 2,
            false => self.slack(),
        };
        let copies = self.pins_more_than(usual);
        self.ctx.records.slab.copy_new(copies);
    }

    /// Bytes that held records keep alive, as last measured.
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned.bytes
    }

    /// Bytes pinned beyond what is charged and usual, as far as they count: what hung calls pin leaves the others half of
    /// the budget. It cannot grow then, because new records are copied.
    pub(super) fn excess_bytes(&self) -> u64 {
        // Not of what is charged now: records that have settled since pin nothing either.
        let usual = self.pinned.charged + self.slack();
        let excess = self.pinned.bytes.saturating_sub(usual);
        excess.min(self.settings.budget_bytes / 2)
    }

    fn slack(&self) -> u64 {
        self.settings.budget_bytes / SLACK_DIVISOR
    }

    fn pins_more_than(&self, slack: u64) -> bool {
        self.pinned.bytes > FACTOR * self.pinned.charged + slack
    }

    fn delivered(&self) -> u64 {
        let each = self.ctx.records.partitions.each();
        each.map(|(_, assignment)| assignment.delivered()).sum()
    }

    fn measure_pinned(&mut self) {
        // Another part of them each time.
        let first = self.pinned.delivered as usize;
        let overflow = self.ctx.records.partitions.each().flat_map(|(_, one)| {
            let step = one.overflow().len().div_ceil(SAMPLE).max(1);
            let sample = one.overflow().iter().skip(first % step).step_by(step);
            sample.map(move |kept| (kept.lease.pinned_bytes() * step) as u64)
        });
        self.pinned.bytes = self.ctx.records.slab.pinned_bytes(first) + overflow.sum::<u64>();
        self.pinned.charged = self.ctx.records.charged();
    }

    /// Copies records that wait out of their fetch buffers: all of them, or those that were here at the last call.
    fn copy_waiting(&mut self, all: bool) {
        self.pinned.copied_ms = self.ctx.now_ms;
        let records = &mut self.ctx.records;
        if all {
            records.slab.all_wait();
        }
        // Those in batches that no worker has, before the others are marked: a failed handler keeps some for long.
        for queue in self.queues.iter_mut().flatten() {
            queue.detach_waiting(records);
        }
        records.slab.detach_waiting();
        let partitions = &mut records.partitions;
        partitions.for_each_mut(|_, assignment| assignment.holdings_mut().detach_overflow());
    }

    /// Number of records that no worker has and that keep a fetch buffer alive.
    pub fn pinning_records(&self) -> usize {
        let queues = self.queues.iter().flatten();
        let with_worker: HashSet<RecordId> = queues.flat_map(|queue| queue.submitted()).collect();
        let records = &self.ctx.records;
        let held = records.slab.iter().filter(|(key, entry)| {
            !with_worker.contains(key) && entry.lease().is_some_and(Record::pins_client_memory)
        });
        let each = records.partitions.each();
        let overflow = each.flat_map(|(_, one)| one.overflow().iter());
        held.count()
            + overflow
                .filter(|kept| kept.lease.pins_client_memory())
                .count()
    }
}
