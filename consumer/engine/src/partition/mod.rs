//! The life of an assigned partition: which records are delivered, settled and committed.
//!
//! ```text
//!  assigned ─► ledger.deliver ─► … ─► ledger.settle ─► frontier ─► commit metadata ─► released
//! ```
//!
//! The [`ledger`] knows which offsets are settled, whatever their order; [`commit`] writes what it knows into the
//! metadata of a commit, so that the next owner repeats nothing; the [`committer`] decides when commits are sent and what
//! their answers mean. [`assignment`] is one ownership of a partition: its `progress` and its [`holdings`], some of
//! which wait in the [`overflow`]. `table` has all of them, and [`trouble`] names what keeps a partition from being read.

pub mod assignment;
pub mod commit;
mod commit_size;
pub mod committer;
pub mod holdings;
pub mod id;
pub mod ledger;
pub mod overflow;
mod progress;
pub(crate) mod table;
pub mod trouble;
