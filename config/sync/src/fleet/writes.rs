//! What writes of specs and gates are asked for, and what they result in.

use serde::Serialize;

/// Result of writing a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecWrite {
    /// The handler.
    pub name: String,
    /// The place of its spec.
    pub place: String,
    /// The revision from which on members have the spec; 0 in a folder, which has no revisions.
    pub revision: u64,
    /// Whether the text differed from the previous one.
    pub changed: bool,
    /// Keys that override parts of the spec, for messages.
    pub overridden_by: Vec<String>,
}

/// Result of deleting a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// The handler.
    pub name: String,
    /// The places of the deleted keys or files.
    pub places: Vec<String>,
    /// The revision from which on members run without it; 0 in a folder, which has no revisions.
    pub revision: u64,
}

/// Whether a gate key is created in a store when the spec already declares the state. A folder has no gate keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKeyPolicy {
    /// It is created, so that later specs do not change the gate.
    Always,
    /// It is not created, so that later specs can change the gate.
    UnlessDeclared,
}
