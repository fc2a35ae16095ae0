//! One partition's life with us: `Assigned → Draining → Released`, under one epoch (G5).

use std::collections::VecDeque;
use std::sync::Arc;

use sluicegate_runtime::RecordPlace;

use crate::ledger::Ledger;
use crate::routing::PlanIx;
use crate::source::{Delivery, TopicPartition};

/// A record of a full partition, and what it is charged with until it is let in.
pub struct InHand {
    /// The record.
    pub delivery: Delivery,
    /// Bytes of the budget (G8).
    pub charge: u64,
}

/// Where an assignment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Records are admitted.
    Assigned,
    /// It is being given back: nothing new starts, what runs may finish until the deadline.
    Draining {
        /// On the flow's clock, in milliseconds.
        deadline_ms: u64,
    },
    /// It is gone: outcomes that still come are discarded.
    Released,
}

/// A partition that is, or was, ours.
pub struct Assignment {
    /// The partition.
    pub at: TopicPartition,
    /// Its topic's name, which records that are lent to calls point to.
    pub topic: &'static str,
    /// Fencing number: larger than that of every earlier assignment in this process.
    pub epoch: u32,
    /// No record of it may start any more, and no outcome of one that runs counts (G5): it is given back, or about to be.
    pub fenced: bool,
    /// Where it stands.
    pub state: AssignmentState,
    /// Its offsets.
    pub ledger: Ledger,
    /// Which routes can match its topic.
    pub plan: PlanIx,
    /// The offset that the group has committed, as far as acknowledged.
    pub committed: i64,
    /// Metadata of the last acknowledged commit.
    pub committed_metadata: String,
    /// Records that came while there was no room, in order.
    pub overflow: VecDeque<InHand>,
    /// What they are charged with, in bytes.
    pub overflow_bytes: u64,
    /// Since when records have had to wait for room, on the flow's clock.
    pub full_since_ms: Option<u64>,
    /// Whether its fetching is stopped.
    pub paused: bool,
    /// Why nothing of it is handled any more, if so (G12, G13).
    pub stopped: Option<Arc<str>>,
    /// Live slab entries of it.
    pub entries: u32,
    /// Records delivered.
    pub delivered: u64,
    /// Repeats dropped.
    pub repeats: u64,
    /// When the frontier moved last, on the flow's clock.
    pub moved_ms: u64,
}

impl Assignment {
    /// Whether its records may start.
    pub fn admits(&self) -> bool {
        self.state == AssignmentState::Assigned && self.stopped.is_none()
    }

    /// Where a record of it comes from.
    pub fn place_of(&self, offset: i64, timestamp_ms: i64) -> RecordPlace<'static> {
        RecordPlace {
            topic: self.topic,
            partition: self.at.partition,
            offset,
            timestamp_ms,
            epoch: self.epoch,
        }
    }

    /// Offsets that an owner lost without notice could make somebody repeat (G3).
    pub fn uncommitted(&self) -> i64 {
        self.ledger.next() - self.committed
    }
}
