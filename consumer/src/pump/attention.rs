//! What the pump looks after about once a second: the ends of logs, partitions without a leader, the membership, and what
//! is over.

use std::collections::{BTreeMap, BTreeSet};

use super::Pump;
use crate::source::{AssignmentId, FetchState, PartitionFault};

/// Between two rounds, in milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// An election of a leader may take so long.
const ELECTION_MS: u64 = 5_000;
/// The client hears nothing of the ends of partitions that it does not fetch: they are asked for this often.
const ENDS_MS: u64 = 10_000;

/// When the pump looked last, and what it saw.
#[derive(Default)]
pub(super) struct Attention {
    looked_ms: Option<u64>,
    /// Partitions without a leader, and since when.
    leaderless: BTreeMap<AssignmentId, u64>,
    /// Partitions that are not fetched, since when or since they were asked about, and their ends when these were told.
    paused: BTreeMap<AssignmentId, (u64, Option<i64>)>,
}

impl Attention {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn is_due(&mut self, now_ms: u64) -> bool {
        let due = |last_ms: u64| now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
        if !self.looked_ms.is_none_or(due) {
            return false;
        }
        self.looked_ms = Some(now_ms);
        true
    }
}

impl Pump {
    /// One round, if it is due.
    pub(super) fn look_after(&mut self) {
        let now_ms = self.now_ms();
        if self.client.asks_for_membership(now_ms) {
            let membership = self.source.membership();
            self.client.membership(membership, now_ms);
        }
        self.has_joined |= self.client.is_member() && self.starting.is_told();
        if !self.attention.is_due(now_ms) {
            return;
        }
        self.client.forget_old(now_ms);
        self.flow.log_untold(false);
        self.look_after_starting(now_ms);
        let slots: BTreeSet<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        for &slot in &slots {
            let end = self.end_offset(slot);
            self.flow.note_end(slot, end);
            self.look_for_leader(slot, now_ms);
        }
        self.attention
            .leaderless
            .retain(|slot, _| slots.contains(slot));
        self.ask_for_ends(&slots, now_ms);
    }

    /// Lag goes on being true of partitions that are not fetched, which is when it matters.
    fn ask_for_ends(&mut self, slots: &BTreeSet<AssignmentId>, now_ms: u64) {
        let paused = &mut self.attention.paused;
        paused.retain(|slot, _| slots.contains(slot) && !self.flow.is_fetched(*slot));
        let mut due = Vec::new();
        for &slot in slots {
            if self.flow.is_fetched(slot) {
                continue;
            }
            let (since_ms, _) = paused.entry(slot).or_insert((now_ms, None));
            if now_ms.saturating_sub(*since_ms) >= ENDS_MS {
                *since_ms = now_ms;
                due.push(self.flow.assignment(slot).at.clone());
            }
        }
        if !due.is_empty() {
            self.source.ask_bounds(&due);
        }
    }

    /// The end of a partition was told.
    pub(super) fn note_asked_end(&mut self, slot: AssignmentId, end: i64) {
        if let Some((_, known)) = self.attention.paused.get_mut(&slot) {
            *known = Some(end);
        }
    }

    /// The end of a partition that is not fetched from now on: the next question is some time away.
    pub(super) fn note_end_of_unfetched(&mut self, slot: AssignmentId, end: i64) {
        let now_ms = self.now_ms();
        self.attention.paused.insert(slot, (now_ms, Some(end)));
    }

    /// The end of a partition that is not fetched, when it was asked for last.
    pub(super) fn asked_end(&self, slot: AssignmentId) -> Option<i64> {
        self.attention.paused.get(&slot)?.1
    }

    /// librdkafka says nothing of a partition whose leader is gone: it is just not read.
    pub(super) fn look_for_leader(&mut self, slot: AssignmentId, now_ms: u64) {
        if self.source.fetch_state(slot) != FetchState::NoLeader {
            self.attention.leaderless.remove(&slot);
            return;
        }
        let since_ms = *self.attention.leaderless.entry(slot).or_insert(now_ms);
        let at = &self.flow.assignment(slot).at;
        if now_ms.saturating_sub(since_ms) >= ELECTION_MS && self.flow.is_read(at, slot) {
            let remedy = "bring back the brokers that hold it, or look at their log folders; if its topic was deleted, take it out of the routes, or create it again";
            self.cannot_read(slot, "the partition has no leader", remedy);
            // A leader that is found again clears it like a right that is given back.
            self.watch(slot, PartitionFault::Denied);
        }
    }
}
