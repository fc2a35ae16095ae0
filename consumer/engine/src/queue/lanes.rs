//! Lanes: records with the same key are handled one after the other, different keys do not wait for each other (G4).
//!
//! ```text
//!  claim ─► free: the lane names the open batch ─► batch in flight ─► its serial number changes: the lane is free
//!    └────► taken or held: the record waits in the lane ─► the batch that it waits for releases it (`contended`)
//!                                                   hold, unhold: a record that is parked or waits for the producer
//! ```
//!
//! A lane is identified by a 64-bit hash of assignment and key. It exists while a record of it is in flight and costs
//! one probe of an open-addressing table. Returning a batch writes nothing here: a lane names the batch that has its
//! records, and is free as soon as that batch has ended (ADR 0006). Only a lane in which records wait, or which a
//! deferred record holds, is touched again. A full table drops its free lanes, so its size follows the lanes in use and
//! not the keys seen.
//!
//! A record that waits comes before every later one, even if the lane has become free: whatever puts records back uses
//! [`Lanes::wait_first`], and a batch with records in contended lanes releases these when it ends. Keys with equal
//! hashes share a lane, which delays them but never reorders a key.

use std::collections::VecDeque;

use crate::dispatch::{BatchId, RecordId};

/// A key that no batch has.
pub(crate) const NO_BATCH: BatchId = BatchId {
    index: u32::MAX,
    serial: 0,
};

const MIN_SLOTS: usize = 64;

#[derive(Clone, Copy)]
struct Lane {
    /// 0 marks an empty slot of the table.
    hash: u64,
    /// The batch that has records of it.
    batch: BatchId,
    /// Records that are neither in a batch nor settled: parked, or waiting for the producer.
    held: u32,
    /// Index of its waiting list + 1; 0 means none.
    waiting: u32,
}

const EMPTY: Lane = Lane {
    hash: 0,
    batch: NO_BATCH,
    held: 0,
    waiting: 0,
};

/// Result of claiming a lane for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The lane was free and now belongs to the open batch.
    Free,
    /// The lane already belongs to the open batch: the record may follow in the same batch.
    Same,
    /// The record waits in the lane. `first`: no other record waited, so the batch that has the lane must release it to
    /// this record when it ends.
    Waits {
        /// The batch that has the lane; [`NO_BATCH`] if a deferred record holds it.
        behind: BatchId,
        /// No other record waited.
        first: bool,
    },
}

/// A lane in use, for [`HandlerQueue::broken`](super::HandlerQueue::broken).
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneUse {
    pub(crate) hash: u64,
    /// The batch that last had records of it.
    pub(crate) batch: BatchId,
    /// Deferred records that hold it.
    pub(crate) held: u32,
    /// Records that wait in it.
    pub(crate) waiting: usize,
}

/// The lanes of one handler.
#[derive(Default)]
pub(crate) struct Lanes {
    table: Vec<Lane>,
    used: usize,
    waiting: Vec<VecDeque<RecordId>>,
    spare: Vec<u32>,
    waiters: usize,
}

