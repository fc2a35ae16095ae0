//! The bridge: replicates control keys between an etcd prefix and a ZooKeeper tree, in both directions.
//!
//! ```text
//!   etcd ──watch──┐                                   ┌─► announce the write in the sync state   (compare-and-set)
//!   ZooKeeper ────┼─► views ─► decide (pure) ─► Transfer ─► write the other side                 (compare-and-set)
//!   sync state ───┘      ▲         │                  └─► record what both sides hold now        (compare-and-set)
//!                        └ confirm: re-read both sides before a delete or an overruling write; halt if a side is
//!                                    a different store, or lacks so many keys that they appear to be lost
//! ```
//!
//! The sync state of a key records the value that both sides last held, its revision on each side, and the writes under
//! way. It is stored where every bridge of the pair reads it, so a restarted or second bridge continues from what the
//! first one recorded: an echo is not a change, and a deleted key does not come back. Kept in memory, it would bring
//! deleted keys back after a restart; in a file per bridge, another bridge would take the first one's echoes for edits
//! (ADR 0015). Two live bridges never write the same key at once. A bridge that finds an expired announcement takes the
//! write over and treats the announced value as an echo.
//!
//! The order announce, write, record makes a crash between two steps recoverable: the next bridge recognizes an
//! announced write as an echo, and repeats it if it did not take place. A side that lost its data or was replaced
//! causes no deletes on the other one (G10, ADR 0025): `pair` checks that, and `halt` bounds what a wrong conclusion
//! could delete.

mod decide;
mod dry_run;
mod events;
mod halt;
mod mark;
mod pair;
mod pair_record;
mod renewal;
mod report;
mod running;
mod settings;
mod sync_state;
mod transfer;
mod view;
mod worker;

pub use decide::{Decision, KeyState, Refusal, decide};
pub use dry_run::{DryRun, DryRunReport, DryRunStep, dry_run};
pub use halt::Halt;
pub use pair::{Foreign, PairCheck, check_pair};
pub use pair_record::{PairRecord, TakenOver};
pub use renewal::Renewal;
pub use report::{BridgeReport, Conflict, Counts, HaltReport, RefusedValue, StoreReport};
pub use running::Bridge;
pub use settings::{BridgeSettings, BridgeStores};
pub use sync_state::{Ages, Pending, Sightings, SyncState, content_hash};
pub use transfer::{Known, Progress, Transfer};
