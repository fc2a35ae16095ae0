//! Which lane a record belongs to.

use super::Order;
use crate::dispatch::RecordId;
use crate::record::Record;
use crate::records::slab::{RecordEntry, Slab};

/// The lane of a record; 0 means none.
#[inline]
pub(crate) fn lane_of<R: Record>(order: Order, entry: &RecordEntry<R>) -> u64 {
    // The slot is part of it: the same key in another partition, or after a revoke, is another lane.
    let slot = u64::from(entry.slot.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match order {
        Order::Key if entry.key_hash != 0 => (entry.key_hash ^ slot) | 1,
        Order::Partition => slot | 1,
        Order::Key | Order::Unordered => 0,
    }
}

/// Lane of the record behind `key`, if it still exists.
pub(super) fn lane_of_key<R: Record>(slab: &Slab<R>, order: Order, key: RecordId) -> u64 {
    slab.get(key).map_or(0, |entry| lane_of(order, entry))
}
