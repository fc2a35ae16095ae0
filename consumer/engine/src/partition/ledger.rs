//! The ledger of one assignment: which offsets were delivered and settled, and up to where all are settled (G2).
//!
//! ```text
//!            frontier            next
//!               ▼                 ▼
//!  …settled….│ . x . x x . . x │ (not delivered yet)      x settled   . delivered, not settled
//! ```
//!
//! Two bitmaps over a sliding window, one word of each per 64 offsets: a settle costs a few nanoseconds in any order,
//! and the frontier skips a run of settled offsets at once. Kafka leaves legal gaps (compaction, control records,
//! aborted data). A gap counts as settled only once a later record has arrived or the consumed position has passed it
//! ([`Ledger::pass`]); earlier, the frontier could pass a record that is still on its way, and a commit would lose it.
//!
//! `settled` alone could not tell a repeated delivery, which is dropped, from a record in a gap that was assumed to be
//! empty, which is an error and stops the partition instead of being skipped (G12). Words therefore stay for `BEHIND`
//! offsets after the frontier has passed them. Offsets that an earlier owner finished (`done`, from the commit
//! metadata) are settled by their delivery and not handled again (G3). Pure: no Kafka, no clock. A property test
//! compares it with a plain set.

use std::collections::VecDeque;
use std::ops::Range;

use crate::partition::commit::push_range;

/// Offsets kept behind the frontier, to distinguish a repeat from a record in a gap. Larger than any repeat that the client
/// is known to deliver (one batch).
const BEHIND: i64 = 16 * 1024;

/// Maximum distance of `next` from the frontier. Bounds the window at two bits per offset, that is 1 MiB.
const AHEAD: i64 = 1 << 22;

/// How the ledger classifies a delivered offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// A new record: handle it, then settle it.
    New,
    /// Finished under an earlier assignment (commit metadata), and settled by this delivery.
    Done,
    /// Delivered before in this assignment: drop it.
    Repeat,
    /// In a gap that the ledger assumed to be empty, or too far behind: stop the partition (G12).
    Fault,
    /// Too far ahead of the frontier: deliver it again once the frontier has advanced.
    TooFar,
}

#[derive(Clone, Copy, Default)]
struct Word {
    delivered: u64,
    settled: u64,
}

/// The ledger of one assignment.
pub struct Ledger {
    words: VecDeque<Word>,
    /// Offset of the first bit of the first word.
    origin: i64,
    frontier: i64,
    next: i64,
    /// Ranges finished under an earlier assignment, ascending and not empty. The first may start before `next` if some of
    /// its offsets no longer exist in the log.
    done: VecDeque<Range<i64>>,
}

impl Ledger {
    /// A ledger whose first record is at `start` or later. `done`: offsets from `start` on that an earlier assignment
    /// finished, ascending and disjoint.
    pub fn new(start: i64, done: Vec<Range<i64>>) -> Self {
        Self {
            words: VecDeque::new(),
            origin: start,
            frontier: start,
            next: start,
            done: done
                .into_iter()
                .filter(|range| range.start >= start && range.start < range.end)
                .collect(),
        }
    }

    /// One past the highest contiguous settled offset: the offset that may be committed.
    pub fn frontier(&self) -> i64 {
        self.frontier
    }

    /// One past the highest delivered offset.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Whether every delivered offset is settled.
    pub fn is_settled(&self) -> bool {
        self.frontier == self.next
    }

    /// Records the delivery of `offset`. Skipped offsets no longer exist and count as settled.
    #[inline]
    pub fn deliver(&mut self, offset: i64) -> Delivered {
        if offset < self.next {
            return self.seen_before(offset);
        }
        if offset - self.frontier >= AHEAD && !self.is_settled() {
            return Delivered::TooFar;
        }
        if offset > self.next {
            self.skip_to(offset);
        }
        self.next = offset + 1;
        let done = self.take_done(offset);
        let caught_up = self.frontier == offset;
        let word = self.word_mut(offset);
        word.delivered |= bit(offset);
        if done {
            word.settled |= bit(offset);
            if caught_up {
                self.advance();
            }
            return Delivered::Done;
        }
        Delivered::New
    }

