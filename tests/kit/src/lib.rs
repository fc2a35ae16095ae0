//! What several crates test with: test doubles, and suites that every implementation of a trait must pass.
//!
//! A suite drives an implementation through its trait alone, so that a new store or source is tested by naming it. The
//! unit tests of a crate that this one depends on cannot use a double of that crate's traits: it implements the traits of
//! another build of the crate.

pub mod engine_doubles;
pub mod garbage;
pub mod log_capture;
pub mod memory_source;
pub mod plugin_doubles;
#[cfg(feature = "stores")]
pub mod source_conformance;
#[cfg(feature = "stores")]
pub mod store_conformance;
pub mod wait;
