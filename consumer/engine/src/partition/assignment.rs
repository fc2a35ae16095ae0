//! The assignment of one partition to this process: `Assigned → Draining → Released`, under one epoch (G5).
//!
//! ```text
//!  Assigned ── revoked, or stop ──► Draining ── last commit accepted, or no longer possible ──► Released
//!     └───────────────── lost, topic re-created, group forgotten ─────────────────────────────────┘
//! ```
//!
//! An [`Assignment`] owns what must not outlive an ownership: the ledger, the leader epochs of its records, the last
//! accepted commit and the fencing token. A partition that is assigned again gets a new one under a new
//! [`AssignmentId`]. A late outcome thus finds the released
//! assignment; with a shared ledger it would settle an offset that the new ownership has not handled.
//!
//! `fenced` is separate from the state: at the drain deadline nothing starts or counts any more, while the last commit
//! may still be on its way. A token that the group's generation does not imply has to be committed before the first
//! record runs (`token_first`, ADR 0021), because the next owner learns it only from that commit (G4).

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;

use sluicegate_abi::TopicName;
use sluicegate_runtime::RecordPlace;

use crate::dispatch::RecordId;
use crate::partition::commit::{CommitMetadata, CommitTarget, TopicUuid};
use crate::partition::fault::ReadFault;
use crate::partition::ledger::Ledger;
use crate::partition::recovery::Recovery;
use crate::partition::trouble::Trouble;
use crate::partition::usage::{PausedFor, RATE_WINDOW_MS, SLOW_DRAIN_MS, Usage};
use crate::routing::TopicPlanId;
use crate::source::{AssignmentId, CommitEntry, Delivery, TopicPartition};

/// Maximum leader-epoch changes kept between the frontier and the newest record: bounds memory if a log is broken.
const MAX_EPOCH_CHANGES: usize = 64;

/// A record delivered while its partition had no room, and its charge until it is admitted.
pub struct OverflowRecord<R> {
    /// The record.
    pub delivery: Delivery<R>,
    /// Bytes charged to the budget (G8).
    pub charge: u64,
}

/// State of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Records are admitted.
    Assigned,
    /// Being revoked: no record starts, in-flight records may finish until the deadline.
    Draining {
        /// On the flow's clock, in milliseconds.
        deadline_ms: u64,
    },
    /// Revoked: late outcomes are discarded.
    Released,
}

/// Initial state of an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAssignment {
    /// The partition.
    pub at: TopicPartition,
    /// Id of its topic.
    pub topic_id: TopicUuid,
    /// First offset to read.
    pub start: i64,
    /// Fencing token.
    pub epoch: u32,
    /// Whether the token must be committed before the first record runs (see [`crate::partition::commit::next_epoch`]).
    pub token_first: bool,
    /// Leader epoch of the record before `start`, as committed.
    pub leader_epoch: Option<i32>,
    /// Commit metadata of the previous owner: finished offsets and their leader epoch.
    pub inherited: CommitMetadata,
}

impl NewAssignment {
    /// A partition without a previous owner.
    pub fn first(at: TopicPartition, start: i64, epoch: u32) -> Self {
        Self {
            at,
            topic_id: TopicUuid::default(),
            start,
            epoch,
            token_first: false,
            leader_epoch: None,
            inherited: CommitMetadata::default(),
        }
    }
}

/// Leader epochs of the delivered records: the first offset of each.
#[derive(Debug, Default)]
pub struct LeaderEpochs {
    changes: VecDeque<(i64, i32)>,
}

impl LeaderEpochs {
    /// Records the leader epoch of a delivered record; negative if the broker sends none.
    pub fn record(&mut self, offset: i64, epoch: i32) {
        if self.changes.back().map(|(_, last)| *last) != Some(epoch) {
            if self.changes.len() == MAX_EPOCH_CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back((offset, epoch));
        }
    }

    /// The leader epoch of the newest record at or before `offset`, if known.
    pub fn at(&self, offset: i64) -> Option<i32> {
        let before = self.changes.iter().rev().find(|(from, _)| *from <= offset);
        before.map(|(_, epoch)| *epoch).filter(|epoch| *epoch >= 0)
    }

    /// Drops the entries that only queries before `offset` need.
    pub fn forget_before(&mut self, offset: i64) {
        while self.changes.get(1).is_some_and(|(from, _)| *from <= offset) {
            self.changes.pop_front();
        }
    }
}

