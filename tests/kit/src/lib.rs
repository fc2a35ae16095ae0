//! What several crates test with: suites that every implementation of a trait must pass.
//!
//! A suite drives an implementation through its trait alone, so that a new store or source is tested by naming it.

pub mod garbage;
pub mod source_conformance;
pub mod store_conformance;
