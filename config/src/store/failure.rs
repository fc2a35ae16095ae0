//! Why a call of a store with a network did not succeed, before it is told under the store's name.

use super::StoreError;

/// Classified where it is born.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer, or none that counts; another server or another moment can help.
    Away(String),
    /// Asking again does not help.
    Refused(String),
    /// The revision asked for is compacted.
    Compacted,
}

impl Failure {
    pub(super) fn away(reason: impl Into<String>) -> Self {
        Self::Away(reason.into())
    }

    /// A sentence for people.
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
