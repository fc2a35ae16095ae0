//! The life of an assigned partition: which records are delivered, settled and committed.
//!
//! ```text
//!  assigned ─► ledger.deliver ─► … ─► ledger.settle ─► frontier ─► commit metadata ─► released
//! ```
//!
//! The [`ledger`] knows which offsets are settled, whatever their order; [`commit`] writes what it knows into the
//! metadata of a commit, so that the next owner repeats nothing; the [`committer`] decides when commits are sent and what
//! their answers mean. [`assignment`] is one ownership of a partition, `table` has all of them, and [`trouble`] names what
//! keeps a partition from being read.

pub mod assignment;
pub mod commit;
mod commit_size;
pub mod committer;
pub mod fault;
pub mod id;
pub mod ledger;
pub mod recovery;
pub(crate) mod table;
pub mod trouble;
pub mod usage;