impl Lanes {
    /// Number of records waiting in lanes.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters
    }

    /// Claims the lane `hash` (not 0) for a record that would join `open`.
    ///
    /// `several` allows more than one record of the lane per batch. `live` tells whether a batch is still in flight.
    pub(crate) fn claim(
        &mut self,
        hash: u64,
        entry: RecordId,
        open: BatchId,
        several: bool,
        live: impl Fn(BatchId) -> bool,
    ) -> Claim {
        debug_assert!(hash != 0, "hash 0 is reserved for records without a lane");
        let index = self.find_or_insert(hash, &live);
        let lane = &mut self.table[index];
        let taken = lane.batch != NO_BATCH && live(lane.batch);
        if lane.waiting == 0 && lane.held == 0 {
            if !taken {
                lane.batch = open;
                return Claim::Free;
            }
            if several && lane.batch == open {
                return Claim::Same;
            }
        }
        let behind = if taken { lane.batch } else { NO_BATCH };
        let first = lane.waiting == 0;
        self.list(index).push_back(entry);
        self.waiters += 1;
        Claim::Waits { behind, first }
    }

    /// Reads the place of a lane, so that it is in the cache when the lane is claimed; the result is only to be used.
    #[inline]
    pub(crate) fn touch(&self, hash: u64) -> u64 {
        let mask = self.table.len().wrapping_sub(1);
        let place = self.table.get(first_index(hash) & mask);
        place.map_or(0, |lane| lane.hash)
    }

    /// Requeues records at the head of their lane, in order: they go ahead of those waiting there.
    pub(crate) fn wait_first(
        &mut self,
        hash: u64,
        entries: &[RecordId],
        live: impl Fn(BatchId) -> bool,
    ) {
        let index = self.find_or_insert(hash, &live);
        let list = self.list(index);
        for &entry in entries.iter().rev() {
            list.push_front(entry);
        }
        self.waiters += entries.len();
    }

    /// Marks a record of the lane as neither in a batch nor settled: the lane stays closed until [`Lanes::unhold`].
    pub(crate) fn hold(&mut self, hash: u64, live: impl Fn(BatchId) -> bool) {
        let index = self.find_or_insert(hash, &live);
        self.table[index].held += 1;
    }

    /// A held record is settled, or joins a batch again.
    pub(crate) fn unhold(&mut self, hash: u64) {
        let found = self.find(hash);
        debug_assert!(
            found.is_some_and(|index| self.table[index].held > 0),
            "the lane is not held"
        );
        if let Some(index) = found {
            self.table[index].held = self.table[index].held.saturating_sub(1);
        }
    }

    /// Assigns the lane to the batch that a held record joins.
    pub(crate) fn give(&mut self, hash: u64, batch: BatchId) {
        if let Some(index) = self.find(hash) {
            self.table[index].batch = batch;
        }
    }

    /// The record that has waited longest in the lane, if no batch has and no record holds the lane.
    pub(crate) fn next(&self, hash: u64, live: impl Fn(BatchId) -> bool) -> Option<RecordId> {
        let lane = &self.table[self.find(hash)?];
        let free = lane.held == 0 && !(lane.batch != NO_BATCH && live(lane.batch));
        if free { self.first_waiting(lane) } else { None }
    }

    /// Moves the record returned by [`Lanes::next`] into `open`, and with `several` those waiting behind it, one per
    /// call, as long as they go into the same batch. `None`: the others wait for that batch.
    pub(crate) fn advance(
        &mut self,
        hash: u64,
        open: BatchId,
        several: bool,
        live: impl Fn(BatchId) -> bool,
    ) -> Option<RecordId> {
        let index = self.find(hash)?;
        let lane = &mut self.table[index];
        let taken = lane.batch != NO_BATCH && live(lane.batch);
        if lane.held > 0 || lane.waiting == 0 || (taken && !(several && lane.batch == open)) {
            return None;
        }
        lane.batch = open;
        let place = lane.waiting - 1;
        let list = &mut self.waiting[place as usize];
        let entry = list.pop_front();
        self.waiters -= 1;
        if list.is_empty() {
            lane.waiting = 0;
            self.spare.push(place);
        }
        entry
    }

    /// Whether a batch has records of the lane.
    pub(crate) fn is_taken(&self, hash: u64, live: impl Fn(BatchId) -> bool) -> bool {
        let lane = self.find(hash).map(|index| &self.table[index]);
        lane.is_some_and(|lane| lane.batch != NO_BATCH && live(lane.batch))
    }

    /// The batch that has the lane, if records wait in it.
    pub(crate) fn waited_for(&self, hash: u64) -> Option<BatchId> {
        let lane = &self.table[self.find(hash)?];
        (lane.waiting != 0).then_some(lane.batch)
    }

    /// The record that has waited longest in the lane.
    pub(crate) fn first(&self, hash: u64) -> Option<RecordId> {
        self.first_waiting(&self.table[self.find(hash)?])
    }

    fn first_waiting(&self, lane: &Lane) -> Option<RecordId> {
        let place = lane.waiting.checked_sub(1)?;
        self.waiting[place as usize].front().copied()
    }

    /// Removes the waiting records for which `keep` is false; used when a partition is revoked.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(RecordId) -> bool) -> Vec<RecordId> {
        let mut removed = Vec::new();
        for list in &mut self.waiting {
            list.retain(|&entry| {
                let kept = keep(entry);
                if !kept {
                    removed.push(entry);
                }
                kept
            });
        }
        for lane in &mut self.table {
            if lane.waiting != 0 && self.waiting[(lane.waiting - 1) as usize].is_empty() {
                self.spare.push(lane.waiting - 1);
                lane.waiting = 0;
            }
        }
        self.waiters -= removed.len();
        removed
    }

    /// All lanes of the table.
    pub(crate) fn each(&self) -> impl Iterator<Item = LaneUse> + '_ {
        let lanes = self.table.iter().filter(|lane| lane.hash != 0);
        lanes.map(|lane| LaneUse {
            hash: lane.hash,
            batch: lane.batch,
            held: lane.held,
            waiting: match lane.waiting.checked_sub(1) {
                Some(place) => self.waiting[place as usize].len(),
                None => 0,
            },
        })
    }

    /// The waiting records, for reports.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = RecordId> + '_ {
        self.waiting.iter().flatten().copied()
    }

    fn list(&mut self, index: usize) -> &mut VecDeque<RecordId> {
        if self.table[index].waiting == 0 {
            let place = self.spare.pop().unwrap_or_else(|| {
                self.waiting.push(VecDeque::new());
                (self.waiting.len() - 1) as u32
            });
            self.table[index].waiting = place + 1;
        }
        &mut self.waiting[(self.table[index].waiting - 1) as usize]
    }

    fn find(&self, hash: u64) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut index = first_index(hash) & mask;
        loop {
            match self.table[index].hash {
                0 => return None,
                found if found == hash => return Some(index),
                _ => index = (index + 1) & mask,
            }
        }
    }

    fn find_or_insert(&mut self, hash: u64, live: &impl Fn(BatchId) -> bool) -> usize {
        if (self.used + 1) * 4 > self.table.len() * 3 {
            self.rebuild(live);
        }
        let mask = self.table.len() - 1;
        let mut index = first_index(hash) & mask;
        loop {
            let lane = &mut self.table[index];
            if lane.hash == hash {
                return index;
            }
            if lane.hash == 0 {
                *lane = Lane { hash, ..EMPTY };
                self.used += 1;
                return index;
            }
            index = (index + 1) & mask;
        }
    }

    /// Drops the free lanes and sizes the table for the others.
    fn rebuild(&mut self, live: &impl Fn(BatchId) -> bool) {
        let in_use = |lane: &Lane| {
            lane.hash != 0
                && (lane.held > 0
                    || lane.waiting != 0
                    || (lane.batch != NO_BATCH && live(lane.batch)))
        };
        let kept: Vec<Lane> = self.table.iter().copied().filter(in_use).collect();
        let size = (kept.len() * 4).next_power_of_two().max(MIN_SLOTS);
        self.table.clear();
        self.table.resize(size, EMPTY);
        self.used = kept.len();
        for lane in kept {
            let mut index = first_index(lane.hash) & (size - 1);
            while self.table[index].hash != 0 {
                index = (index + 1) & (size - 1);
            }
            self.table[index] = lane;
        }
    }
}

