//! What passes through the roster: batches, and the addresses of threads and callers.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use sluicegate_engine::dispatch::{Batch, Inbox};

use crate::error::ProbeError;
use crate::member::PoolMember;

/// A batch and the inbox that gets it back.
pub(crate) struct WorkItem {
    pub(crate) member: Arc<PoolMember>,
    pub(crate) batch: Box<Batch>,
    pub(crate) reply_to: Arc<Inbox>,
}

/// A thread's right to its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WorkerId {
    pub(crate) slot: usize,
    /// Number of the thread, from 1; another one in the slot means that this thread was abandoned.
    pub(crate) thread_epoch: u64,
}

/// Where the caller of a probe waits.
pub(crate) type ProbeReply = SyncSender<Result<(), ProbeError>>;
