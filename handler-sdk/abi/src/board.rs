//! Where a call's outcomes and progress appear while it runs, readable from any thread.
//!
//! The service owns the memory; the plugin writes it through atomics, so that a call which hangs costs only the
//! record it hangs on. Between calls the serial is 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use abi_stable::StableAbi;

use crate::record::RawOutcome;

/// A [`RawOutcome`] that one thread writes and others may read at any time.
///
/// The first word carries the code and is released last: whoever sees a code sees the whole outcome.
#[repr(C)]
#[derive(Debug, Default, StableAbi)]
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

    /// What is published so far.
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

/// The result of the call is no longer wanted, not even that of the record it is at.
pub(crate) const CANCELLED: u32 = 1;
/// No further record of the call is to begin; the one that it is at may finish.
const STOPPED: u32 = 2;

/// Ends a call early: stopped, it ends after the record that it is at; cancelled, that record's result is not wanted either.
/// In both cases none of its records may be begun from then on.
///
/// It belongs to the records, not to the instance: set before the call has opened, it holds for the call all the same.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicU32>);

impl CancelFlag {
    /// Cancels, for everybody who has a clone.
    pub fn set(&self) {
        self.0.fetch_or(CANCELLED, Ordering::Release);
    }

    /// Stops after the record at hand, for everybody who has a clone.
    pub fn stop(&self) {
        self.0.fetch_or(STOPPED, Ordering::Release);
    }

    /// Whether no further record may begin: stopped or cancelled.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Whether the result is not wanted any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) & CANCELLED != 0
    }

    /// Makes it usable for other records: whoever still has a clone keeps the flag of before.
    pub fn renew(&mut self) {
        match Arc::get_mut(&mut self.0) {
            Some(flag) => *flag.get_mut() = 0,
            None => *self = Self::default(),
        }
    }

    /// Takes it back, for everybody who has a clone: only between calls, and when nobody sets it for an earlier one.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

/// The shared memory of one instance's calls.
#[derive(Debug)]
pub struct Board {
    slots: Box<[OutcomeSlot]>,
    count: AtomicU32,
    progress: AtomicU32,
    serial: AtomicU64,
}

impl Board {
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

    /// How many records a call may have.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Opens call `serial` (not 0) of `records` records: everything is `NOT_RUN`.
    ///
    /// # Panics
    /// When `records` is over [`Board::capacity`].
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

    /// The running call's serial and the index of the record it is at.
    #[must_use]
    pub fn current(&self) -> Option<(u64, u32)> {
        let serial = self.serial.load(Ordering::Acquire);
        let index = self.progress.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (serial != 0 && self.serial.load(Ordering::Relaxed) == serial).then_some((serial, index))
    }

    /// Copies what call `serial` has published so far; `false`, and nothing copied, when it is not running.
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
