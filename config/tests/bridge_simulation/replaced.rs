//! Stores that are replaced by older, empty and foreign states while bridges run.

use std::collections::BTreeMap;

use sluicegate_config::bridge::{Note, Pair, PairRecord, Side};
use sluicegate_config::store::{ControlKey, Expected, MemoryBackup, MemoryStore, Store};

use super::{Doing, VALUES, World, keys, put, run_replaced, values};

/// What was backed up: a side, and the notes where they stand beside it.
pub(super) struct Backup {
    side: MemoryBackup,
    notes: Option<MemoryBackup>,
    /// The mark that stood in it, or that its record had or was about to have.
    mark: u64,
}

impl World {
    /// Whether `side` went back, and what is noted of `key` is from before.
    pub(super) fn is_behind(&self, side: Side, key: &ControlKey) -> bool {
        if !self.was_replaced() || self.away.contains(&true) {
            return self.was_replaced();
        }
        let notes = self.notes.list().expect("no store is away");
        let record = PairRecord::of(&notes).unwrap_or_default();
        let note = notes.get(key).and_then(|note| Note::from_json(&note.value));
        let (mark, since) = marks_of(&self.sides.zookeeper);
        let (differs, since) = match side {
            Side::Etcd => (mark > record.mark.max(record.next.unwrap_or(0)), 0),
            Side::ZooKeeper => (mark < record.mark, since),
        };
        let trusted_from = since.max(*record.trusted_from.of(side));
        differs || note.is_some_and(|note| note.mark < trusted_from)
    }

    fn was_replaced(&self) -> bool {
        let replaced = [&self.replaced.etcd, &self.replaced.zookeeper];
        replaced.into_iter().flatten().any(|times| *times > 0)
    }

    pub(super) fn back_up(&mut self) {
        let side = Side::BOTH[self.dice.roll(2)];
        let backup = Backup {
            side: self.sides.of(side).handle().back_up(),
            notes: (side == Side::Etcd).then(|| self.notes.handle().back_up()),
            mark: match side {
                Side::Etcd => record_of(&self.notes)
                    .map_or(0, |record| record.mark.max(record.next.unwrap_or(0))),
                Side::ZooKeeper => mark_of(&self.sides.zookeeper),
            },
        };
        *self.backups.of_mut(side) = Some(backup);
    }

    /// Replaces a side. That takes longer than a bridge may be held up, and watches read again afterwards.
    pub(super) fn replace(&mut self) {
        let side = Side::BOTH[self.dice.roll(2)];
        let before = Pair::from_fn(|side| contents(self.sides.of(side)));
        let handle = self.sides.of(side).handle();
        let state = self.dice.roll(3);
        match state {
            0 => {
                let noted = record_of(&self.notes).map_or(0, |record| record.mark);
                let Some(backup) = self.backups.of(side) else {
                    return;
                };
                let is_young = match side {
                    Side::Etcd => backup.mark >= mark_of(&self.sides.zookeeper),
                    Side::ZooKeeper => backup.mark >= noted,
                };
                if is_young {
                    // It is younger than the last mark: then it is known by its revision, and only as long as that is lower.
                    return;
                }
                handle.restore(&backup.side);
                if let Some(notes) = &backup.notes {
                    self.notes.handle().restore(notes);
                }
            }
            1 => {
                handle.wipe();
                if side == Side::Etcd {
                    self.notes.handle().wipe();
                }
            }
            _ => {
                handle.restore(&self.foreign().handle().back_up());
                if side == Side::Etcd {
                    self.notes.handle().wipe();
                }
            }
        }
        self.replaced.of_mut(side)[state] += 1;
        self.now_ms += 4_000;
        self.late.clear();
        self.rebase(side, &before);
        for bridge in &mut self.bridges {
            bridge.doing = Doing::Nothing;
            let tree = self.sides.of(side).list().expect("no store is away");
            let seen = bridge.views.of_mut(side);
            if tree.revision < seen.revision || tree.is_other_than(seen) {
                bridge.pair = None;
            }
            *seen = tree;
            if side == Side::Etcd {
                bridge.see_notes(self.notes.list().expect("no store is away"));
            }
        }
    }

