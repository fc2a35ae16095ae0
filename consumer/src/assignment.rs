//! One partition's life with us: `Assigned → Draining → Released`, under one epoch (G5).

use std::collections::VecDeque;

use sluicegate_abi::TopicName;
use sluicegate_runtime::RecordPlace;

use crate::commit::{CommitNote, Place, TopicUuid};
use crate::flow::budget::Usage;
use crate::ledger::Ledger;
use crate::routing::TopicPlanId;
use crate::source::{Delivery, TopicPartition};
use crate::trouble::Trouble;

/// Changes of the leader epoch that are remembered between frontier and newest record: a bound against a broken log.
const MAX_EPOCH_CHANGES: usize = 64;

/// A record of a full partition, and what it is charged with until it is let in.
pub struct InHand {
    /// The record.
    pub delivery: Delivery,
    /// Bytes of the budget (G8).
    pub charge: u64,
}

/// Where an assignment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Records are admitted.
    Assigned,
    /// It is being given back: nothing new starts, what runs may finish until the deadline.
    Draining {
        /// On the flow's clock, in milliseconds.
        deadline_ms: u64,
    },
    /// It is gone: outcomes that still come are discarded.
    Released,
}

/// What a partition's assignment begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAssignment {
    /// The partition.
    pub at: TopicPartition,
    /// The topic that it is a partition of.
    pub topic_id: TopicUuid,
    /// First offset to read.
    pub start: i64,
    /// Fencing token.
    pub epoch: u32,
    /// Whether the token must be committed before the first record runs (see [`crate::commit::next_epoch`]).
    pub token_first: bool,
    /// Leader epoch of the record before `start`, as committed.
    pub leader_epoch: Option<i32>,
    /// What the last owner left of its own: the finished offsets and their leader epoch.
    pub inherited: CommitNote,
}

impl NewAssignment {
    /// A partition that nobody has owned before.
    pub fn first(at: TopicPartition, start: i64, epoch: u32) -> Self {
        Self {
            at,
            topic_id: TopicUuid::default(),
            start,
            epoch,
            token_first: false,
            leader_epoch: None,
            inherited: CommitNote::default(),
        }
    }
}

/// The leader epochs of the records that were delivered: where each began.
#[derive(Debug, Default)]
pub struct LeaderEpochs {
    changes: VecDeque<(i64, i32)>,
}

impl LeaderEpochs {
    /// A record of `epoch` came; negative: the broker gives none.
    pub fn note(&mut self, offset: i64, epoch: i32) {
        if self.changes.back().map(|(_, last)| *last) != Some(epoch) {
            if self.changes.len() == MAX_EPOCH_CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back((offset, epoch));
        }
    }

    /// The leader epoch of the newest record at or before `offset`, if it is known.
    pub fn at(&self, offset: i64) -> Option<i32> {
        let before = self.changes.iter().rev().find(|(from, _)| *from <= offset);
        before.map(|(_, epoch)| *epoch).filter(|epoch| *epoch >= 0)
    }

    /// Nothing before `offset` is asked for any more.
    pub fn forget_before(&mut self, offset: i64) {
        while self.changes.get(1).is_some_and(|(from, _)| *from <= offset) {
            self.changes.pop_front();
        }
    }
}

/// A partition that is, or was, ours.
pub struct Assignment {
    /// The partition.
    pub at: TopicPartition,
    /// Its topic's name, which records that are lent to calls point to.
    pub topic: TopicName<'static>,
    /// The topic that it is a partition of: offsets mean nothing in another one (G2).
    pub topic_id: TopicUuid,
    /// Fencing token: higher than that of every earlier owner of the partition, while the group exists (G4). Tokens of
    /// different partitions say nothing of each other.
    pub epoch: u32,
    /// No record of it may start any more, and no outcome of one that runs counts (G5): it is given back, or about to be.
    pub fenced: bool,
    /// Whether a record may run before the token is committed.
    pub token_first: bool,
    /// Whether a commit with our token was accepted.
    pub token_kept: bool,
    /// Leader epochs from the frontier on.
    pub leader_epochs: LeaderEpochs,
    /// Leader epoch of the last record that an earlier owner finished. A record above it that the ledger takes for
    /// finished is another one: the log was cut off below it and written again.
    pub finished_leader_epoch: i32,
    /// Where it stands.
    pub state: AssignmentState,
    /// Its offsets.
    pub ledger: Ledger,
    /// Which routes can match its topic.
    pub plan: TopicPlanId,
    /// The offset that the group has committed, as far as acknowledged.
    pub committed: i64,
    /// Metadata of the last acknowledged commit.
    pub committed_metadata: String,
    /// Records that came while there was no room, in order.
    pub overflow: VecDeque<InHand>,
    /// What they are charged with, in bytes.
    pub overflow_bytes: u64,
    /// Since when records have had to wait for room, on the flow's clock.
    pub full_since_ms: Option<u64>,
    /// Whether its fetching is stopped.
    pub paused: bool,
    /// Why nothing of it is handled any more, if so (G12, G13).
    pub stopped: Option<Trouble>,
    /// Why nothing of it can be read at present, if so.
    pub unreadable: Option<Trouble>,
    /// One past the last offset of its log, as the client knew it last.
    pub end: Option<i64>,
    /// The offset that is due, and since when the log has it and it does not come.
    pub awaited: Option<(i64, u64)>,
    /// Live slab entries of it.
    pub entries: u32,
    /// Records delivered.
    pub delivered: u64,
    /// Repeats dropped.
    pub repeats: u64,
    /// When the frontier moved last, on the flow's clock.
    pub moved_ms: u64,
    /// When a record came that was the only one to wait for, on the flow's clock.
    pub begun_ms: u64,
    /// When it was assigned, on the flow's clock.
    pub assigned_ms: u64,
    /// What it takes of the byte budget.
    pub usage: Usage,
}

