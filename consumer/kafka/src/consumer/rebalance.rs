//! Tracks the rebalance that librdkafka waits for, and decides when it can be answered. Pure.
//!
//! ```text
//!   ─ Assign(P) ──► owes an assign ── start(p) or defer(p) for every p of P ──► answer: assign what was started
//!   ─ start(p) of a deferred p ──► a further assign
//!   ─ Revoke(P) ──► owes an unassign ── release(p) for every p of P ──► answer: unassign what was assigned
//! ```
//!
//! The group waits in librdkafka's states `wait-assign-call` and `wait-unassign-call` for as long as it takes and
//! delivers no second rebalance until then (rdkafka_cgrp.c: `RD_KAFKA_CGRP_REBALANCING` skips them), so a drain may lie
//! between event and answer; heartbeats continue. It expects one call for the whole list: the first
//! `incremental_unassign` lets the member rejoin, with partitions that still drain.
//!
//! A partition whose start offset is unknown is deferred: left out of the answer and assigned later, because the others
//! must not wait for it (G8). librdkafka does not know such a partition, and rejects an unassign that names it. An
//! assign that librdkafka refuses for the moment stays due and is retried, because the group waits for it.

use std::collections::HashSet;

use sluicegate_engine::source::{StartAt, TopicPartition};

/// A partition, and where librdkafka is to start reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) at: TopicPartition,
    pub(super) from: StartAt,
    /// Leader epoch of the record before it, if known.
    pub(super) leader_epoch: Option<i32>,
}

/// The answer to librdkafka.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Assign these, each from its start.
    Assign(Vec<Begin>),
    /// Unassign these.
    Unassign(Vec<TopicPartition>),
}

/// The pending rebalance, if any.
#[derive(Debug, Default)]
pub(super) struct Rebalance {
    pending: PendingRebalance,
    /// Owned partitions that were left out of the answer because their start is unknown.
    deferred: Vec<TopicPartition>,
    /// The partitions that the group has assigned and not revoked, answered or not.
    owned: HashSet<TopicPartition>,
}

#[derive(Debug, Default)]
enum PendingRebalance {
    #[default]
    Nothing,
    Assign {
        partitions: Vec<TopicPartition>,
        started: Vec<Begin>,
    },
    Unassign {
        partitions: Vec<TopicPartition>,
        released: Vec<TopicPartition>,
    },
}

