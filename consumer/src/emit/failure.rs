//! Why a record was not produced, judged where it is known: at the producer.

use std::sync::Arc;

/// What a failure says of a further try. In the order in which they outrank each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The broker refused the batch that the record was in, and any record of it may be the reason: only a try alone
    /// tells.
    Batch,
    /// The cluster or the client cannot take it now: a later try may pass.
    Cluster,
    /// The topic is missing, or the service may not write to it: passes once an operator acts.
    Target,
    /// The record itself is refused as it is, however often it is tried.
    Record,
}

/// Why a record was not produced, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmitFailure {
    /// What it says of a further try.
    pub kind: FailureKind,
    /// The topic that the record is for.
    pub topic: Arc<str>,
    /// What happened, in the client's words.
    pub error: Arc<str>,
    /// What an operator can do about it, the setting named.
    pub remedy: Arc<str>,
}

impl EmitFailure {
    /// There was no room for the record in the producer's queue.
    pub fn no_room(topic: &str) -> Self {
        Self {
            kind: FailureKind::Cluster,
            topic: topic.into(),
            error: "the producer's queue is full".into(),
            remedy: "it is sent again when acknowledgements have made room; if they do not come, look after the \
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
            remedy: "it is sent again".into(),
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