    /// Records the delivery of `count` offsets from `first` on, if all of them are new ([`Delivered::New`]). `false`: at least
    /// one may not be, and nothing has changed; deliver them one by one.
    pub fn deliver_run(&mut self, first: i64, count: usize) -> bool {
        let end = first + count as i64;
        let is_near = end - self.frontier < AHEAD || self.is_settled();
        if first < self.next || !self.done.is_empty() || !is_near {
            return false;
        }
        if first > self.next {
            self.skip_to(first);
        }
        self.next = end;
        for (offset, bits) in words_of(first..end) {
            self.word_mut(offset).delivered |= bits;
        }
        true
    }

    /// Records that the log was read up to `position`: offsets before it that were not delivered do not exist and count as
    /// settled.
    pub fn pass(&mut self, position: i64) {
        if position <= self.next {
            return;
        }
        while self.done.front().is_some_and(|range| range.end <= position) {
            self.done.pop_front();
        }
        if let Some(range) = self.done.front_mut() {
            range.start = range.start.max(position);
        }
        self.skip_to(position);
    }

    /// Settles `offset`. Returns `false` if it was not delivered or is already settled.
    #[inline]
    pub fn settle(&mut self, offset: i64) -> bool {
        if offset < self.frontier || offset >= self.next {
            return false;
        }
        let word = self.word_mut(offset);
        if word.settled & bit(offset) != 0 {
            return false;
        }
        word.settled |= bit(offset);
        if offset == self.frontier {
            self.advance();
        }
        true
    }

    /// Settles these offsets. Returns `false`, and changes nothing, if one of them was not delivered or is already settled.
    pub fn settle_run(&mut self, offsets: Range<i64>) -> bool {
        if offsets.end - offsets.start == 1 {
            return self.settle(offsets.start);
        }
        let is_settled = |(offset, bits)| self.word(offset).settled & bits != 0;
        if offsets.start < self.frontier
            || offsets.end > self.next
            || words_of(offsets.clone()).any(is_settled)
        {
            return false;
        }
        let reaches_frontier = offsets.start == self.frontier;
        for (offset, bits) in words_of(offsets) {
            self.word_mut(offset).settled |= bits;
        }
        if reaches_frontier {
            self.advance();
        }
        true
    }

    /// The settled offsets at or beyond the frontier, including those that an earlier assignment finished and that were not
    /// delivered again: ascending ranges, neither empty nor adjacent.
    pub fn settled_ahead(&self) -> Vec<Range<i64>> {
        let mut ranges: Vec<Range<i64>> = Vec::new();
        let mut offset = self.frontier;
        while offset < self.next {
            let word = self.word(offset);
            let rest = word.settled >> (offset & 63);
            let skip = i64::from(rest.trailing_zeros()).min(64 - (offset & 63));
            let start = offset + skip;
            let run = if skip == 64 - (offset & 63) {
                0
            } else {
                i64::from((rest >> skip).trailing_ones())
            };
            push_range(&mut ranges, start..(start + run).min(self.next));
            offset = start + run;
        }
        for range in &self.done {
            push_range(&mut ranges, range.start.max(self.next)..range.end);
        }
        ranges
    }

    /// Drops the offsets that an earlier assignment finished and that were not delivered again: they belong to another log.
    pub fn forget_done(&mut self) {
        self.done.clear();
    }

    /// End of the offsets at or beyond [`Self::next`] that an earlier assignment finished; `None` if there are none.
    pub fn done_until(&self) -> Option<i64> {
        self.done.back().map(|range| range.end)
    }

