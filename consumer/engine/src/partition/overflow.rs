//! Records delivered while their partition had no room, in order.

use std::collections::VecDeque;

use crate::record::Record;
use crate::source::Delivery;

/// A record that waits for room, and its charge until it is admitted.
struct OverflowRecord<R> {
    delivery: Delivery<R>,
    /// Bytes charged to the budget (G8).
    charge: u64,
}

/// The records of a partition that wait for room.
pub struct Overflow<R> {
    records: VecDeque<OverflowRecord<R>>,
    bytes: u64,
    full_since_ms: Option<u64>,
}

impl<R> Default for Overflow<R> {
    fn default() -> Self {
        Self {
            records: VecDeque::new(),
            bytes: 0,
            full_since_ms: None,
        }
    }
}

impl<R> Overflow<R> {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no record waits.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Total charge of the records, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Time since which records wait, on the flow's clock, in milliseconds.
    pub fn full_since_ms(&self) -> Option<u64> {
        self.full_since_ms
    }

    /// The records, in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Delivery<R>> {
        self.records.iter().map(|kept| &kept.delivery)
    }

    /// Adds a record behind all others.
    pub(super) fn push(&mut self, delivery: Delivery<R>, charge: u64, now_ms: u64) {
        self.bytes += charge;
        self.full_since_ms.get_or_insert(now_ms);
        self.records.push_back(OverflowRecord { delivery, charge });
    }

    /// Returns a record that has waited since `since_ms` to the front.
    pub(super) fn put_back(&mut self, delivery: Delivery<R>, charge: u64, since_ms: u64) {
        self.bytes += charge;
        self.full_since_ms.get_or_insert(since_ms);
        self.records.push_front(OverflowRecord { delivery, charge });
    }

    /// Takes the oldest record and its charge.
    pub(super) fn pop(&mut self) -> Option<(Delivery<R>, u64)> {
        let OverflowRecord { delivery, charge } = self.records.pop_front()?;
        self.bytes -= charge;
        if self.records.is_empty() {
            self.full_since_ms = None;
        }
        Some((delivery, charge))
    }

    /// Frees the memory of an empty queue.
    pub(super) fn forget(&mut self) {
        debug_assert!(self.is_empty(), "what waits stays charged");
        self.records = VecDeque::new();
    }
}

impl<R: Record> Overflow<R> {
    /// Copies the records out of the client's memory.
    pub(super) fn detach(&mut self) {
        for kept in &mut self.records {
            let lease = &mut kept.delivery.lease;
            if lease.pins_client_memory() {
                *lease = lease.detach();
            }
        }
    }
}
