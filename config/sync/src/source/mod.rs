//! Spec sources: one trait for a folder, a store and tests.
//!
//! ```text
//!  snapshot() ── the current specs, or every problem
//!  watch(sink) ─ every later change as an Update, until the handle is dropped
//!  gates() ──── writes gates back to the source
//! ```

mod dead_letters;
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
mod store_map;
mod suspicion;

use std::path::PathBuf;
use std::sync::Arc;

pub use file::{FileSource, spec_files_by_name};
pub use folder::FolderError;
pub(crate) use folder::spec_files;
pub(crate) use gate_edit::{RefusedText, name_in as name_in_spec, with_gate};
pub use memory::{MemoryHandle, MemorySource};
pub use open::{open_source, open_source_read_only};
pub use own_id::OwnId;
pub use store::{StoreSource, StoreSourceSettings};

use sluicegate_config::problem::Problems;
use sluicegate_config::snapshot::Snapshot;
use sluicegate_store::{Store, StoreError};

/// A source of specs. Calls block; sources run their own threads.
pub trait SpecSource: Send {
    /// Human-readable description, such as `folder handlers.d`.
    fn describe(&self) -> String;

    /// Reads the current specs, for a service's start and for validation.
    ///
    /// # Errors
    /// Every problem that keeps a handler from running, in which case nothing is applied; or that the source cannot be read.
    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError>;

    /// Sends every later state to `sink`, on a thread of the source, until the handle is dropped.
    ///
    /// The first update is the current state, unless [`SpecSource::snapshot`] returned the same. Revisions never decrease, unless
    /// the source itself went back to an earlier state.
    ///
    /// # Errors
    /// [`SourceError`] if the source cannot be watched at all.
    fn watch(self: Box<Self>, sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError>;

    /// Writer for the gates of this source.
    fn gates(&self) -> Arc<dyn GateWriter>;

    /// The store that it reads, which is shared by the fleet; `None` for other sources.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// The member id that selects rollouts; `None` for sources without rollouts.
    fn own_id(&self) -> Option<OwnId> {
        None
    }
}

/// Why the initial snapshot is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The specs are invalid; lists every problem.
    #[error("{0}")]
    Problems(Problems),
    /// The source cannot be read, without a cache to start from.
    #[error("handler specs cannot be read from {what}: {cause}")]
    Unreachable {
        /// The source, see [`SpecSource::describe`].
        what: String,
        /// Cause and remedy.
        #[source]
        cause: UnreachableCause,
    },
}

/// Why a store's specs are not read, and a start from the cache does not help.
#[derive(Debug, thiserror::Error)]
pub enum UnreachableCause {
    /// The store refused the call. Terminal.
    #[error("{0}")]
    Refused(#[source] StoreError),
    /// The store does not answer, and a cache is missing, damaged, or another store's. Retryable.
    #[error("{0}; no usable cache of an earlier run exists to start from")]
    NoCache(#[source] StoreError),
    /// The store does not answer, and the config forbids a start from the cache. Retryable.
    #[error("{0}; `handlers.require_fresh` forbids starting from the cache")]
    CacheForbidden(#[source] StoreError),
    /// The store's content is held back, and the config forbids a start from the cache. Terminal.
    #[error(
        "{reason}; `handlers.require_fresh` forbids starting from the cache; if the store's content is intended, delete {}",
        cache.display()
    )]
    Held {
        /// What suggests a loss.
        reason: String,
        /// The cache file that the content was compared with.
        cache: PathBuf,
    },
}

impl From<Problems> for SnapshotError {
    fn from(problems: Problems) -> Self {
        Self::Problems(problems)
    }
}

impl SnapshotError {
    /// Converts to problems, for callers that list everything.
    #[must_use]
    pub fn into_problems(self) -> Problems {
        match self {
            Self::Problems(problems) => problems,
            error @ Self::Unreachable { .. } => Problems::of_file(None, error.to_string()),
        }
    }
}

/// Receives updates in order on the source's thread; should forward them and return quickly.
pub type UpdateSink = Box<dyn FnMut(Update) + Send>;

/// An event of a watched source.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The new desired state, with its rejections.
    Snapshot(Arc<Snapshot>),
    /// The source cannot be read; the last snapshot stays active (G10). Sent again when the reason changes.
    Unreachable {
        /// The reason.
        reason: String,
    },
    /// The source can be read again; a snapshot follows if it changed during the outage.
    Reachable,
    /// The source can be read, but its content appears to be another store's or the result of a loss: it is held back, and the last
    /// snapshot stays active, until [`WatchHandle::accept`]. Sent again when the reason changes.
    Held {
        /// The reason.
        reason: String,
    },
    /// Nothing is held back any longer: it was accepted, or the store is back to its earlier content.
    Released,
    /// A full re-read found changes that the watch had missed; the snapshot with them follows.
    Repaired {
        /// Number of keys.
        keys: usize,
    },
}

/// A running watch; dropping it stops the watch and waits for the sink's last call to return.
pub trait WatchHandle: Send + Sync {
    /// Requests an immediate full re-read (SIGHUP); the sink receives any changes.
    fn reread(&self);

    /// Applies the content that is held back ([`Update::Held`]). Returns whether there was any.
    fn accept(&self) -> bool {
        false
    }
}

/// Writes gates back to a source.
pub trait GateWriter: Send + Sync {
    /// Opens or closes the gate of `handler`; the watch sees it like any other edit.
    ///
    /// # Errors
    /// [`GateError`] if the handler does not exist or its gate cannot be written; nothing is changed.
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError>;
}

/// Result of a gate write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateWrite {
    /// The file or key that was written, or that already has this state.
    pub origin: String,
    /// Whether the state changed.
    pub changed: bool,
    /// The first [`Snapshot::revision`] that includes the write; earlier snapshots may not. `None` if the source's revisions are
    /// not those of its writes.
    pub revision: Option<u64>,
}

/// Why a source cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system provides no thread. Retryable.
    #[error("cannot watch {what}: cannot start a thread: {error}")]
    Thread {
        /// The source, see [`SpecSource::describe`].
        what: String,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// The store cannot be watched. Retryable if the store's error is.
    #[error("cannot watch {what}: {error}")]
    Store {
        /// The source, see [`SpecSource::describe`].
        what: String,
        /// The cause.
        #[source]
        error: StoreError,
    },
}

/// Why a gate was not written.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No handler has this name.
    #[error("no handler `{name}`{hint}")]
    UnknownHandler {
        /// The requested name.
        name: String,
        /// A suggestion of the nearest known name, or empty.
        hint: String,
    },
    /// Modified concurrently.
    #[error("{origin} changed while the gate was written; check it and try again")]
    Conflict {
        /// The file or key.
        origin: String,
    },
    /// The gate cannot be written.
    #[error("cannot write the gate in {origin}: {reason}")]
    NotWritable {
        /// The file or key.
        origin: String,
        /// Cause and remedy: an error of the file system, the store or the text.
        #[source]
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
}
