//! What identifies a partition, and an assignment of it.

use std::sync::Arc;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Identifies an assignment of a pump; a partition gets a new id each time it is assigned.
///
/// It is the index of a place, and how often that was used before: a late record or outcome of a revoked assignment cannot be
/// attributed to its successor (G5), and a process that lives through many rebalances does not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentId(pub u32);

/// Bits of the index. The rest counts uses: only an id that is older than four thousand uses of its place is equal to a new one.
const INDEX_BITS: u32 = 20;

impl AssignmentId {
    /// The first id of a place.
    ///
    /// # Panics
    /// At a million partitions of one client, which no broker assigns.
    pub(crate) fn first(index: usize) -> Self {
        assert!(index < 1 << INDEX_BITS, "too many partitions");
        Self(index as u32)
    }

    /// The next id of the same place.
    pub(crate) fn next(self) -> Self {
        Self(self.0.wrapping_add(1 << INDEX_BITS))
    }

    /// The index of its place, dense from 0.
    pub fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
}