/// A partition that this process owns or has owned.
pub struct Assignment<R> {
    /// Its id.
    pub id: AssignmentId,
    /// The partition.
    pub at: TopicPartition,
    /// Its topic's name; records lent to calls point to it.
    pub topic: TopicName<'static>,
    /// Id of its topic: offsets are meaningless in a re-created topic (G2).
    pub topic_id: TopicUuid,
    /// Fencing token: higher than that of every earlier owner of the partition, while the group exists (G4). Tokens of
    /// different partitions are not comparable.
    pub epoch: u32,
    /// Revoked or about to be: no record starts, and outcomes of running calls no longer count (G5).
    pub fenced: bool,
    /// Whether the token must be committed before the first record runs.
    pub token_first: bool,
    /// Whether a commit with our token was accepted.
    pub token_kept: bool,
    /// Leader epochs from the frontier on.
    pub leader_epochs: LeaderEpochs,
    /// Leader epoch of the last record that a previous owner finished. If a record with a higher leader epoch sits at an
    /// offset that the ledger holds as finished, it is a different record: the log was truncated below it and rewritten.
    pub finished_leader_epoch: i32,
    /// Its state.
    pub state: AssignmentState,
    /// Its offsets.
    pub ledger: Ledger,
    /// Which routes can match its topic.
    pub plan: TopicPlanId,
    /// The last acknowledged committed offset.
    pub committed: i64,
    /// Metadata of the last acknowledged commit.
    pub committed_metadata: String,
    /// Records delivered while there was no room, in order.
    pub overflow: VecDeque<OverflowRecord<R>>,
    /// Total charge of the overflow records, in bytes.
    pub overflow_bytes: u64,
    /// Time since which records wait for room, on the flow's clock.
    pub full_since_ms: Option<u64>,
    /// Whether fetching is paused.
    pub paused: bool,
    /// Why its records are not handled any more, if stopped (G12, G13).
    pub stopped: Option<Trouble>,
    /// Why it currently cannot be read, if so.
    pub unreadable: Option<Trouble>,
    /// The read error that `unreadable` is about, if it ends by itself.
    pub fault: Option<ReadFault>,
    /// Recovery from an offset that could not be fetched.
    pub recovery: Option<Recovery>,
    /// Since when it has had no leader, on the flow's clock.
    pub leaderless_since_ms: Option<u64>,
    /// Last known end of its log: one past the last offset.
    pub end: Option<i64>,
    /// The next offset expected, and the time since which the log contains it without its being delivered.
    pub awaited: Option<(i64, u64)>,
    /// Number of its live slab entries.
    pub entries: u32,
    /// How many of them some handler has to settle.
    pub unsettled: u32,
    /// Shares of its records that wait for their next attempt, over all handlers.
    pub parked: u64,
    /// Number of records delivered.
    pub delivered: u64,
    /// Number of repeated deliveries dropped.
    pub repeats: u64,
    /// Time of the frontier's last advance, on the flow's clock.
    pub moved_ms: u64,
    /// Time at which a record arrived while no other was unsettled, on the flow's clock.
    pub begun_ms: u64,
    /// Time of the assignment, on the flow's clock.
    pub assigned_ms: u64,
    /// Its share of the byte budget.
    pub usage: Usage,
    /// The record that a report last found at this frontier, so that the next report does not search for it.
    pub(crate) at_frontier: Cell<Option<(i64, RecordId)>>,
}

impl<R> Assignment<R> {
    /// Time since which the frontier has been waiting; meaningful only while a record is unsettled.
    pub fn waits_since_ms(&self) -> u64 {
        self.moved_ms.max(self.begun_ms)
    }

    /// Settles records that no route selects. The frontier advances only if no earlier record is unsettled.
    pub fn pass_by(&mut self, offsets: Range<i64>, now_ms: u64) {
        let before = self.ledger.frontier();
        self.ledger.settle_run(offsets);
        if self.ledger.frontier() != before {
            self.moved_ms = now_ms;
        }
    }

    /// Whether its records may start: assigned and not stopped.
    pub fn admits(&self) -> bool {
        self.state == AssignmentState::Assigned && self.stopped.is_none()
    }

    /// Whether a record may be admitted: the fencing token is committed if required (G4) and the limit is not reached (G3).
    pub fn has_room(&self, max_uncommitted: i64) -> bool {
        (self.token_kept || !self.token_first) && self.uncommitted() < max_uncommitted
    }

