//! Operator commands: write specs and gates to a folder or a store; on a store, also wait for the members and roll out in waves.
//!
//! ```text
//!  SpecBackend ──► the handler's files, or its keys ──► await_members: every member has it, or reports why not
//!
//!  begin ─► {name}/rollout ─► wave: more members ─► applied, and healthy ─┬─► next wave … ─► {name}/spec, done
//!                                                                        └─► refused: rollout deleted, earlier spec restored
//! ```
//!
//! The rollout key contains everything needed to continue, so another terminal can resume or abort it.

mod backend;
mod folder;
mod keys;
mod members;
mod staged;
mod waves;
mod writes;

use std::path::PathBuf;

use sluicegate_config::control::KeyNameError;
use sluicegate_config::problem::Problems;
use sluicegate_store::StoreError;

use crate::source::{FolderError, GateError};

pub use backend::SpecBackend;
pub use members::{MemberState, MemberStatus, WaitResult, await_closed, await_members};
pub use staged::{RolloutResult, RolloutSettings, RolloutStep, abort, begin, resume};
pub use waves::{Wave, WaveError, parse_waves};
pub use writes::{Deleted, GateKeyPolicy, SpecWrite};

/// Why an operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of specs cannot be listed. Retryable.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The name is not a valid handler name.
    #[error(transparent)]
    Name(#[from] KeyNameError),
    /// The text is not a valid spec.
    #[error("{0}")]
    Spec(Problems),
    /// The handler does not exist.
    #[error("no handler `{name}`{hint}")]
    Unknown {
        /// The name.
        name: String,
        /// A suggestion of the nearest known name, or empty.
        hint: String,
    },
    /// The gate in a folder was not written.
    #[error(transparent)]
    Gate(GateError),
    /// The operation requires a store, and the specs are in a folder.
    #[error(
        "specs are in the folder {}, which has no {what}; this requires `handlers.etcd` or `handlers.zookeeper`",
        folder.display()
    )]
    NeedsStore {
        /// The folder.
        folder: PathBuf,
        /// What the folder lacks.
        what: &'static str,
    },
    /// The key is not at the revision that the caller expected.
    #[error(
        "{place} is at revision {found}, not {expected}; check it with `sluicegate handlers history` and retry"
    )]
    Moved {
        /// The place of the key.
        place: String,
        /// The revision that was expected; 0 for no value.
        expected: u64,
        /// The present revision; 0 for no value.
        found: u64,
    },
    /// A rollout of the handler is in progress.
    #[error(
        "a rollout of `{name}`, started by {by} at {started}, is in progress; continue it with `sluicegate handlers rollout {name} --resume`, or end it with `--abort`"
    )]
    InProgress {
        /// The handler.
        name: String,
        /// Who started it.
        by: String,
        /// When.
        started: String,
    },
    /// No rollout of the handler is in progress.
    #[error("no rollout of `{name}` is in progress")]
    NotInProgress {
        /// The handler.
        name: String,
    },
    /// A change other than this rollout modified the handler's keys.
    #[error("the rollout of `{name}` was overtaken: {what}; check it and retry")]
    Overtaken {
        /// The handler.
        name: String,
        /// What changed, or why the rollout's key cannot be read.
        #[source]
        what: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The fleet has no members to roll out to.
    #[error("no member is alive; start the service, or write the spec without `--waves`")]
    NoMembers,
}

impl From<GateError> for FleetError {
    fn from(error: GateError) -> Self {
        match error {
            GateError::UnknownHandler { name, hint } => Self::Unknown { name, hint },
            error => Self::Gate(error),
        }
    }
}
