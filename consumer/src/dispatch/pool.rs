//! The interface between a pump and the threads that run instances; `handlers` implements it, tests script it.

use std::sync::Arc;

use super::{Batch, Inbox};

/// Whether a pool runs what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It runs batches.
    Active,
    /// Its instances died too often; an operator or a new generation has to act (state `FAILED`). It takes nothing.
    Failed,
}

/// A partition under one ownership, as instances are told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnedPartition {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Fencing number of the ownership (G5).
    pub epoch: u32,
}

/// The threads of one handler generation (or of several handlers that share them by name).
///
/// A pool sends every batch that it took back to `home` as [`super::PumpMessage::Finished`], whatever happened to the
/// instance, unless the call overran its timeout: then it reports [`super::PumpMessage::Overrun`] at once, and
/// `Finished` when and if the call ever returns. It never blocks the caller.
pub trait WorkerPool: Send + Sync {
    /// Hands over a batch.
    ///
    /// # Errors
    /// Gives the batch back when no worker is free (or none that the batch must go to), or the pool has failed. The
    /// pool then sends [`super::PumpMessage::PoolFree`] to `home` once it can take one again.
    fn submit(&self, batch: Box<Batch>, home: &Arc<Inbox>) -> Result<(), Box<Batch>>;

    /// Sends the batches that are to be cancelled (`Batch::cancel`) and that no worker has begun back to where they came
    /// from, untouched. Those that run come back by themselves, as soon as the record that they are at is over.
    fn recall(&self) {}

    /// Says which partitions' records may come from `home` from now on, in place of what it said before. Instances hear
    /// of each new one before its first record, and of each one that is gone. Does not wait for them.
    fn own(&self, home: &Arc<Inbox>, partitions: &[OwnedPartition]) {
        let _ = (home, partitions);
    }

    /// Number of workers, for handlers whose keys stay with a worker.
    fn workers(&self) -> u32;

    /// Whether it runs what it is given.
    fn state(&self) -> PoolState;
}
