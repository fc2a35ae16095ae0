//! Targets: the generations that run a handler's records, and which keys each of them gets.
//!
//! ```text
//!  record ─► bucket of its key ─► target ─► worker, if the generation keeps state per key ─► open batch ─► pool
//! ```
//!
//! A record's target is chosen when it joins a batch, which claims its lane. Until that batch has ended, no other record of
//! the lane joins a batch of another target, so a plan that gives buckets to another generation keeps the order of keys
//! (G4), just as one that changes the number of workers. Records that no worker has join other batches then.

use std::num::NonZeroU32;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Order;
use crate::dispatch::{BatchId, PoolState, WorkerPool};
use crate::record::Record;
use crate::records::slab::RecordEntry;

/// Number of key buckets that the targets of a handler share: a target can have a thousandth of the keys.
pub const BUCKETS: u16 = 1_024;

/// What ran a record: a generation with a config. Instances may take another config without another generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationId {
    /// Version of the plugin.
    pub version: Arc<str>,
    /// Number of the generation.
    pub number: u64,
    /// Identifies its config.
    pub config_digest: u64,
    /// It handles a batch as a whole: after a failed batch its records are retried one by one.
    pub takes_batches: bool,
    /// Records that an instance handles at a time; 0 and 1 mean one after the other.
    pub concurrency: u32,
    /// Maximum number of records per call that it wishes for.
    pub max_batch: Option<NonZeroU32>,
    /// Timeout of a whole call in milliseconds; 0 means that each record has one of its own.
    pub call_timeout_ms: u64,
}

impl GenerationId {
    /// A generation that takes record by record, with a config of no particular digest.
    pub fn new(version: &str, number: u64) -> Self {
        Self {
            version: version.into(),
            number,
            ..Self::default()
        }
    }
}

/// A generation that runs some of a handler's records.
#[derive(Clone)]
pub struct Target {
    /// What it runs.
    pub generation: Arc<GenerationId>,
    /// Its threads.
    pub pool: Arc<dyn WorkerPool>,
    /// Number of key buckets that it gets, of [`BUCKETS`]; the last target gets what the others leave.
    pub buckets: u16,
    /// A key is always handled by the same worker.
    pub keeps_key_state: bool,
}

impl Target {
    /// The only target, which gets all keys and keeps no state per key.
    pub fn only(generation: GenerationId, pool: Arc<dyn WorkerPool>) -> Self {
        Self {
            generation: Arc::new(generation),
            pool,
            buckets: BUCKETS,
            keeps_key_state: false,
        }
    }
}

/// A target's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Its buckets end before this one; they begin where those of the target before it end.
    end_bucket: u16,
    /// Place of its first open batch.
    first: u32,
    /// Number of its open batches: one, or one per worker.
    count: u32,
    /// Whether a batch is for one worker.
    by_worker: bool,
}

/// The batches being filled, by target and worker.
pub(super) struct OpenBatches {
    places: SmallVec<[Place; 1]>,
    open: SmallVec<[Option<BatchId>; 1]>,
    /// Targets whose pools have refused a batch, until they have room again.
    blocked: SmallVec<[bool; 1]>,
}

impl OpenBatches {
    /// Those of these targets; none is open yet.
    pub(super) fn of(targets: &[Target]) -> Self {
        let mut places = SmallVec::new();
        let (mut end_bucket, mut first) = (0u16, 0);
        for target in targets {
            let count = match target.keeps_key_state {
                true => target.pool.workers().max(1),
                false => 1,
            };
            end_bucket = end_bucket.saturating_add(target.buckets);
            places.push(Place {
                end_bucket,
                first,
                count,
                by_worker: target.keeps_key_state,
            });
            first += count;
        }
        Self {
            places,
            // Without a target there is one, whose records wait for it.
            open: smallvec::smallvec![None; first.max(1) as usize],
            blocked: smallvec::smallvec![false; targets.len()],
        }
    }

    /// Whether records are placed as in `other`.
    pub(super) fn places_like(&self, other: &Self) -> bool {
        self.places == other.places
    }

    /// Whether all records go to one batch.
    #[inline]
    pub(super) fn is_one(&self) -> bool {
        self.open.len() == 1
    }

    /// The place of the batch that a record joins.
    #[inline]
    pub(super) fn place_of<R: Record>(&self, order: Order, entry: &RecordEntry<R>) -> usize {
        match self.is_one() {
            true => 0,
            false => self.place_among(order, entry),
        }
    }

    fn place_among<R: Record>(&self, order: Order, entry: &RecordEntry<R>) -> usize {
        let bucket = bucket_of(order, entry);
        let first = self.places.iter().find(|place| bucket < place.end_bucket);
        let Some(place) = first.or(self.places.last()) else {
            return 0;
        };
        let worker = (entry.key_hash >> 32) as usize % place.count as usize;
        place.first as usize + worker
    }

    /// The target of a place, and the worker that a batch there is for.
    pub(super) fn target_of(&self, place: usize) -> (usize, Option<u32>) {
        let place = place as u32;
        let begins = |one: &Place| one.first <= place;
        let target = self.places.iter().rposition(begins).unwrap_or(0);
        let worker = self.places.get(target).filter(|one| one.by_worker);
        (target, worker.map(|one| place - one.first))
    }

    /// Number of places.
    pub(super) fn places(&self) -> usize {
        self.open.len()
    }

    /// The open batch of a place.
    #[inline]
    pub(super) fn at(&mut self, place: usize) -> &mut Option<BatchId> {
        &mut self.open[place]
    }

    /// The open batches.
    pub(super) fn iter(&self) -> impl Iterator<Item = BatchId> + '_ {
        self.open.iter().copied().flatten()
    }

    /// The places, with their open batches.
    pub(super) fn each_mut(&mut self) -> impl Iterator<Item = &mut Option<BatchId>> {
        self.open.iter_mut()
    }

    /// A target's pool has refused a batch.
    pub(super) fn block(&mut self, target: usize) {
        if let Some(blocked) = self.blocked.get_mut(target) {
            *blocked = true;
        }
    }

    /// Whether a target's pool has refused a batch and has not had room since.
    #[inline]
    pub(super) fn is_blocked(&self, target: usize) -> bool {
        self.blocked.get(target).copied().unwrap_or(true)
    }

    /// Whether no target takes a batch.
    pub(super) fn all_blocked(&self) -> bool {
        self.blocked.iter().all(|blocked| *blocked)
    }

    /// Pools may have room again. Returns whether one was blocked.
    pub(super) fn unblock(&mut self) -> bool {
        let any = self.blocked.iter().any(|blocked| *blocked);
        self.blocked.fill(false);
        any
    }
}

/// The bucket of a record: that of its key, so that a key has one target in all partitions. Without a key, records are
/// spread by offset; in the order of partitions, a partition has one target.
fn bucket_of<R: Record>(order: Order, entry: &RecordEntry<R>) -> u16 {
    let hash = match order {
        Order::Partition => u64::from(entry.slot.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        _ if entry.key_hash != 0 => entry.key_hash,
        _ => (entry.offset() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    // Other bits than those that choose the worker.
    ((hash >> 20) % u64::from(BUCKETS)) as u16
}

/// Whether none of the targets runs records.
pub(super) fn all_failed(targets: &[Target]) -> bool {
    let mut targets = targets.iter();
    targets.all(|target| target.pool.state() == PoolState::Failed)
}