    /// Number of delivered offsets that are not settled.
    pub fn unsettled(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from((word.delivered & !word.settled).count_ones()))
            .sum()
    }

    fn seen_before(&self, offset: i64) -> Delivered {
        if offset >= self.floor() && self.word(offset).delivered & bit(offset) != 0 {
            Delivered::Repeat
        } else {
            Delivered::Fault
        }
    }

    #[inline]
    fn take_done(&mut self, offset: i64) -> bool {
        while let Some(range) = self.done.front_mut() {
            if range.end <= offset {
                self.done.pop_front();
                continue;
            }
            if !range.contains(&offset) {
                return false;
            }
            range.start = offset + 1;
            if range.is_empty() {
                self.done.pop_front();
            }
            return true;
        }
        false
    }

    /// Counts `next..offset` as settled.
    fn skip_to(&mut self, offset: i64) {
        if self.is_settled() {
            // Nothing is unsettled, so a gap of any size is free; the window behind it is dropped.
            if offset - self.next > BEHIND {
                self.words.clear();
                self.origin = offset;
            }
            self.next = offset;
            self.frontier = offset;
            self.forget_behind();
            return;
        }
        for hole in self.next..offset {
            self.word_mut(hole).settled |= bit(hole);
        }
        self.next = offset;
    }

    #[inline]
    fn advance(&mut self) {
        while self.frontier < self.next {
            let at = self.frontier & 63;
            let run = i64::from((self.word(self.frontier).settled >> at).trailing_ones());
            if run == 0 {
                break;
            }
            self.frontier = (self.frontier + run).min(self.next);
        }
        self.forget_behind();
    }

    /// Drops words that are more than [`BEHIND`] offsets behind the frontier.
    fn forget_behind(&mut self) {
        while self.frontier - self.floor() > BEHIND + 64 && !self.words.is_empty() {
            self.words.pop_front();
            self.origin = self.floor() + 64;
        }
        if self.words.is_empty() {
            // No offset was delivered in the range that the window would cover.
            self.origin = self.origin.max(self.frontier - BEHIND);
        }
    }

    /// First offset that the window covers.
    fn floor(&self) -> i64 {
        self.origin & !63
    }

    #[inline]
    fn word(&self, offset: i64) -> Word {
        let index = ((offset - self.floor()) >> 6) as usize;
        self.words.get(index).copied().unwrap_or_default()
    }

    #[inline]
    fn word_mut(&mut self, offset: i64) -> &mut Word {
        let index = ((offset - self.floor()) >> 6) as usize;
        if index >= self.words.len() {
            self.grow(index + 1);
        }
        &mut self.words[index]
    }

    /// Once per 64 offsets: not inlined, so that what is inlined stays small.
    #[cold]
    fn grow(&mut self, words: usize) {
        self.words.resize(words, Word::default());
    }
}

fn bit(offset: i64) -> u64 {
    1 << (offset & 63)
}

/// The words that a range of offsets covers: an offset of each, and its bits.
fn words_of(mut offsets: Range<i64>) -> impl Iterator<Item = (i64, u64)> {
    std::iter::from_fn(move || {
        let first = offsets.start;
        let count = (64 - (first & 63)).min(offsets.end - first);
        if count <= 0 {
            return None;
        }
        offsets.start += count;
        Some((first, (u64::MAX >> (64 - count)) << (first & 63)))
    })
}

