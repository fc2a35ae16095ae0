//! Outcomes of a handler's records by kind, apart for each version of its plugin.

use std::sync::Arc;

/// Outcomes by kind, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    /// Succeeded.
    pub ack: u64,
    /// Attempts that are followed by another one.
    pub retry: u64,
    /// Dead-lettered, with the dead letter acknowledged.
    pub dead_letter: u64,
    /// Dropped by the handler with a reason.
    pub drop: u64,
    /// Passed by a closed gate.
    pub skipped: u64,
    /// Attempts that ended in a panic.
    pub panics: u64,
    /// Calls that exceeded their timeout.
    pub timeouts: u64,
}

/// Versions whose counters are kept besides the present one's.
const MAX_EARLIER_VERSIONS: usize = 16;

/// Counters by version of the plugin: a counter belongs to the code that ran.
#[derive(Default)]
pub(super) struct VersionCounts {
    /// The present version's.
    pub(super) now: OutcomeCounts,
    /// Those of versions before it, the latest last; a version that returns counts on.
    pub(super) earlier: Vec<(Arc<str>, OutcomeCounts)>,
}

impl VersionCounts {
    /// Counts for `version` from now on, and not for `before` any more.
    pub(super) fn count_for(&mut self, before: &Arc<str>, version: &str) {
        let known = self
            .earlier
            .iter()
            .position(|(known, _)| **known == *version);
        let next = known.map_or_else(OutcomeCounts::default, |place| self.earlier.remove(place).1);
        let counts = std::mem::replace(&mut self.now, next);
        if self.earlier.len() == MAX_EARLIER_VERSIONS {
            self.earlier.remove(0);
        }
        self.earlier.push((before.clone(), counts));
    }
}
