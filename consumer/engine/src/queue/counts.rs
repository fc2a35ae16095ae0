//! Outcomes of a handler's records by kind, apart for each version of its plugin.

use std::sync::Arc;

use crate::status::OutcomeCounts;

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
