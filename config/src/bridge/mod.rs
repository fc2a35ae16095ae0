//! The bridge: keeps the control keys of an etcd prefix and of a ZooKeeper tree equal, both ways.
//!
//! ```text
//!   etcd ──watch──┐                                   ┌─► announce the write in the note   (compare-and-set)
//!   ZooKeeper ────┼─► views ─► decide (pure) ─► Crossing ─► write the other side           (compare-and-set)
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
mod crossing;
mod decide;
mod halt;
mod mark;
mod note;
mod pair;
mod rehearse;
mod renewal;
mod report;
mod running;
mod side;
mod view;
mod worker;

pub(crate) use config::BRIDGE;
pub(crate) use config::BRIDGE_FILE;
pub use config::{BridgeConfig, load_bridge_config, read_bridge_config};
pub use crossing::{Crossing, Known, Progress};
pub use decide::{Decision, Look, Refusal, decide};
pub use halt::Halt;
pub use note::{Ages, Note, Pending, Sightings, content_hash};
pub use pair::{Foreign, PairCheck, PairRecord, TakenOver, check_pair};
pub use rehearse::{Rehearsal, Rehearsed, RehearsedStep, rehearse};
pub use renewal::Renewal;
pub use report::{BridgeReport, Collision, Counts, HaltReport, RefusedValue, StoreReport};
pub use running::{Bridge, BridgeSettings, BridgeStores};
pub use side::{Pair, Side};