#[cfg(test)]
#[path = "ledger_properties.rs"]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_waits_for_the_lowest_unsettled_record() {
        let mut ledger = Ledger::new(100, Vec::new());
        for offset in 100..200 {
            assert_eq!(ledger.deliver(offset), Delivered::New);
        }
        for offset in 101..200 {
            assert!(ledger.settle(offset));
            assert_eq!(ledger.frontier(), 100);
        }
        assert_eq!(ledger.settled_ahead(), vec![101..200]);
        assert!(ledger.settle(100));
        assert_eq!(ledger.frontier(), 200);
        assert!(!ledger.settle(100), "settling again changes nothing");
    }

    #[test]
    fn a_gap_is_settled_only_after_a_later_record_was_delivered() {
        let mut ledger = Ledger::new(0, Vec::new());
        assert_eq!(ledger.deliver(0), Delivered::New);
        ledger.settle(0);
        assert_eq!(ledger.frontier(), 1);
        assert_eq!(ledger.deliver(7), Delivered::New);
        assert_eq!(ledger.frontier(), 7);
        assert_eq!(ledger.deliver(9), Delivered::New);
        ledger.settle(9);
        assert_eq!(ledger.settled_ahead(), vec![8..10]);
        ledger.settle(7);
        assert_eq!(ledger.frontier(), 10);
    }

    #[test]
    fn a_repeat_is_distinguished_from_a_record_in_an_assumed_gap() {
        let mut ledger = Ledger::new(0, Vec::new());
        ledger.deliver(0);
        ledger.deliver(5);
        assert_eq!(ledger.deliver(0), Delivered::Repeat);
        assert_eq!(ledger.deliver(5), Delivered::Repeat);
        assert_eq!(ledger.deliver(3), Delivered::Fault);
        ledger.settle(0);
        ledger.settle(5);
        assert_eq!(
            ledger.deliver(5),
            Delivered::Repeat,
            "also behind the frontier"
        );
        assert_eq!(ledger.deliver(2), Delivered::Fault);
    }

    #[test]
    fn offsets_finished_before_are_done_on_delivery() {
        let mut ledger = Ledger::new(10, vec![11..13, 20..21]);
        assert_eq!(ledger.settled_ahead(), vec![11..13, 20..21]);
        let seen: Vec<_> = (10..22).map(|offset| ledger.deliver(offset)).collect();
        assert_eq!(seen.iter().filter(|d| **d == Delivered::Done).count(), 3);
        for offset in (10..22).filter(|o| ![11, 12, 20].contains(o)) {
            assert!(ledger.settle(offset));
        }
        assert_eq!(ledger.frontier(), 22);
    }

    #[test]
    fn offsets_read_without_a_record_are_settled() {
        let mut ledger = Ledger::new(10, vec![12..14, 18..25]);
        ledger.pass(9);
        assert_eq!((ledger.frontier(), ledger.next()), (10, 10));
        assert_eq!(ledger.deliver(10), Delivered::New);
        ledger.pass(20);
        assert_eq!((ledger.frontier(), ledger.next()), (10, 20));
        assert!(ledger.settle(10));
        assert_eq!((ledger.frontier(), ledger.next()), (20, 20));
        assert_eq!(ledger.settled_ahead(), vec![20..25]);
        assert_eq!(ledger.deliver(20), Delivered::Done);
        assert_eq!(ledger.deliver(10), Delivered::Repeat);
        assert_eq!(
            ledger.deliver(15),
            Delivered::Fault,
            "a record in a range reported as read"
        );
    }

    #[test]
    fn a_log_of_only_control_records_keeps_the_window_small() {
        let mut ledger = Ledger::new(0, Vec::new());
        for position in (0..1_000_000_000).step_by(10_000) {
            ledger.pass(position);
        }
        assert_eq!(ledger.deliver(1_000_000_000), Delivered::New);
        assert!(ledger.settle(1_000_000_000));
        assert_eq!(ledger.frontier(), 1_000_000_001);
        assert!(ledger.words.len() < 1024, "{} words", ledger.words.len());
    }

    #[test]
    fn a_long_run_keeps_the_window_small() {
        let mut ledger = Ledger::new(3, Vec::new());
        for offset in 3..1_000_000 {
            ledger.deliver(offset);
            ledger.settle(offset);
        }
        assert_eq!(ledger.frontier(), 1_000_000);
        assert!(ledger.words.len() < 1024, "{} words", ledger.words.len());
    }

    #[test]
    fn a_huge_gap_without_unsettled_records_is_a_jump() {
        let mut ledger = Ledger::new(0, Vec::new());
        ledger.deliver(0);
        ledger.settle(0);
        assert_eq!(ledger.deliver(1 << 40), Delivered::New);
        assert_eq!(ledger.frontier(), 1 << 40);
        assert_eq!(ledger.deliver((1 << 40) + AHEAD), Delivered::TooFar);
    }
}
