//! Failures of calls to a networked store, before the store's name is added.

use super::StoreError;

/// A failed call, classified at its origin.
#[derive(Debug)]
pub(super) enum Failure {
    /// No usable answer; another server or a later attempt may succeed.
    Away(String),
    /// A retry cannot succeed.
    Refused(String),
    /// The revision asked for is compacted.
    Compacted,
}

impl Failure {
    pub(super) fn away(reason: impl Into<String>) -> Self {
        Self::Away(reason.into())
    }

    /// The reason as a message.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Away(reason) | Self::Refused(reason) => reason,
            Self::Compacted => "the revision is compacted".to_owned(),
        }
    }

    pub(super) fn into_error(self, store: String, what: &str) -> StoreError {
        match self {
            Self::Away(reason) => StoreError::Unreachable { store, reason },
            refused => StoreError::Refused {
                store,
                what: what.to_owned(),
                reason: refused.reason(),
            },
        }
    }
}
