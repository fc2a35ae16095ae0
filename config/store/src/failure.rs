//! Failures of calls to a networked store, before the store's name is added.

use std::path::{Path, PathBuf};

use sluicegate_config::bounded_file::ReadError;

use super::StoreError;

/// A failed call, classified at its origin. The reasons are texts, as the clients' errors have no common type and bury
/// the cause.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No usable answer; another server or a later attempt may succeed.
    #[error("{0}")]
    Away(String),
    /// A retry cannot succeed until the cause is removed at the store or in the config.
    #[error("{0}")]
    Refused(String),
    /// The revision asked for is compacted.
    #[error("the revision is compacted")]
    Compacted,
}

/// Why a TLS file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsFileError {
    /// It cannot be read.
    #[error("{} {source}", path.display())]
    Read { path: PathBuf, source: ReadError },
    /// It has no valid certificates or key.
    #[error("{}: {source}", path.display())]
    Content {
        path: PathBuf,
        source: zookeeper_client::Error,
    },
}

impl TlsFileError {
    pub(super) fn read(path: &Path) -> impl Fn(ReadError) -> Self {
        let path = path.to_owned();
        move |source| Self::Read {
            path: path.clone(),
            source,
        }
    }

    pub(super) fn content(path: &Path) -> impl Fn(zookeeper_client::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Content {
            path: path.clone(),
            source,
        }
    }
}

impl Failure {
    pub(super) fn away(reason: impl Into<String>) -> Self {
        Self::Away(reason.into())
    }

    pub(super) fn into_error(self, store: String, what: &str) -> StoreError {
        match self {
            Self::Away(reason) => StoreError::Unreachable { store, reason },
            refused => StoreError::Refused {
                store,
                what: what.to_owned(),
                reason: refused.to_string(),
            },
        }
    }
}
