//! The interface between a pump and the threads that run instances; `sluicegate-pool` implements it, tests script it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Batch, BatchId, Inbox, Published};

/// State of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It runs batches.
    Active,
    /// Its circuit breaker has tripped (state `FAILED`): it accepts nothing until an operator or a new generation acts.
    Failed,
}

/// An owned partition, as instances see it. Compared by topic, partition and epoch.
#[derive(Clone, Debug)]
pub struct OwnedPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: i32,
    /// Fencing number of the ownership (G5).
    pub epoch: u64,
    /// Offset of its first record.
    pub start: i64,
    /// Set when it is lost instead of revoked: another member may have it already.
    pub lost: Arc<AtomicBool>,
}

impl OwnedPartition {
    /// A partition that is owned from its beginning.
    pub fn new(topic: &str, partition: i32, epoch: u64) -> Self {
        Self {
            topic: topic.into(),
            partition,
            epoch,
            start: 0,
            lost: Arc::default(),
        }
    }

    fn id(&self) -> (&str, i32, u64) {
        (&self.topic, self.partition, self.epoch)
    }
}

impl PartialEq for OwnedPartition {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for OwnedPartition {}

impl PartialOrd for OwnedPartition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OwnedPartition {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id().cmp(&other.id())
    }
}

/// The threads of one handler generation (or of several handlers that share a named pool).
///
/// A pool returns every accepted batch to `reply_to` as [`super::PumpMessage::Finished`], whatever happened to the
/// instance, unless the call times out: then it reports [`super::PumpMessage::CallTimedOut`] at once, and `Finished`
/// only if the call ever returns. It never blocks the caller.
pub trait WorkerPool: Send + Sync {
    /// Submits a batch.
    ///
    /// # Errors
    /// Returns the batch if no worker is free (or not the one that must run it), or if the pool has failed. The pool
    /// then sends [`super::PumpMessage::PoolFree`] to `reply_to` once it accepts one again.
    fn submit(&self, batch: Box<Batch>, reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>>;

    /// Returns cancelled batches (`Batch::cancel`) that no worker has started to their pump, without running them.
    /// Running ones are returned by their workers as soon as the current record has ended.
    fn recall(&self) {}

    /// Announces the partitions whose records may come from `reply_to` from now on, replacing the previous announcement.
    /// Instances are notified of each new one before its first record, and of each removed one. Does not wait for them.
    fn own(&self, reply_to: &Arc<Inbox>, partitions: &[OwnedPartition]) {
        let _ = (reply_to, partitions);
    }

    /// What the running call of a batch has published. `None` if the batch is not in a call, or its handler does not publish its
    /// progress.
    fn published(&self, reply_to: &Arc<Inbox>, batch: BatchId) -> Option<Published> {
        let _ = (reply_to, batch);
        None
    }

    /// Number of workers, for handlers whose keys stay with a worker.
    fn workers(&self) -> u32;

    /// Why an instance is unhealthy or cannot be built; `None` if all are healthy.
    fn unhealthy_reason(&self) -> Option<Arc<str>> {
        None
    }

    /// The pool's state.
    fn state(&self) -> PoolState;
}
