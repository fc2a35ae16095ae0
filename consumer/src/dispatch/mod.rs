//! From routed records to worker pools: lanes keep order, batches carry records, the inbox brings outcomes back.

pub mod batch;
pub mod inbox;
pub mod lanes;
pub mod pool;

pub use batch::{Batch, EntryKey, FlightKey, HandlerIx};
pub use inbox::{Inbox, PumpMessage};
pub use pool::{OwnedPartition, PoolState, WorkerPool};
