//! Outcomes of a handler's records by kind, apart for each version of its plugin.

use std::sync::Arc;

use super::targets::GenerationId;
use crate::status::OutcomeCounts;

/// Versions whose counters are kept besides the present one's.
const MAX_EARLIER_VERSIONS: usize = 16;

/// Counters by version of the plugin: a counter belongs to the code that ran.
#[derive(Default)]
pub(super) struct VersionCounts {
    /// The present version's last; before it the others, the latest last. A version that returns counts on.
    versions: Vec<(Arc<str>, OutcomeCounts)>,
}

impl VersionCounts {
    /// `version` is the present one from now on.
    pub(super) fn count_for(&mut self, version: &Arc<str>) {
        let known = self.versions.iter().position(|(known, _)| known == version);
        let counts = match known {
            Some(place) => self.versions.remove(place).1,
            None => OutcomeCounts::default(),
        };
        if self.versions.len() > MAX_EARLIER_VERSIONS {
            self.versions.remove(0);
        }
        self.versions.push((version.clone(), counts));
    }

    /// The counters for what this generation ran: the present version's, if its own are not kept any more.
    pub(super) fn of(&mut self, generation: &GenerationId) -> &mut OutcomeCounts {
        let is_its = |(version, _): &(Arc<str>, OutcomeCounts)| *version == generation.version;
        let place = self.versions.iter().rposition(is_its);
        if self.versions.is_empty() {
            self.versions.push(Default::default());
        }
        let last = self.versions.len() - 1;
        &mut self.versions[place.unwrap_or(last)].1
    }

    /// Records settled by the handler, by all versions.
    pub(super) fn settled(&self) -> u64 {
        let counts = self.versions.iter().map(|(_, counts)| counts);
        counts
            .map(|counts| counts.ack + counts.drop + counts.dead_letter)
            .sum()
    }

    /// The versions with their counters, the present one last.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(Arc<str>, OutcomeCounts)> {
        self.versions.iter()
    }
}