impl Assignment {
    /// Since when the frontier has had something to wait for, where it has.
    pub fn waits_since_ms(&self) -> u64 {
        self.moved_ms.max(self.begun_ms)
    }

    /// Settles a record that no handler wants. Behind one that is held it moves nothing.
    pub fn pass_by(&mut self, offset: i64, now_ms: u64) {
        let before = self.ledger.frontier();
        self.ledger.settle(offset);
        if self.ledger.frontier() != before {
            self.moved_ms = now_ms;
        }
    }

    /// Whether its records may start.
    pub fn admits(&self) -> bool {
        self.state == AssignmentState::Assigned && self.stopped.is_none()
    }

    /// Whether a record may be let in: the fencing token is committed if it must be (G4), and the cap is not reached (G3).
    pub fn has_room(&self, max_uncommitted: i64) -> bool {
        (self.token_kept || !self.token_first) && self.uncommitted() < max_uncommitted
    }

    /// A record at `offset` comes from a later leader than any record that the last owner finished: at and beyond it
    /// the log was cut off and written again, and what was finished there were other records.
    /// `false`: nothing finished was left there.
    pub fn forget_inherited(&mut self, offset: i64) -> bool {
        self.finished_leader_epoch = i32::MAX;
        let forgets = self.ledger.done_until().is_some_and(|end| end > offset);
        if forgets {
            tracing::warn!(
                at = %self.at,
                offset,
                "the log was cut off and written again from this offset on: its records run, whatever was finished \
                 here before"
            );
            self.ledger.forget_done();
        }
        forgets
    }

    /// It is over: slots are not given out again, so what only a partition that is ours needs is freed.
    pub fn forget(&mut self) {
        self.ledger = Ledger::new(self.ledger.frontier(), Vec::new());
        self.leader_epochs = LeaderEpochs::default();
        self.committed_metadata = String::new();
        self.overflow = VecDeque::new();
    }

    /// What a commit of the frontier says besides the offset.
    pub fn note(&self) -> CommitNote {
        let finished = self.ledger.settled_ahead();
        let leader_epoch = finished.last().and_then(|last| {
            if last.end <= self.ledger.next() {
                return self.leader_epochs.at(last.end - 1);
            }
            Some(self.finished_leader_epoch).filter(|epoch| *epoch != i32::MAX)
        });
        CommitNote {
            topic_id: self.topic_id,
            epoch: self.epoch,
            leader_epoch,
            finished,
        }
    }

    /// The metadata of a commit of the frontier.
    pub fn metadata(&self, group: &str) -> String {
        self.note().encode(Place {
            group,
            at: &self.at,
            offset: self.ledger.frontier(),
        })
    }

    /// Where a record of it comes from.
    pub fn place_of(&self, offset: i64, timestamp_ms: i64) -> RecordPlace<'static> {
        RecordPlace {
            topic: self.topic,
            partition: self.at.partition,
            offset,
            timestamp_ms,
            epoch: self.epoch,
        }
    }

    /// What keeps it from being handled or read, if anything does.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.stopped.as_ref().or(self.unreadable.as_ref())
    }

    /// Whether it is to be given back.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, AssignmentState::Draining { .. })
    }

    /// Offsets that an owner lost without notice could make somebody repeat (G3).
    pub fn uncommitted(&self) -> i64 {
        self.ledger.next() - self.committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_epoch_of_a_record_is_that_of_the_last_change_before_it() {
        let mut epochs = LeaderEpochs::default();
        assert_eq!(epochs.at(5), None);
        for (offset, epoch) in [(10, 3), (11, 3), (12, 4), (20, 7)] {
            epochs.note(offset, epoch);
        }
        let known: Vec<_> = [9, 10, 11, 12, 19, 20, 99].map(|at| epochs.at(at)).into();
        assert_eq!(
            known,
            [None, Some(3), Some(3), Some(4), Some(4), Some(7), Some(7)]
        );
        epochs.forget_before(19);
        assert_eq!((epochs.at(11), epochs.at(19)), (None, Some(4)));
    }

    #[test]
    fn a_broker_without_leader_epochs_gives_none_and_changes_are_bounded() {
        let mut epochs = LeaderEpochs::default();
        epochs.note(0, -1);
        assert_eq!(epochs.at(0), None);
        for offset in 0..1_000 {
            epochs.note(offset, offset as i32);
        }
        assert_eq!(epochs.changes.len(), MAX_EPOCH_CHANGES);
        assert_eq!(epochs.at(999), Some(999));
    }
}