    /// Called when the record at `offset` has a higher leader epoch than the records that the previous owner finished: the
    /// log was truncated at or before `offset` and rewritten, so finished offsets from there on belong to other records.
    /// Drops them; returns whether there were any.
    pub fn forget_inherited(&mut self, offset: i64) -> bool {
        self.finished_leader_epoch = i32::MAX;
        let forgets = self.ledger.done_until().is_some_and(|end| end > offset);
        if forgets {
            tracing::warn!(
                at = %self.at,
                offset,
                "the log was truncated and rewritten from this offset on: its records are handled again, also at offsets \
                 that were finished before"
            );
            self.ledger.forget_done();
        }
        forgets
    }

    /// Frees what only an owned partition needs; its records may still be held.
    pub fn forget(&mut self) {
        self.ledger = Ledger::new(self.ledger.frontier(), Vec::new());
        self.leader_epochs = LeaderEpochs::default();
        self.committed_metadata = String::new();
        self.overflow = VecDeque::new();
        self.fault = None;
        self.recovery = None;
    }

    /// Contents of the metadata for a commit of the frontier.
    pub fn commit_metadata(&self) -> CommitMetadata {
        let finished = self.ledger.settled_ahead();
        let leader_epoch = finished.last().and_then(|last| {
            if last.end <= self.ledger.next() {
                return self.leader_epochs.at(last.end - 1);
            }
            Some(self.finished_leader_epoch).filter(|epoch| *epoch != i32::MAX)
        });
        CommitMetadata {
            topic_id: self.topic_id,
            epoch: self.epoch,
            leader_epoch,
            finished,
        }
    }

    /// The encoded metadata for a commit of the frontier.
    pub fn metadata(&self, group: &str) -> String {
        self.commit_metadata().encode(CommitTarget {
            group,
            at: &self.at,
            offset: self.ledger.frontier(),
        })
    }

    /// The commit of its frontier, if it differs from the last accepted one. `short` omits which records are finished beyond
    /// the frontier.
    pub fn commit(&self, group: &str, short: bool) -> Option<CommitEntry> {
        let offset = self.ledger.frontier();
        let mut metadata = self.commit_metadata();
        if short {
            metadata.finished.clear();
        }
        let metadata = metadata.encode(CommitTarget {
            group,
            at: &self.at,
            offset,
        });
        let changed = offset > self.committed || metadata != self.committed_metadata;
        changed.then(|| CommitEntry {
            at: self.at.clone(),
            offset,
            leader_epoch: self.leader_epochs.at(offset - 1),
            metadata,
        })
    }

    /// Origin of one of its records, as handlers see it.
    pub fn place_of(&self, offset: i64, timestamp_ms: i64) -> RecordPlace<'static> {
        RecordPlace {
            topic: self.topic,
            partition: self.at.partition,
            offset,
            timestamp_ms,
            epoch: self.epoch,
        }
    }

    /// Why its records are not handled or cannot be read, if so.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.stopped.as_ref().or(self.unreadable.as_ref())
    }

    /// Bytes of its records, as charged: in flight and queued.
    pub fn held_bytes(&self) -> u64 {
        self.usage.entry_bytes + self.overflow_bytes
    }

    /// Why its fetching is paused; `None` if it is not.
    pub fn paused_for(&self) -> Option<PausedFor> {
        match self.usage.paused_at {
            _ if !self.paused => None,
            Some(_) => Some(PausedFor::Memory),
            None => Some(PausedFor::Bound),
        }
    }

    pub(crate) fn is_read(&self) -> bool {
        self.admits() && !self.paused
    }

    /// Whether its records need longer than `SLOW_DRAIN_MS` at the present rate.
    pub(crate) fn is_slow(&self) -> bool {
        let pace = self.usage.freed_in_window;
        pace.is_some_and(|freed| {
            self.held_bytes() > freed.saturating_mul(SLOW_DRAIN_MS / RATE_WINDOW_MS)
        })
    }

    /// Whether it is being revoked.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, AssignmentState::Draining { .. })
    }

    /// Uncommitted offsets: what is reprocessed if this process dies (G3).
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
            epochs.record(offset, epoch);
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
        epochs.record(0, -1);
        assert_eq!(epochs.at(0), None);
        for offset in 0..1_000 {
            epochs.record(offset, offset as i32);
        }
        assert_eq!(epochs.changes.len(), MAX_EPOCH_CHANGES);
        assert_eq!(epochs.at(999), Some(999));
    }
}
