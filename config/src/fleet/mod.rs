//! What an operator does to a fleet through its store: write specs, wait for the members, roll out in waves.
//!
//! ```text
//!  apply, delete ──► the handler's keys (compare-and-set) ──► await_members: every member has it, or says why not
//!
//!  begin ─► {name}/rollout ─► wave: members grow ─► they have it, and stay well ─┬─► next wave … ─► {name}/spec, done
//!                                                                               └─► refused: rollout deleted, earlier spec again
//! ```
//!
//! The rollout key holds all that is needed to go on, so another terminal can resume or abort it.

mod edit;
mod folder;
mod members;
mod staged;
mod waves;

use crate::problem::Problems;
use crate::store::{KeyNameError, StoreError};

pub use edit::{Deleted, SpecWrite, apply_spec, delete_handler, name_of_spec, set_gate};
pub use folder::{apply_file, delete_file};
pub use members::{MemberState, MemberStatus, WaitResult, await_closed, await_members};
pub use staged::{RolloutResult, RolloutSettings, RolloutStep, abort, begin, resume};
pub use waves::{Wave, WaveError, parse_waves};

/// Why an operator's step was not done.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No handler can have this name.
    #[error(transparent)]
    Name(#[from] KeyNameError),
    /// The text is no valid spec.
    #[error("{0}")]
    Spec(Problems),
    /// There is no such handler.
    #[error("there is no handler `{name}`{hint}")]
    Unknown {
        /// The name.
        name: String,
        /// The nearest known name, as a sentence, or nothing.
        hint: String,
    },
    /// The key is not what the caller had seen.
    #[error(
        "{place} is at revision {found}, not {expected}; look at it with `sluicegate handlers history` and try again"
    )]
    Moved {
        /// Where the key stands.
        place: String,
        /// The revision that was expected; 0 for no value.
        expected: u64,
        /// The revision that stands there; 0 for no value.
        found: u64,
    },
    /// A rollout of the handler is in progress.
    #[error(
        "a rollout of `{name}` by {by} since {started} is in progress; go on with `sluicegate handlers rollout {name} --resume`, or end it with `--abort`"
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
    /// Something else than this rollout changed the handler's keys.
    #[error("the rollout of `{name}` was overtaken: {what}; look at it and try again")]
    Overtaken {
        /// The handler.
        name: String,
        /// What changed.
        what: String,
    },
    /// The fleet has nobody to roll out to.
    #[error("no member is alive; start the service, or write the spec without `--waves`")]
    NoMembers,
}
