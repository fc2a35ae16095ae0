//! The bridge: keeps the control keys of an etcd prefix and of a ZooKeeper tree equal, both ways.
//!
//! ```text
//!   etcd ──watch──┐                                   ┌─► announce the write in the note   (compare-and-set)
//!   ZooKeeper ────┼─► views ─► decide (pure) ─► Transfer ─► write the other side           (compare-and-set)
//!   notes ────────┘      ▲         │                  └─► note what both sides hold now    (compare-and-set)
//!                        └ confirm: read both sides anew before anything is deleted or overruled,
//!                                    and stop where one is another store, or lacks so much that it looks lost
//! ```
//!
//! A key's note says what both sides last held, by which revision on each, and which writes are under way. It stands in a
//! store that every bridge of the pair shares, so a bridge that starts again, or a second one, knows what the first one
//! knew: an echo is no change, and what was deleted does not come back. Two bridges never write one key at once as long as
//! both are alive; whoever finds an announcement that is too old takes over and takes the announced value for an echo.

mod config;
mod decide;
mod dry_run;
mod halt;
mod mark;
mod pair;
mod renewal;
mod report;
mod running;
mod side;
mod sync_state;
mod transfer;
mod view;
mod worker;

pub(crate) use config::BRIDGE;
pub(crate) use config::BRIDGE_FILE;
pub use config::{BridgeConfig, load_bridge_config, read_bridge_config};
pub use decide::{Decision, KeyState, Refusal, decide};
pub use dry_run::{DryRun, DryRunStep, Rehearsal, dry_run};
pub use halt::Halt;
pub use pair::{Foreign, PairCheck, PairRecord, TakenOver, check_pair};
pub use renewal::Renewal;
pub use report::{BridgeReport, Conflict, Counts, HaltReport, RefusedValue, StoreReport};
pub use running::{Bridge, BridgeSettings, BridgeStores};
pub use side::{Pair, Side};
pub use sync_state::{Ages, Pending, Sightings, SyncState, content_hash};
pub use transfer::{Known, Progress, Transfer};
