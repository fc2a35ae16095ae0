//! What the client knows about owned partitions, taken over about once per second: log ends, partitions without a
//! leader, errors that have expired.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::event::{Effect, Observation};
use crate::record::Record;
use crate::source::AssignmentId;

/// Interval between two observations.
const INTERVAL_MS: u64 = 1_000;
/// Interval between queries for the log ends of partitions that are not fetched: the client learns an end only by fetching.
const END_QUERY_INTERVAL_MS: u64 = 10_000;

/// State of the observations.
#[derive(Default)]
pub(crate) struct Observations {
    last_ms: Option<u64>,
    /// Partitions that are not fetched: when that began or when their end was last queried, and the last known end.
    unfetched: BTreeMap<AssignmentId, (u64, Option<i64>)>,
}

impl Observations {
    /// Forgets everything: the next observation is due at once.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the next observation is due.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        let due = |last_ms: u64| now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
        self.last_ms.is_none_or(due)
    }

    /// Records the queried end of a partition, if it is not fetched.
    pub(crate) fn record_queried_end(&mut self, slot: AssignmentId, end: i64) {
        if let Some((_, known)) = self.unfetched.get_mut(&slot) {
            *known = Some(end);
        }
    }

    /// Records the end of a partition whose fetching stops now, so that its lag is known before the first query.
    pub(crate) fn record_end(&mut self, slot: AssignmentId, now_ms: u64, end: i64) {
        self.unfetched.insert(slot, (now_ms, Some(end)));
    }

    /// The last queried end of a partition that is not fetched.
    pub(crate) fn queried_end(&self, slot: AssignmentId) -> Option<i64> {
        self.unfetched.get(&slot)?.1
    }
}

impl<R: Record> Engine<R> {
    /// Whether [`Event::Observed`](crate::event::Event::Observed) is due.
    pub fn observation_due(&self) -> bool {
        self.observations.is_due(self.now_ms)
    }

    pub(crate) fn observed(&mut self, observations: &[Observation]) {
        let now_ms = self.now_ms;
        self.observations.last_ms = Some(now_ms);
        self.flow.log_suppressed(false);
        self.report_overdue_lookups();
        for one in observations {
            let end = one.end.max(self.observations.queried_end(one.slot));
            self.flow.record_end(one.slot, end);
            self.check_leader(one.slot, one.fetch);
            self.expire_fault(one.slot, one.fetch);
        }
        self.query_ends();
    }

    /// Queries the ends of partitions that are not fetched, so that their reported lag keeps growing with the log.
    fn query_ends(&mut self) {
        let now_ms = self.now_ms;
        let slots: BTreeSet<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        let unfetched = &mut self.observations.unfetched;
        unfetched.retain(|slot, _| slots.contains(slot) && !self.flow.is_fetched(*slot));
        let mut due = Vec::new();
        for slot in slots {
            if self.flow.is_fetched(slot) {
                continue;
            }
            let (since_ms, _) = unfetched.entry(slot).or_insert((now_ms, None));
            if now_ms.saturating_sub(*since_ms) >= END_QUERY_INTERVAL_MS {
                *since_ms = now_ms;
                due.push(self.flow.assignment(slot).at().clone());
            }
        }
        if !due.is_empty() {
            self.effects.push_back(Effect::AskBounds(due));
        }
    }
}
