//! Where specs come from: one trait, so that a folder, a store or a test drive the service alike.
//!
//! ```text
//!  snapshot() ── what stands there now, or every problem
//!  watch(sink) ─ from then on each change as an Update, until the handle is dropped
//!  gates() ──── writes a gate back to where the source reads it
//! ```

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod dead_letters;
mod doubt;
mod file;
mod folder;
mod gate_edit;
mod memory;
mod open;
mod own_id;
mod parsed_key;
mod pools;
mod spec_cache;
mod store;
mod store_gates;
mod store_map;

use std::sync::Arc;

pub use file::{FileSource, spec_files_by_name};
pub(crate) use folder::spec_files;
pub(crate) use gate_edit::{compare_and_write, name_in as name_in_spec};
pub use memory::{MemoryHandle, MemorySource};
pub use open::host;
pub use own_id::OwnId;
pub use store::{StoreSource, StoreSourceSettings};

use crate::problem::Problems;
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Where specs come from. Calls block; sources run their own threads.
pub trait SpecSource: Send {
    /// What it reads, for people, such as `folder handlers.d`.
    fn describe(&self) -> String;

    /// Reads everything as it stands now: the start of a service, and validation.
    ///
    /// # Errors
    /// Every problem that keeps a handler from running; nothing is applied then. Or that the source cannot be read.
    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError>;

    /// Hands every later state to `sink`, on a thread of the source, until the handle is dropped.
    ///
    /// The first update is what stands there now, unless [`SpecSource::snapshot`] gave just that. Revisions never go
    /// backwards, unless the source itself went back to an earlier state.
    ///
    /// # Errors
    /// [`SourceError`] when nothing can be watched at all.
    fn watch(self: Box<Self>, sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError>;

    /// Writes gates to where this source reads them.
    fn gates(&self) -> Arc<dyn GateWriter>;

    /// The store that it reads, where members of a fleet meet; `None` for a source that is no store.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// The member id by which it takes rollouts; `None` for a source that has none.
    fn own_id(&self) -> Option<OwnId> {
        None
    }
}

/// Why there is no first snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The specs are bad; every problem is listed.
    #[error("{0}")]
    Problems(Problems),
    /// The source cannot be read, and nothing else is there to start from.
    #[error("handler specs cannot be read from {what}: {reason}")]
    Unreachable {
        /// The source, as [`SpecSource::describe`] says.
        what: String,
        /// The cause and what to do.
        reason: String,
    },
}

impl From<Problems> for SnapshotError {
    fn from(problems: Problems) -> Self {
        Self::Problems(problems)
    }
}

impl SnapshotError {
    /// The same as problems, for whoever lists all that is wrong.
    #[must_use]
    pub fn into_problems(self) -> Problems {
        match self {
            Self::Problems(problems) => problems,
            error @ Self::Unreachable { .. } => Problems::of_file(None, error.to_string()),
        }
    }
}

/// Takes updates, in order, on the source's thread; it should hand them on and return soon.
pub type UpdateSink = Box<dyn FnMut(Update) + Send>;

/// What a watched source reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// What is meant to run from now on, with what is refused and why.
    Snapshot(Arc<Snapshot>),
    /// The source cannot be read; the last snapshot stays in effect (G10). Told again when the reason changes.
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The source can be read again; a snapshot follows if something changed meanwhile.
    Reachable,
    /// The source can be read, but what stands there now looks like another store's or like a loss: it is not applied, and
    /// the last snapshot stays in effect, until [`WatchHandle::accept`]. Told again when the reason changes.
    Held {
        /// Why.
        reason: String,
    },
    /// Nothing is held back any more: it was accepted, or the store is again as it was.
    Released,
    /// A full re-read found changes that the watch had not told of; the snapshot with them follows.
    Repaired {
        /// How many keys.
        keys: usize,
    },
}

/// A running watch; dropping it stops the watch and waits for the sink's last call to return.
pub trait WatchHandle: Send + Sync {
    /// Asks for a full re-read at once (SIGHUP); the sink gets what changed.
    fn reread(&self);

    /// Takes over what is held back ([`Update::Held`]); whether there was something.
    fn accept(&self) -> bool {
        false
    }
}

/// Writes gates back to a source.
pub trait GateWriter: Send + Sync {
    /// Opens or shuts the gate of `handler`; the watch then sees it like any other edit.
    ///
    /// # Errors
    /// [`GateError`] when there is no such handler or its gate cannot be written; nothing is changed then.
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError>;
}

/// What a gate write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateWrite {
    /// The file or key that holds the gate: where it was written, or else what says so already.
    pub origin: String,
    /// Whether it had the other state before.
    pub changed: bool,
    /// The [`Snapshot::revision`] from which on the gate is as it was written: a snapshot of an earlier one says nothing of it.
    /// `None` for a source whose revisions are not those of its writes.
    pub revision: Option<u64>,
}

/// Why a source cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {what}: {reason}")]
pub struct SourceError {
    /// The source, as [`SpecSource::describe`] says.
    pub what: String,
    /// The cause and what to do.
    pub reason: String,
}

/// Why a gate was not written.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No spec has this name.
    #[error("there is no handler `{name}`{hint}")]
    UnknownHandler {
        /// The name that was asked for.
        name: String,
        /// The nearest known name, as a sentence, or nothing.
        hint: String,
    },
    /// Somebody else changed it meanwhile.
    #[error("{origin} changed while the gate was written; look at it and try again")]
    Conflict {
        /// The file or key.
        origin: String,
    },
    /// The gate cannot be written where it stands.
    #[error("cannot write the gate in {origin}: {reason}")]
    NotWritable {
        /// The file or key.
        origin: String,
        /// The cause and what to do.
        reason: String,
    },
}
