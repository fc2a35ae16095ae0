//! Why a record was not produced, classified by the producer.

use std::sync::Arc;

/// What a failure implies for a retry. Ordered by precedence, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The broker refused the record's batch, and any record in it may be the reason: only a resend alone can tell.
    Batch,
    /// The cluster or the client cannot accept it now; a retry may succeed.
    Cluster,
    /// The topic is missing, or the service may not write to it; succeeds once an operator acts.
    Target,
    /// The record itself is refused, however often it is retried.
    Record,
}

/// Why a record was not produced, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmitFailure {
    /// What it implies for a retry.
    pub kind: FailureKind,
    /// The record's target topic.
    pub topic: Arc<str>,
    /// The client's error text.
    pub error: Arc<str>,
    /// What an operator can do about it, with the name of the setting.
    pub remedy: Arc<str>,
}

impl EmitFailure {
    /// The producer's queue has no room for the record.
    pub fn no_room(topic: &str) -> Self {
        Self {
            kind: FailureKind::Cluster,
            topic: topic.into(),
            error: "the producer's queue is full".into(),
            remedy:
                "it is resent when acknowledgements have freed space; if none arrive, check the \
                     cluster"
                    .into(),
        }
    }

    /// The producer ended without an answer for the record.
    pub fn unanswered(topic: &str) -> Self {
        Self {
            kind: FailureKind::Cluster,
            topic: topic.into(),
            error: "the producer ended before the record was acknowledged".into(),
            remedy: "it is resent automatically".into(),
        }
    }
}

impl std::fmt::Display for EmitFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot produce to {}: {}; {}",
            self.topic, self.error, self.remedy
        )
    }
}
