//! Between a pump and worker pools: batches carry records there, the inbox returns outcomes.
//!
//! ```text
//!  queue ─► batch: records of one handler ─► WorkerPool::submit ─► worker thread
//!   ▲                                             │ refused            │
//!   └── inbox ◄── PoolFree, once there is room ◄──┘                    │
//!         ▲                                                            │
//!         └── Finished · CallTimedOut · Delivered ◄────────────────────┘
//! ```
//!
//! These types are the whole contract between a pump and the threads that run its handlers. Neither side waits for the
//! other: a pool refuses a batch instead of blocking, and workers only push messages. A refused batch stays with its
//! pump, whose memory it fills until reading stops: this is the backpressure (G8). Every accepted batch returns as
//! [`PumpMessage::Finished`], or is reported as [`PumpMessage::CallTimedOut`]; a pool that loses one blocks its lanes
//! and the frontier for good. A batch costs one message; a record costs one only if it emits or is dead-lettered.

pub mod batch;
pub mod inbox;
pub mod pool;
mod published;

pub use batch::{Batch, BatchId, HandlerIx, RecordId};
pub use inbox::{Inbox, PumpMessage};
pub use pool::{OwnedPartition, PoolState, WorkerPool};
pub use published::Published;
