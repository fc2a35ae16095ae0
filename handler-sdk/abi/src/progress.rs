//! Outcomes and progress of a running call, in memory that any thread may read.
//!
//! The service owns the memory and the plugin writes it through atomics, so that a hanging call costs only the record it
//! hangs on. Between calls the serial is 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::record::RawOutcome;

/// A [`RawOutcome`] that one thread writes and others may read at any time.
///
/// The first word contains the code and is stored last, with release ordering: a reader that sees a code sees the whole
/// outcome.
#[repr(C)]
#[derive(Debug, Default)]
pub struct OutcomeSlot {
    head: AtomicU64,
    arg: AtomicU64,
}

impl OutcomeSlot {
    /// Publishes an outcome.
    #[inline]
    pub fn store(&self, outcome: RawOutcome) {
        let head = u64::from(outcome.code)
            | u64::from(outcome.flags) << 16
            | u64::from(outcome.detail) << 32;
        self.arg.store(outcome.arg, Ordering::Relaxed);
        self.head.store(head, Ordering::Release);
    }

    /// The published outcome; `NOT_RUN` before [`OutcomeSlot::store`].
    #[inline]
    pub fn load(&self) -> RawOutcome {
        let head = self.head.load(Ordering::Acquire);
        RawOutcome {
            code: head as u16,
            flags: (head >> 16) as u16,
            detail: (head >> 32) as u32,
            arg: self.arg.load(Ordering::Relaxed),
        }
    }

    fn clear(&self) {
        self.head.store(0, Ordering::Relaxed);
    }
}

/// The result of the call is not needed any more, including that of the current record.
pub(crate) const CANCELLED: u32 = 1;
/// No further record of the call may start; the current one may finish.
const STOPPED: u32 = 2;

/// Ends a call early. A stopped call ends after the current record; a cancelled one's current result is not needed either.
/// In both cases no further record may start.
///
/// The flag belongs to the records, not to the instance: if set before the call starts, it applies to the call.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicU32>);

impl CancelFlag {
    /// Cancels, for all clones.
    pub fn set(&self) {
        self.0.fetch_or(CANCELLED, Ordering::Release);
    }

    /// Stops after the current record, for all clones.
    pub fn stop(&self) {
        self.0.fetch_or(STOPPED, Ordering::Release);
    }

    /// Whether no further record may start: stopped or cancelled.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Whether the result is not needed any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) & CANCELLED != 0
    }

    /// Resets it for other records; existing clones keep the previous flag.
    pub fn renew(&mut self) {
        match Arc::get_mut(&mut self.0) {
            Some(flag) => *flag.get_mut() = 0,
            None => *self = Self::default(),
        }
    }

    /// Resets it for all clones: only between calls, and only if no thread can still set it for an earlier one.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

/// The shared memory of one instance's calls.
#[derive(Debug)]
pub struct SharedProgress {
    slots: Box<[OutcomeSlot]>,
    count: AtomicU32,
    progress: AtomicU32,
    serial: AtomicU64,
}

impl SharedProgress {
    /// Memory for calls of up to `records` records.
    #[must_use]
    pub fn new(records: usize) -> Self {
        Self {
            slots: (0..records).map(|_| OutcomeSlot::default()).collect(),
            count: AtomicU32::new(0),
            progress: AtomicU32::new(0),
            serial: AtomicU64::new(0),
        }
    }

    /// Maximum number of records of a call.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Opens call `serial` (not 0) with `records` records, all `NOT_RUN`.
    ///
    /// # Panics
    /// When `records` exceeds [`SharedProgress::capacity`].
    pub fn open(&self, serial: u64, records: usize) {
        for slot in &self.slots[..records] {
            slot.clear();
        }
        self.count.store(records as u32, Ordering::Relaxed);
        self.progress.store(0, Ordering::Relaxed);
        self.serial.store(serial, Ordering::Release);
    }

    /// Closes the call and copies its outcomes.
    pub fn close(&self, outcomes: &mut [RawOutcome]) {
        self.serial.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (to, slot) in outcomes.iter_mut().zip(&self.slots) {
            *to = slot.load();
        }
    }

    /// Serial of the running call and index of its current record.
    #[must_use]
    pub fn current(&self) -> Option<(u64, u32)> {
        let serial = self.serial.load(Ordering::Acquire);
        let index = self.progress.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (serial != 0 && self.serial.load(Ordering::Relaxed) == serial).then_some((serial, index))
    }

    /// Copies the outcomes that call `serial` has published so far. Returns `false` without copying if it is not running.
    pub fn read(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool {
        if serial == 0 || self.serial.load(Ordering::Acquire) != serial {
            return false;
        }
        let before = out.len();
        let count = self.count.load(Ordering::Relaxed) as usize;
        out.extend(self.slots.iter().take(count).map(OutcomeSlot::load));
        fence(Ordering::Acquire);
        let still = self.serial.load(Ordering::Relaxed) == serial;
        if !still {
            out.truncate(before);
        }
        still
    }

    pub(crate) fn slots(&self) -> &[OutcomeSlot] {
        &self.slots
    }

    pub(crate) fn progress(&self) -> &AtomicU32 {
        &self.progress
    }
}