impl Rebalance {
    pub(super) fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.deferred.retain(|at| !partitions.contains(at));
        self.owned.extend(partitions.iter().cloned());
        self.pending = PendingRebalance::Assign {
            partitions,
            started: Vec::new(),
        };
    }

    pub(super) fn revoked(&mut self, mut partitions: Vec<TopicPartition>) {
        for at in &partitions {
            self.owned.remove(at);
        }
        // librdkafka does not know these, and rejects an unassign of them.
        partitions.retain(|at| !self.deferred.contains(at));
        self.pending = PendingRebalance::Unassign {
            partitions,
            released: Vec::new(),
        };
    }

    /// Whether librdkafka waits for a call.
    pub(super) fn is_pending(&self) -> bool {
        !matches!(self.pending, PendingRebalance::Nothing)
    }

    /// Whether the group has assigned any partition that it has not revoked.
    pub(super) fn owns_any(&self) -> bool {
        !self.owned.is_empty()
    }

    /// Whether the pending assignment contains this partition.
    pub(super) fn waits_for_start(&self, at: &TopicPartition) -> bool {
        matches!(&self.pending, PendingRebalance::Assign { partitions, .. } if partitions.contains(at))
    }

    /// Sets where a partition starts (the last call counts). Returns it if it was deferred: it is then to be assigned
    /// on its own.
    pub(super) fn start(&mut self, begin: Begin) -> Option<Begin> {
        if let Some(place) = self.deferred.iter().position(|at| *at == begin.at) {
            self.deferred.swap_remove(place);
            return Some(begin);
        }
        if let PendingRebalance::Assign { started, .. } = &mut self.pending {
            started.retain(|other| other.at != begin.at);
            started.push(begin);
        }
        None
    }

    /// Leaves the partitions that `is_unknown` selects, whose start is not known yet, out of the answer.
    pub(super) fn defer(&mut self, is_unknown: impl Fn(&TopicPartition) -> bool) {
        if let PendingRebalance::Assign { partitions, .. } = &mut self.pending {
            let (deferred, kept) = std::mem::take(partitions)
                .into_iter()
                .partition(|at| is_unknown(at));
            *partitions = kept;
            self.deferred.extend::<Vec<_>>(deferred);
        }
    }

    /// Whether librdkafka waits for an assign.
    pub(super) fn owes_assign(&self) -> bool {
        matches!(self.pending, PendingRebalance::Assign { .. })
    }

    /// Whether a partition is owned without librdkafka knowing it.
    pub(super) fn is_deferred(&self, at: &TopicPartition) -> bool {
        self.deferred.contains(at)
    }

    /// The pump has released a partition.
    pub(super) fn release(&mut self, at: &TopicPartition) {
        self.deferred.retain(|other| other != at);
        if let PendingRebalance::Unassign {
            partitions,
            released,
        } = &mut self.pending
            && partitions.contains(at)
            && !released.contains(at)
        {
            released.push(at.clone());
        }
    }

    /// The answer, once every partition of the rebalance is resolved. It stays due until [`Self::answered`].
    pub(super) fn answer(&self) -> Option<Answer> {
        match &self.pending {
            PendingRebalance::Assign {
                partitions,
                started,
            } if started.len() == partitions.len() => Some(Answer::Assign(started.clone())),
            PendingRebalance::Unassign {
                partitions,
                released,
            } if released.len() == partitions.len() => Some(Answer::Unassign(released.clone())),
            _ => None,
        }
    }

    /// The answer was sent.
    pub(super) fn answered(&mut self) {
        self.pending = PendingRebalance::Nothing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn begin(partition: i32, from: StartAt) -> Begin {
        Begin {
            at: at(partition),
            from,
            leader_epoch: None,
        }
    }

    #[test]
    fn an_assign_is_answered_once_with_every_partition_and_its_start() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(vec![at(0), at(1)]);
        rebalance.start(begin(0, StartAt::Offset(5)));
        assert_eq!(rebalance.answer(), None, "partition 1 has no start yet");
        rebalance.start(begin(1, StartAt::Earliest));
        rebalance.start(begin(0, StartAt::Offset(7)));
        let all = vec![begin(1, StartAt::Earliest), begin(0, StartAt::Offset(7))];
        assert_eq!(rebalance.answer(), Some(Answer::Assign(all)));
        rebalance.answered();
        assert_eq!(rebalance.answer(), None);
    }

    #[test]
    fn an_unresolved_partition_delays_no_other_and_is_assigned_later() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(vec![at(0), at(1), at(2)]);
        rebalance.start(begin(0, StartAt::Earliest));
        rebalance.defer(|other| other.partition > 0);
        let known = vec![begin(0, StartAt::Earliest)];
        assert_eq!(rebalance.answer(), Some(Answer::Assign(known)));
        rebalance.answered();
        assert!(rebalance.is_deferred(&at(1)) && !rebalance.is_deferred(&at(0)));
        let late = begin(1, StartAt::Offset(3));
        assert_eq!(rebalance.start(late.clone()), Some(late));
        rebalance.revoked(vec![at(0), at(1), at(2)]);
        rebalance.release(&at(2));
        rebalance.release(&at(0));
        rebalance.release(&at(1));
        let told = vec![at(0), at(1)];
        assert_eq!(rebalance.answer(), Some(Answer::Unassign(told)));
    }

    #[test]
    fn a_revoke_is_answered_when_the_last_partition_has_drained() {
        let mut rebalance = Rebalance::default();
        rebalance.revoked(vec![at(0), at(1)]);
        rebalance.release(&at(1));
        rebalance.release(&at(1));
        rebalance.release(&at(9));
        assert_eq!(rebalance.answer(), None, "partition 0 still drains");
        rebalance.release(&at(0));
        let all = vec![at(1), at(0)];
        assert_eq!(rebalance.answer(), Some(Answer::Unassign(all)));
    }

    #[test]
    fn a_partition_is_owned_until_the_group_revokes_it() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(Vec::new());
        assert!(!rebalance.owns_any());
        rebalance.assigned(vec![at(0), at(1)]);
        rebalance.revoked(vec![at(1)]);
        assert!(rebalance.owns_any());
        rebalance.revoked(vec![at(0)]);
        assert!(!rebalance.owns_any(), "whether released or not");
    }

    #[test]
    fn an_empty_rebalance_is_answered_at_once() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(Vec::new());
        assert_eq!(rebalance.answer(), Some(Answer::Assign(Vec::new())));
        rebalance.revoked(Vec::new());
        assert_eq!(rebalance.answer(), Some(Answer::Unassign(Vec::new())));
    }
}
