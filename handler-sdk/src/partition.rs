//! A partition whose records an instance begins or ends to receive.

use std::time::Duration;

use sluicegate_abi::partition::{PartitionChange, PartitionEvent};

/// A partition that was assigned, or is not any more.
#[derive(Clone, Copy, Debug)]
pub struct Partition<'a> {
    event: &'a PartitionEvent<'a>,
}

impl<'a> Partition<'a> {
    pub(crate) fn new(event: &'a PartitionEvent<'a>) -> Self {
        Self { event }
    }

    /// Topic.
    pub fn topic(&self) -> &'a str {
        self.event.topic
    }

    /// Number of the partition in its topic.
    pub fn number(&self) -> i32 {
        self.event.partition
    }

    /// The assignment's fencing number; the higher one wins.
    pub fn epoch(&self) -> u64 {
        self.event.epoch
    }

    /// Offset of the first record that can follow; `None` once it is revoked.
    pub fn start_offset(&self) -> Option<i64> {
        self.event.start_offset
    }

    /// How long the call may take; `None` means no limit. The worker of an instance that takes longer is abandoned.
    pub fn timeout(&self) -> Option<Duration> {
        self.event.deadline
    }

    /// Whether it was lost instead of revoked: another member of the group may have it already, so that nothing may be written for
    /// it any more.
    pub fn is_lost(&self) -> bool {
        self.event.change == PartitionChange::Lost
    }
}