/// First index to probe: lane hashes are odd, so their lowest bit carries no information.
fn first_index(hash: u64) -> usize {
    (hash >> 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u32) -> RecordId {
        RecordId { index, serial: 0 }
    }

    fn batch(index: u32) -> BatchId {
        BatchId { index, serial: 1 }
    }

    #[test]
    fn a_lane_is_free_when_its_batch_has_ended() {
        let mut lanes = Lanes::default();
        assert_eq!(
            lanes.claim(7, entry(0), batch(1), true, |_| true),
            Claim::Free
        );
        assert_eq!(
            lanes.claim(7, entry(1), batch(1), true, |_| true),
            Claim::Same
        );
        assert_eq!(
            lanes.claim(7, entry(2), batch(2), true, |_| true),
            Claim::Waits {
                behind: batch(1),
                first: true
            }
        );
        assert_eq!(
            lanes.claim(7, entry(3), batch(1), true, |_| true),
            Claim::Waits {
                behind: batch(1),
                first: false
            },
            "no record overtakes a waiting one"
        );
        assert_eq!(lanes.next(7, |_| true), None);
        let over = |f: BatchId| f.index > 2;
        assert_eq!(lanes.next(7, over), Some(entry(2)));
        let advance = |lanes: &mut Lanes| lanes.advance(7, batch(3), true, over);
        assert_eq!(advance(&mut lanes), Some(entry(2)));
        assert_eq!(lanes.waited_for(7), Some(batch(3)));
        assert_eq!(advance(&mut lanes), Some(entry(3)));
        assert_eq!(advance(&mut lanes), None);
        assert_eq!((lanes.waiters(), lanes.waited_for(7)), (0, None));
    }

    #[test]
    fn a_held_lane_stays_closed_and_keeps_its_order() {
        let mut lanes = Lanes::default();
        assert_eq!(
            lanes.claim(9, entry(0), batch(1), true, |_| true),
            Claim::Free
        );
        lanes.hold(9, |_| false);
        lanes.claim(9, entry(3), batch(2), true, |_| false);
        lanes.wait_first(9, &[entry(1), entry(2)], |_| false);
        assert_eq!(lanes.next(9, |_| false), None);
        assert_eq!(lanes.advance(9, batch(2), true, |_| false), None);
        lanes.unhold(9);
        let order: Vec<_> =
            std::iter::from_fn(|| lanes.advance(9, batch(2), true, |_| false)).collect();
        assert_eq!(order, vec![entry(1), entry(2), entry(3)]);
    }

    #[test]
    fn a_batch_gets_one_record_per_lane_if_requested() {
        let mut lanes = Lanes::default();
        assert_eq!(
            lanes.claim(5, entry(0), batch(1), false, |_| true),
            Claim::Free
        );
        for (waiting, first) in [(1, true), (2, false)] {
            assert_eq!(
                lanes.claim(5, entry(waiting), batch(1), false, |_| true),
                Claim::Waits {
                    behind: batch(1),
                    first
                }
            );
        }
        let over = |f: BatchId| f.index > 1;
        assert_eq!(lanes.advance(5, batch(2), false, over), Some(entry(1)));
        assert_eq!(lanes.advance(5, batch(2), false, over), None);
        assert_eq!(lanes.waited_for(5), Some(batch(2)));
    }

    #[test]
    fn a_million_keys_leave_a_small_table() {
        let mut lanes = Lanes::default();
        for hash in 1..1_000_000u64 {
            let current = (hash / 256) as u32;
            let live = |f: BatchId| f.index + 4 > current;
            let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            assert_eq!(
                lanes.claim(spread, entry(0), batch(current), true, live),
                Claim::Free
            );
        }
        assert!(lanes.table.len() <= 8192, "{} slots", lanes.table.len());
    }
}
