//! What an instance is told about partitions.

use std::time::Duration;

/// What happens to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionChange {
    /// It was assigned: its records may follow.
    Assigned,
    /// It was revoked: no more records of this assignment follow, and what was handled is committed.
    Revoked,
    /// It was lost: as revoked, but another member may have it already, so that nothing may be written for it any more.
    Lost,
}

/// Something happens to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionEvent<'a> {
    /// What.
    pub change: PartitionChange,
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// The assignment's fencing number (G5).
    pub epoch: u64,
    /// Offset of the first record that can follow, if it is known and one can.
    pub start_offset: Option<i64>,
    /// Time for it; `None` means no limit.
    pub deadline: Option<Duration>,
}
