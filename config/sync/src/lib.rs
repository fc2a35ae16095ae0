//! Specs as they change: the sources that a service follows, and the commands of an operator that edit them.
//!
//! ```text
//!  folder ─┐
//!  store ──┴─► SpecSource ─► Snapshot{revision} ─► the service's registry
//!  ▲
//!  └── fleet: specs and gates, rollouts in waves ◄── sluicegate handlers …, admin API
//! ```
//!
//! [`source`] reads and watches; [`fleet`] writes and waits until every member has what was written.

mod atomic_file;
pub mod fleet;
pub mod source;
mod validate;

pub use validate::validate_everything;
