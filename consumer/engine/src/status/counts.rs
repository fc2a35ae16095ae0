//! Counts of what became of records and commits, and the last error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Outcomes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutcomeCounts {
    /// Done.
    pub ack: u64,
    /// Attempts that will be followed by another one.
    pub retry: u64,
    /// Dead-lettered.
    pub dead_letter: u64,
    /// Dropped by the handler or by policy.
    pub drop: u64,
    /// Skipped while the gate was closed.
    pub skipped: u64,
}

impl OutcomeCounts {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.ack += other.ack;
        self.retry += other.retry;
        self.dead_letter += other.dead_letter;
        self.drop += other.drop;
        self.skipped += other.skipped;
    }

    /// Metric label values with their counts.
    pub fn by_name(&self) -> [(&'static str, u64); 5] {
        [
            ("ack", self.ack),
            ("retry", self.retry),
            ("dead_letter", self.dead_letter),
            ("drop", self.drop),
            ("skipped", self.skipped),
        ]
    }

    /// Settled records: everything except retries.
    pub fn settled(&self) -> u64 {
        self.ack + self.dead_letter + self.drop + self.skipped
    }
}

/// Commits by result, counted per partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommitCounts {
    /// Accepted.
    pub ok: u64,
    /// Refused for this partition in a response.
    pub refused: u64,
    /// Failed as a whole, or never answered.
    pub failed: u64,
}

/// An error and its time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastError {
    /// In milliseconds since the epoch.
    pub at_ms: i64,
    /// What failed and why.
    pub message: String,
}
