//! The life of an assigned partition: which records are delivered, settled and committed.
//!
//! ```text
//!  assigned ─► ledger.deliver ─► … ─► ledger.settle ─► frontier ─► commit metadata ─► released
//! ```
//!
//! The [`ledger`] knows which offsets are settled, whatever their order; [`commit`] writes what it knows into the
//! metadata of a commit, so that the next owner repeats nothing. [`assignment`] is one ownership of a partition, and
//! [`trouble`] names what keeps a partition from being read.

pub mod assignment;
pub mod commit;
pub mod ledger;
pub mod trouble;
