//! The C-layout types shared by the service and its native plugins, and the safe interfaces of both sides.
//!
//! ```text
//!   service side                      │ C layout                 │ plugin side
//!   host::Module ── create ───────────┼─ PluginModule ───────────┼─► plugin::Plugin
//!   host::Instance ── handle ─────────┼─ RawCall, RawRecord ─────┼─► plugin::Instance ── Call
//!   host::HostSink ◄── log, metric ───┼─ HostFunctions ──────────┼── plugin::Host
//!   host::CallSink ◄── emit, detail ──┼─ RawEmit, RawBytes ──────┼── plugin::Call
//!   progress::SharedProgress ◄────────┼─ OutcomeSlot, RawOutcome ┼── plugin::Call
//! ```
//!
//! The middle column is plain data in a fixed layout: no type owns memory that the other side frees, and no function
//! unwinds. Both sides are in one crate so that the ABI can be tested in one process, including under Miri. A plugin
//! file's [`descriptor`] is readable before any of its code runs.

#![allow(non_camel_case_types, non_local_definitions)]

pub mod descriptor;
pub mod guard;
pub mod header_block;
pub mod host;
pub mod lend;
pub mod limits;
pub mod module;
pub mod partition;
pub mod plugin;
pub mod progress;
pub mod record;
pub mod view;

pub use record::{
    Fence, RawOutcome, RawRecord, RecordPlace, TopicName, outcome_code, outcome_flag, record_flag,
};

#[cfg(test)]
mod tests;
