//! The pump's periodic checks, about once per second: log ends, partitions without a leader, group membership, and errors
//! that have expired.

use std::collections::{BTreeMap, BTreeSet};

use sluicegate_engine::source::{AssignmentId, FetchState, PartitionFault};

use super::Pump;

/// Interval between two rounds.
const CHECK_INTERVAL_MS: u64 = 1_000;
/// A partition without a leader is reported after this time: elections take a few seconds.
const ELECTION_TIMEOUT_MS: u64 = 5_000;
/// Interval between queries for the log ends of partitions that are not fetched: the client learns an end only by fetching.
const END_QUERY_INTERVAL_MS: u64 = 10_000;

/// State of the periodic checks.
#[derive(Default)]
pub(super) struct Attention {
    last_round_ms: Option<u64>,
    /// Partitions without a leader, each with the time it was first seen without one.
    leaderless: BTreeMap<AssignmentId, u64>,
    /// Partitions that are not fetched: when that began or when their end was last queried, and the last known end.
    paused: BTreeMap<AssignmentId, (u64, Option<i64>)>,
}

impl Attention {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn is_due(&mut self, now_ms: u64) -> bool {
        let due = |last_ms: u64| now_ms.saturating_sub(last_ms) >= CHECK_INTERVAL_MS;
        if !self.last_round_ms.is_none_or(due) {
            return false;
        }
        self.last_round_ms = Some(now_ms);
        true
    }
}

impl Pump {
    /// Runs one round if it is due.
    pub(super) fn run_checks(&mut self) {
        let now_ms = self.now_ms();
        if self.client.membership_query_due(now_ms) {
            let membership = self.source.membership();
            self.client.membership(membership, now_ms);
        }
        self.has_joined |= self.client.is_member() && self.starting.is_reported();
        if !self.attention.is_due(now_ms) {
            return;
        }
        self.client.forget_old(now_ms);
        self.flow.log_suppressed(false);
        self.report_overdue_starts(now_ms);
        let slots: BTreeSet<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        for &slot in &slots {
            let end = self.end_offset(slot);
            self.flow.record_end(slot, end);
            self.check_leader(slot, now_ms);
        }
        self.attention
            .leaderless
            .retain(|slot, _| slots.contains(slot));
        self.query_ends(&slots, now_ms);
    }

    /// Queries the ends of partitions that are not fetched, so that their reported lag keeps growing with the log.
    fn query_ends(&mut self, slots: &BTreeSet<AssignmentId>, now_ms: u64) {
        let paused = &mut self.attention.paused;
        paused.retain(|slot, _| slots.contains(slot) && !self.flow.is_fetched(*slot));
        let mut due = Vec::new();
        for &slot in slots {
            if self.flow.is_fetched(slot) {
                continue;
            }
            let (since_ms, _) = paused.entry(slot).or_insert((now_ms, None));
            if now_ms.saturating_sub(*since_ms) >= END_QUERY_INTERVAL_MS {
                *since_ms = now_ms;
                due.push(self.flow.assignment(slot).at.clone());
            }
        }
        if !due.is_empty() {
            self.source.ask_bounds(&due);
        }
    }

    /// Records the queried end of a partition.
    pub(super) fn record_queried_end(&mut self, slot: AssignmentId, end: i64) {
        if let Some((_, known)) = self.attention.paused.get_mut(&slot) {
            *known = Some(end);
        }
    }

    /// Records the end of a partition whose fetching stops now, so that its lag is known before the first query.
    pub(super) fn record_end_of_unfetched(&mut self, slot: AssignmentId, end: i64) {
        let now_ms = self.now_ms();
        self.attention.paused.insert(slot, (now_ms, Some(end)));
    }

    /// The last queried end of a partition that is not fetched.
    pub(super) fn queried_end(&self, slot: AssignmentId) -> Option<i64> {
        self.attention.paused.get(&slot)?.1
    }

    /// Reports a partition without a leader: librdkafka raises no error for it, it only stops fetching.
    pub(super) fn check_leader(&mut self, slot: AssignmentId, now_ms: u64) {
        if self.source.fetch_state(slot) != FetchState::NoLeader {
            self.attention.leaderless.remove(&slot);
            return;
        }
        let since_ms = *self.attention.leaderless.entry(slot).or_insert(now_ms);
        let at = &self.flow.assignment(slot).at;
        if now_ms.saturating_sub(since_ms) >= ELECTION_TIMEOUT_MS && self.flow.is_read(at, slot) {
            let remedy = "restore the brokers that host it, or check their log directories; if its topic was deleted, remove it from the routes or create it again";
            self.cannot_read(slot, "the partition has no leader", remedy);
            // Cleared like a restored permission: once the client fetches again.
            self.watch(slot, PartitionFault::Denied);
        }
    }
}
