//! From routed records to worker pools: lanes keep the order, batches carry the records, the inbox returns outcomes.

pub mod batch;
pub mod inbox;
pub mod lanes;
pub mod pool;

pub use batch::{Batch, EntryKey, FlightKey, HandlerIx};
pub use inbox::{Inbox, PumpMessage};
pub use pool::{OwnedPartition, PoolState, WorkerPool};
