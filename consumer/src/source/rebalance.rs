//! What librdkafka waits for after a rebalance, and when it can be answered. Pure.
//!
//! ```text
//!   ─ Assign(P) ──► owes an assign ── start(p) for every p of P ──► answer: assign P with offsets
//!   ─ Revoke(P) ──► owes an unassign ── release(p) for every p of P ──► answer: unassign P
//! ```
//!
//! The group waits in librdkafka's states `wait-assign-call` and `wait-unassign-call` for as long as it takes and
//! hands out no second rebalance meanwhile (rdkafka_cgrp.c: `RD_KAFKA_CGRP_REBALANCING` skips them), so a drain may
//! lie between event and answer; heartbeats go on. It wants one call for the whole list: the first
//! `incremental_unassign` lets the member rejoin.

use super::{StartAt, TopicPartition};

/// What to tell librdkafka.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Assign these, each from where it starts.
    Assign(Vec<(TopicPartition, StartAt)>),
    /// Unassign these.
    Unassign(Vec<TopicPartition>),
}

/// The rebalance that is not answered yet, if any.
#[derive(Debug, Default)]
pub(super) struct Rebalance {
    owed: Owed,
}

#[derive(Debug, Default)]
enum Owed {
    #[default]
    Nothing,
    Assign {
        partitions: Vec<TopicPartition>,
        started: Vec<(TopicPartition, StartAt)>,
    },
    Unassign {
        partitions: Vec<TopicPartition>,
        released: Vec<TopicPartition>,
    },
}

impl Rebalance {
    pub(super) fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.owed = Owed::Assign {
            partitions,
            started: Vec::new(),
        };
    }

    pub(super) fn revoked(&mut self, partitions: Vec<TopicPartition>) {
        self.owed = Owed::Unassign {
            partitions,
            released: Vec::new(),
        };
    }

    /// Whether librdkafka waits for a call.
    pub(super) fn is_owed(&self) -> bool {
        !matches!(self.owed, Owed::Nothing)
    }

    /// Whether the pending assignment has this partition.
    pub(super) fn waits_for_start(&self, at: &TopicPartition) -> bool {
        matches!(&self.owed, Owed::Assign { partitions, .. } if partitions.contains(at))
    }

    /// The pump knows where a partition starts (the last word counts).
    pub(super) fn start(&mut self, at: &TopicPartition, from: StartAt) {
        if let Owed::Assign { started, .. } = &mut self.owed {
            started.retain(|(other, _)| other != at);
            started.push((at.clone(), from));
        }
    }

    /// The pump has let go of a partition.
    pub(super) fn release(&mut self, at: &TopicPartition) {
        if let Owed::Unassign {
            partitions,
            released,
        } = &mut self.owed
            && partitions.contains(at)
            && !released.contains(at)
        {
            released.push(at.clone());
        }
    }

    /// The answer, once every partition of the rebalance is dealt with. It stays due until [`Self::answered`].
    pub(super) fn answer(&self) -> Option<Answer> {
        match &self.owed {
            Owed::Assign {
                partitions,
                started,
            } if started.len() == partitions.len() => Some(Answer::Assign(started.clone())),
            Owed::Unassign {
                partitions,
                released,
            } if released.len() == partitions.len() => Some(Answer::Unassign(released.clone())),
            _ => None,
        }
    }

    /// The answer was given.
    pub(super) fn answered(&mut self) {
        self.owed = Owed::Nothing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "t".into(),
            partition,
        }
    }

    #[test]
    fn an_assign_is_answered_once_with_every_partition_and_its_start() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(vec![at(0), at(1)]);
        rebalance.start(&at(0), StartAt::Offset(5));
        assert_eq!(rebalance.answer(), None, "partition 1 has no start yet");
        rebalance.start(&at(1), StartAt::Earliest);
        rebalance.start(&at(0), StartAt::Offset(7));
        let all = vec![(at(1), StartAt::Earliest), (at(0), StartAt::Offset(7))];
        assert_eq!(rebalance.answer(), Some(Answer::Assign(all)));
        rebalance.answered();
        assert_eq!(rebalance.answer(), None);
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
    fn an_empty_rebalance_is_answered_at_once() {
        let mut rebalance = Rebalance::default();
        rebalance.assigned(Vec::new());
        assert_eq!(rebalance.answer(), Some(Answer::Assign(Vec::new())));
        rebalance.revoked(Vec::new());
        assert_eq!(rebalance.answer(), Some(Answer::Unassign(Vec::new())));
    }
}
