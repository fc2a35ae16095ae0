//! Progress of an assignment: which of its offsets are delivered, settled and committed, and since when its frontier waits.

use std::collections::VecDeque;
use std::ops::Range;

use crate::partition::commit::CommitMetadata;
use crate::partition::ledger::{Delivered, Ledger};

/// Maximum leader-epoch changes kept between the frontier and the newest record: bounds memory if a log is broken.
const MAX_EPOCH_CHANGES: usize = 64;

/// Leader epochs of the delivered records: the first offset of each.
#[derive(Debug, Default)]
struct LeaderEpochs {
    changes: VecDeque<(i64, i32)>,
}

impl LeaderEpochs {
    /// Records the leader epoch of a delivered record; negative if the broker sends none.
    fn record(&mut self, offset: i64, epoch: i32) {
        if self.changes.back().map(|(_, last)| *last) != Some(epoch) {
            if self.changes.len() == MAX_EPOCH_CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back((offset, epoch));
        }
    }

    /// The leader epoch of the newest record at or before `offset`, if known.
    fn at(&self, offset: i64) -> Option<i32> {
        let before = self.changes.iter().rev().find(|(from, _)| *from <= offset);
        before.map(|(_, epoch)| *epoch).filter(|epoch| *epoch >= 0)
    }

    /// Drops the entries that only queries before `offset` need.
    fn forget_before(&mut self, offset: i64) {
        while self.changes.get(1).is_some_and(|(from, _)| *from <= offset) {
            self.changes.pop_front();
        }
    }
}

/// Offsets of an assignment. Times are on the flow's clock, in milliseconds.
pub(super) struct Progress {
    ledger: Ledger,
    /// From the frontier on.
    leader_epochs: LeaderEpochs,
    /// Leader epoch of the last record that a previous owner finished. If a record with a higher leader epoch sits at an
    /// offset that the ledger holds as finished, it is a different record: the log was truncated below it and rewritten.
    finished_leader_epoch: i32,
    /// The last acknowledged committed offset, and the metadata of that commit.
    committed: i64,
    committed_metadata: String,
    /// Number of records delivered, and of repeated deliveries dropped.
    delivered: u64,
    repeats: u64,
    /// Time of the frontier's last advance.
    moved_ms: u64,
    /// Time at which a record arrived while no other was unsettled.
    begun_ms: u64,
}

impl Progress {
    /// Of a partition read from `start` on. `leader_epoch`: that of the record before.
    pub(super) fn new(
        start: i64,
        leader_epoch: Option<i32>,
        inherited: CommitMetadata,
        now_ms: u64,
    ) -> Self {
        let mut leader_epochs = LeaderEpochs::default();
        if let Some(epoch) = leader_epoch {
            leader_epochs.record(start - 1, epoch);
        }
        Self {
            ledger: Ledger::new(start, inherited.finished),
            leader_epochs,
            // Without a leader epoch the inherited list cannot be contradicted.
            finished_leader_epoch: inherited.leader_epoch.unwrap_or(i32::MAX),
            committed: start,
            committed_metadata: String::new(),
            delivered: 0,
            repeats: 0,
            moved_ms: now_ms,
            begun_ms: now_ms,
        }
    }

    #[inline]
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    #[inline]
    pub(super) fn committed(&self) -> i64 {
        self.committed
    }

    #[inline]
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn repeats(&self) -> u64 {
        self.repeats
    }

    /// Takes the numbers of delivered and repeated records.
    pub(super) fn take_counts(&mut self) -> (u64, u64) {
        let counts = (self.delivered, self.repeats);
        (self.delivered, self.repeats) = (0, 0);
        counts
    }

    /// Time of the frontier's last advance.
    pub(super) fn moved_ms(&self) -> u64 {
        self.moved_ms
    }

    /// Time since which the frontier has been waiting; meaningful only while a record is unsettled.
    pub(super) fn waits_since_ms(&self) -> u64 {
        self.moved_ms.max(self.begun_ms)
    }

    /// Delivers a run of new records; `false`: they are not all new, or some are too far ahead, and nothing has changed.
    #[inline]
    pub(super) fn deliver_run(
        &mut self,
        first: i64,
        count: usize,
        leader_epoch: i32,
        now_ms: u64,
    ) -> bool {
        let was_settled = self.ledger.is_settled();
        if leader_epoch > self.finished_leader_epoch || !self.ledger.deliver_run(first, count) {
            return false;
        }
        if was_settled {
            // Nothing was unsettled until now, so the wait of the frontier starts here.
            self.begun_ms = now_ms;
        }
        self.delivered += count as u64;
        self.leader_epochs.record(first, leader_epoch);
        true
    }

