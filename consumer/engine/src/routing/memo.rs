//! Routing results by class numbers: which handlers receive records with these classes under a plan.

use std::collections::HashMap;

use rapidhash::fast::GlobalState;

use crate::dispatch::HandlerIx;

/// Distinct sets of handlers, each kept once.
#[derive(Default)]
pub(super) struct RouteSets {
    handlers: Vec<HandlerIx>,
    ranges: Vec<(u32, u32)>,
    ids: HashMap<Box<[HandlerIx]>, u32, GlobalState>,
}

impl RouteSets {
    /// Maximum number of handlers in all sets together.
    const MAX_HANDLERS: usize = 1 << 20;

    /// Number of `set`; `None` without room for it.
    pub(super) fn intern(&mut self, set: &[HandlerIx]) -> Option<u32> {
        if let Some(&id) = self.ids.get(set) {
            return Some(id);
        }
        if self.handlers.len() + set.len() > Self::MAX_HANDLERS {
            return None;
        }
        let id = self.ranges.len() as u32;
        let from = self.handlers.len();
        self.handlers.extend_from_slice(set);
        self.ranges.push((from as u32, self.handlers.len() as u32));
        self.ids.insert(set.into(), id);
        Some(id)
    }

    /// The set with this number.
    #[inline]
    pub(super) fn get(&self, id: u32) -> &[HandlerIx] {
        let (from, to) = self.ranges[id as usize];
        &self.handlers[from as usize..to as usize]
    }
}

/// Class numbers of a record, packed according to its plan's layout.
pub(super) type Classes = u128;

/// A table from (plan, classes) to the number of a set, in buckets of a few entries; it grows up to a bound, and then
/// evicts.
pub(super) struct Memo {
    entries: Vec<Entry>,
    evicted: usize,
    /// Entry of a full bucket that is evicted next.
    victim: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    classes: Classes,
    plan: u32,
    /// Set number plus one; 0 marks an empty entry.
    set: u32,
}

const EMPTY: Entry = Entry {
    classes: 0,
    plan: 0,
    set: 0,
};

impl Memo {
    const BUCKET: usize = 4;
    const INITIAL_SIZE: usize = 1 << 8;
    const MAX_SIZE: usize = 1 << 16;

    /// An empty table.
    pub(super) fn new() -> Self {
        Self {
            entries: vec![EMPTY; Self::INITIAL_SIZE],
            evicted: 0,
            victim: 0,
        }
    }

    /// The cached set.
    #[inline]
    pub(super) fn get(&self, plan: u32, classes: Classes) -> Option<u32> {
        let first = self.bucket(plan, classes);
        self.entries[first..first + Self::BUCKET]
            .iter()
            .find(|entry| entry.classes == classes && entry.plan == plan)
            .and_then(|entry| entry.set.checked_sub(1))
    }

    /// Caches a set that is not cached yet, replacing another if necessary.
    pub(super) fn insert(&mut self, plan: u32, classes: Classes, set: u32) {
        if self.evicted > self.entries.len() / 16 && self.entries.len() < Self::MAX_SIZE {
            self.grow();
        }
        self.put(Entry {
            classes,
            plan,
            set: set + 1,
        });
    }

    fn put(&mut self, entry: Entry) {
        let first = self.bucket(entry.plan, entry.classes);
        let bucket = &mut self.entries[first..first + Self::BUCKET];
        match bucket.iter_mut().find(|place| place.set == 0) {
            Some(empty) => *empty = entry,
            None => {
                self.victim = (self.victim + 1) % Self::BUCKET;
                bucket[self.victim] = entry;
                self.evicted += 1;
            }
        }
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; self.entries.len() * 4];
        let old = std::mem::replace(&mut self.entries, larger);
        for entry in old.into_iter().filter(|entry| entry.set != 0) {
            self.put(entry);
        }
        self.evicted = 0;
    }

    /// First entry of the bucket.
    #[inline]
    fn bucket(&self, plan: u32, classes: Classes) -> usize {
        let low = classes as u64 ^ 0x9e37_79b9_7f4a_7c15;
        let high = (classes >> 64) as u64 ^ (u64::from(plan) << 32) ^ 0xd6e8_feb8_6659_fd93;
        let product = u128::from(low) * u128::from(high);
        let hash = product as u64 ^ (product >> 64) as u64;
        (hash as usize & (self.entries.len() / Self::BUCKET - 1)) * Self::BUCKET
    }
}