    /// Somebody else's store, with keys, a history and maybe a mark of its own.
    fn foreign(&mut self) -> MemoryStore {
        let store = MemoryStore::new();
        for _ in 0..self.dice.roll(200) {
            put(&store, &ControlKey::Logging, b"true");
        }
        for key in keys() {
            if self.dice.roll(3) == 0 {
                let value: &[u8] = match key {
                    ControlKey::Config(_) => VALUES[self.dice.roll(3)].as_bytes(),
                    _ => b"false",
                };
                put(&store, &key, value);
            }
        }
        if self.dice.roll(2) == 0 {
            let mark = self.dice.roll(20).to_string();
            put(&store, &ControlKey::Bridge, mark.as_bytes());
        }
        store
    }

    /// What both sides hold now counts as their last edits; what `side` held `before` and does not now is lost.
    fn rebase(&mut self, side: Side, before: &Pair<BTreeMap<ControlKey, Vec<u8>>>) {
        let now = Pair::from_fn(|side| contents(self.sides.of(side)));
        self.risen.clear();
        for key in keys() {
            let lost = self.lost.of_mut(side);
            if now.of(side).contains_key(&key) {
                lost.remove(&key);
            } else if before.of(side).contains_key(&key) {
                lost.insert(key.clone());
            }
            let last = Pair::from_fn(|side| Some(now.of(side).get(&key).cloned()));
            self.last.insert(key, last);
        }
    }

    /// Where the stores are not those of the notes, an operator deletes the notes, as the bridge's advice says.
    pub(super) fn operate(&mut self) {
        let Some(record) = record_of(&self.notes) else {
            return;
        };
        let is_other = |side: &Side| {
            let tree = self.sides.of(*side).list().expect("no store is away");
            let noted = record.stores.of(*side);
            noted.is_some() && tree.identity.as_deref() != noted.as_deref()
        };
        if Side::BOTH.iter().any(is_other) {
            for key in self.notes.list().expect("no store is away").entries.keys() {
                let deleted = self.notes.write(key, None, Expected::Any);
                deleted.expect("no store is away");
            }
        }
    }
}

fn record_of(notes: &MemoryStore) -> Option<PairRecord> {
    PairRecord::of(&notes.list().expect("no store is away"))
}

fn mark_of(store: &MemoryStore) -> u64 {
    marks_of(store).0
}

/// The mark, and from which one on absences count.
fn marks_of(store: &MemoryStore) -> (u64, u64) {
    let tree = store.list().expect("no store is away");
    let Some(entry) = tree.get(&ControlKey::Bridge) else {
        return (0, 0);
    };
    let text = std::str::from_utf8(&entry.value).expect("a text");
    let mut numbers = text.split(' ').map(|one| one.parse().expect("a number"));
    (numbers.next().expect("a mark"), numbers.next().unwrap_or(0))
}

fn contents(store: &MemoryStore) -> BTreeMap<ControlKey, Vec<u8>> {
    values(&store.list().expect("no store is away"))
}

/// Older, empty and foreign states of either store, at random moments: nothing is deleted for what a side has lost.
#[test]
fn a_store_that_is_replaced_takes_nothing_from_the_other() {
    let (mut replaced, mut refused) = (Pair::<[u64; 3]>::default(), 0);
    for seed in 1..300 {
        let bridges = 1 + seed as usize % 3;
        let authority = Side::BOTH[seed as usize % 2];
        let world = run_replaced(seed, bridges, 3_000, authority, 15);
        let world = world.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        for side in Side::BOTH {
            let times = replaced.of_mut(side).iter_mut();
            times
                .zip(world.replaced.of(side))
                .for_each(|(all, one)| *all += one);
        }
        refused += world.refused;
    }
    let every = replaced.etcd.iter().chain(&replaced.zookeeper);
    assert!(every.clone().sum::<u64>() > 1_000, "{replaced:?} replaced");
    assert!(
        every.min().is_some_and(|least| *least > 100),
        "{replaced:?} replaced"
    );
    assert!(refused > 1_000, "{refused} refused");
}