    /// Delivers one record.
    pub(super) fn deliver(&mut self, offset: i64, leader_epoch: i32, now_ms: u64) -> Delivered {
        let was_settled = self.ledger.is_settled();
        let delivered = self.ledger.deliver(offset);
        match delivered {
            Delivered::New | Delivered::Done => {
                if delivered == Delivered::New && was_settled {
                    self.begun_ms = now_ms;
                }
                self.delivered += 1;
                self.leader_epochs.record(offset, leader_epoch);
            }
            Delivered::Repeat => self.repeats += 1,
            Delivered::TooFar | Delivered::Fault => {}
        }
        delivered
    }

    /// Drops the finished offsets that a previous owner left if a record at `offset` with this leader epoch contradicts
    /// them: the log was truncated at or before `offset` and rewritten, so those from there on belong to other records.
    /// Returns whether there were any.
    pub(super) fn check_inherited(&mut self, offset: i64, leader_epoch: i32) -> bool {
        if leader_epoch <= self.finished_leader_epoch {
            return false;
        }
        self.finished_leader_epoch = i32::MAX;
        let forgets = self.ledger.done_until().is_some_and(|end| end > offset);
        if forgets {
            self.ledger.forget_done();
        }
        forgets
    }

    /// Changes the ledger; the frontier may advance.
    #[inline]
    fn settling<T>(&mut self, now_ms: u64, settle: impl FnOnce(&mut Ledger) -> T) -> T {
        let before = self.ledger.frontier();
        let result = settle(&mut self.ledger);
        if self.ledger.frontier() != before {
            self.moved_ms = now_ms;
        }
        result
    }

    /// Settles an offset; `false`: it was settled before.
    #[inline]
    pub(super) fn settle(&mut self, offset: i64, now_ms: u64) -> bool {
        self.settling(now_ms, |ledger| ledger.settle(offset))
    }

    /// Settles consecutive offsets. Returns one that was settled before, if there is any.
    #[inline]
    pub(super) fn settle_run(&mut self, offsets: Range<i64>, now_ms: u64) -> Option<i64> {
        self.settling(now_ms, |ledger| {
            if ledger.settle_run(offsets.clone()) {
                return None;
            }
            offsets.filter(|offset| !ledger.settle(*offset)).last()
        })
    }

    /// Everything before `position` has been read, and what of it was not delivered is settled.
    pub(super) fn pass(&mut self, position: i64, now_ms: u64) {
        self.settling(now_ms, |ledger| ledger.pass(position));
    }

    /// Continues at `to`; nothing may be unsettled. `another_log`: offsets settled beyond `to` say nothing about the records
    /// there now. Returns whether it is a new beginning: what is committed then does not count.
    pub(super) fn restart(&mut self, to: i64, another_log: bool, now_ms: u64) -> bool {
        self.moved_ms = now_ms;
        if !another_log && to >= self.ledger.next() {
            self.ledger.pass(to);
            return false;
        }
        self.ledger = Ledger::new(to, Vec::new());
        self.leader_epochs = LeaderEpochs::default();
        self.finished_leader_epoch = i32::MAX;
        self.committed = to - 1;
        self.committed_metadata.clear();
        true
    }

    /// A commit of `offset` was accepted.
    pub(super) fn accepted(&mut self, offset: i64, metadata: &String) {
        self.committed = offset;
        self.committed_metadata.clone_from(metadata);
        self.leader_epochs.forget_before(offset - 1);
    }

    /// Whether a commit of `offset` with this metadata differs from the last accepted one.
    pub(super) fn differs(&self, offset: i64, metadata: &str) -> bool {
        offset > self.committed || metadata != self.committed_metadata
    }

    /// The leader epoch of the record at `offset`, if it is known.
    pub(super) fn leader_epoch(&self, offset: i64) -> Option<i32> {
        self.leader_epochs.at(offset)
    }

    /// The finished records beyond the frontier, and the leader epoch of the last of them.
    pub(super) fn finished(&self) -> (Vec<Range<i64>>, Option<i32>) {
        let finished = self.ledger.settled_ahead();
        let leader_epoch = finished.last().and_then(|last| {
            if last.end <= self.ledger.next() {
                return self.leader_epochs.at(last.end - 1);
            }
            Some(self.finished_leader_epoch).filter(|epoch| *epoch != i32::MAX)
        });
        (finished, leader_epoch)
    }

    /// Frees what only an owned partition needs.
    pub(super) fn forget(&mut self) {
        self.ledger = Ledger::new(self.ledger.frontier(), Vec::new());
        self.leader_epochs = LeaderEpochs::default();
        self.committed_metadata = String::new();
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
