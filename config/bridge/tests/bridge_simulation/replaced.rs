//! Stores replaced by older, empty and foreign states while bridges run.

use std::collections::BTreeMap;

use sluicegate_bridge::{Foreign, PairCheck, PairRecord, SyncState, check_pair};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{MemoryBackup, MemoryStore, Store};

use super::bridges::{Doing, name_of};
use super::{VALUES, World, keys, put, run_replaced, values};

/// A backup of a side; for etcd including the sync state, which is stored there.
pub(super) struct Backup {
    side: MemoryBackup,
    sync_state: Option<MemoryBackup>,
    /// The mark in the backup, or the current or next mark of its record.
    mark: u64,
}

/// Another pair on the same ZooKeeper: its etcd with its sync state.
pub(super) struct Rival {
    pub(super) etcd: MemoryStore,
    pub(super) sync_state: MemoryStore,
}

impl Rival {
    pub(super) fn new() -> Self {
        let etcd = MemoryStore::new();
        put(&etcd, &ControlKey::Enabled("a".into()), b"true");
        put(&etcd, &ControlKey::Config("c".into()), b"{\"v\":9}");
        Self {
            etcd,
            sync_state: MemoryStore::new(),
        }
    }
}

impl World {
    /// Whether the sync state of `key` predates a restore or takeover of a side, or one is pending.
    pub(super) fn is_behind(&self, key: &ControlKey) -> bool {
        if !self.was_replaced() || self.away.contains(&true) {
            return self.was_replaced();
        }
        let sync_state = self.sync_state.list().expect("the stores are reachable");
        let record = PairRecord::of(&sync_state).unwrap_or_default();
        let state = sync_state
            .get(key)
            .and_then(|entry| SyncState::from_json(&entry.value));
        let (mark, since) = marks_of(&self.sides.zookeeper);
        let differs = mark > record.mark.max(record.next.unwrap_or(0)) || mark < record.mark;
        let trusted_from = record.trusted_from;
        let trusted_from = trusted_from.etcd.max(trusted_from.zookeeper).max(since);
        differs || state.is_none_or(|state| state.mark < trusted_from) || self.foreign().is_some()
    }

    fn was_replaced(&self) -> bool {
        let replaced = [&self.replaced.etcd, &self.replaced.zookeeper];
        let replaced = replaced.into_iter().flatten().any(|times| *times > 0);
        // The other pair takes over ZooKeeper and loses it again, which has the effect of a replacement.
        replaced || self.bridges.iter().any(|bridge| bridge.is_rival)
    }

    /// Whether ZooKeeper carries the mark of the other pair.
    pub(super) fn is_rivals(&self) -> bool {
        let record = record_of(&self.rival.sync_state).unwrap_or_default();
        let zookeeper = self.sides.zookeeper.handle();
        let mark = zookeeper.held(&ControlKey::Bridge).unwrap_or_default();
        let mark = String::from_utf8_lossy(&mark).into_owned();
        let ids = [record.id, record.next_id].into_iter().flatten();
        ids.into_iter().any(|id| mark.contains(&id))
    }

    /// Why the two sides do not belong together, if so.
    fn foreign(&self) -> Option<Foreign> {
        self.foreign_despite(Pair::default())
    }

    fn foreign_despite(&self, accepted: Pair<bool>) -> Option<Foreign> {
        let sync_state = self.sync_state.list().expect("the stores are reachable");
        let trees = Pair::from_fn(|side| {
            self.sides
                .of(side)
                .list()
                .expect("the stores are reachable")
        });
        let both = Pair::from_fn(|side| trees.of(side));
        match check_pair(
            name_of(false),
            &sync_state,
            &both,
            false,
            accepted,
            self.now_ms,
        ) {
            PairCheck::Foreign(foreign) => {
                let mut open = foreign
                    .into_iter()
                    .filter(|one| !one.is_answered_by(accepted));
                open.next()
            }
            _ => None,
        }
    }

    pub(super) fn back_up(&mut self) {
        let side = Side::BOTH[self.dice.roll(2)];
        let backup = Backup {
            side: self.sides.of(side).handle().back_up(),
            sync_state: (side == Side::Etcd).then(|| self.sync_state.handle().back_up()),
            mark: match side {
                Side::Etcd => record_of(&self.sync_state)
                    .map_or(0, |record| record.mark.max(record.next.unwrap_or(0))),
                Side::ZooKeeper => mark_of(&self.sides.zookeeper),
            },
        };
        *self.backups.of_mut(side) = Some(backup);
    }

    /// Replaces a side. Takes longer than a bridge's write can be delayed; watches relist afterwards.
    pub(super) fn replace(&mut self) {
        let side = Side::BOTH[self.dice.roll(2)];
        let before = Pair::from_fn(|side| contents(self.sides.of(side)));
        let handle = self.sides.of(side).handle();
        // Whether the other side or the sync state shows that the new content is foreign.
        let is_detected = match side {
            Side::Etcd => self
                .sides
                .zookeeper
                .handle()
                .held(&ControlKey::Bridge)
                .is_some(),
            Side::ZooKeeper => record_of(&self.sync_state).is_some(),
        };
        let state = self.dice.roll(4);
        match state {
            0 => {
                let recorded = record_of(&self.sync_state).map_or(0, |record| record.mark);
                let Some(backup) = self.backups.of(side) else {
                    return;
                };
                let is_young = match side {
                    Side::Etcd => backup.mark >= mark_of(&self.sides.zookeeper),
                    Side::ZooKeeper => backup.mark >= recorded,
                };
                if is_young {
                    // Newer than the last mark: detectable only by its revision, while that is lower.
                    return;
                }
                handle.restore(&backup.side);
                if let Some(sync_state) = &backup.sync_state {
                    self.sync_state.handle().restore(sync_state);
                }
            }
            1 => {
                handle.wipe();
                if side == Side::Etcd {
                    self.sync_state.handle().wipe();
                }
            }
            _ => {
                let store = self.foreign_store();
                let sync_state = MemoryStore::new();
                if state == 3 {
                    self.mark_foreign(side, &store, &sync_state);
                }
                handle.restore(&store.handle().back_up());
                if side == Side::Etcd {
                    self.sync_state
                        .handle()
                        .restore(&sync_state.handle().back_up());
                }
            }
        }
        self.replaced.of_mut(side)[state] += 1;
        *self.strange.of_mut(side) = state > 0 && is_detected;
        *self.strange.of_mut(side.other()) &= is_detected && self.foreign().is_some();
        self.last_replaced = side;
        self.now_ms += 4_000;
        self.late.retain(|late| late.is_rival);
        self.rebase(side, &before);
        if side == Side::ZooKeeper && self.dice.roll(2) == 0 {
            self.rival = Rival::new();
        }
        self.reset_bridges(side);
    }

    /// Aborts every bridge's operation and delivers the new content to its watches.
    fn reset_bridges(&mut self, side: Side) {
        for index in 0..self.bridges.len() {
            let is_rival = self.bridges[index].is_rival;
            let tree = self
                .side(is_rival, side)
                .list()
                .expect("the stores are reachable");
            let sync_state = self
                .sync_state(is_rival)
                .list()
                .expect("the stores are reachable");
            let now_ms = self.now_ms;
            let bridge = &mut self.bridges[index];
            bridge.doing = Doing::Nothing;
            bridge.accepted = Pair::default();
            bridge.see_side(side, tree);
            bridge.see_sync_state(sync_state, now_ms);
        }
    }

    /// A foreign store with keys and a history.
    fn foreign_store(&mut self) -> MemoryStore {
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
        store
    }

    /// Writes the mark of another pair to a foreign store, with or without a pair id; in etcd sometimes also that pair's sync
    /// state.
    fn mark_foreign(&mut self, side: Side, store: &MemoryStore, sync_state: &MemoryStore) {
        let id = format!("{:032x}", 1 + self.dice.roll(1_000_000));
        let number = 1 + self.dice.roll(20);
        let text = match side {
            Side::Etcd => id.clone(),
            Side::ZooKeeper if self.dice.roll(2) == 0 => format!("{number}"),
            Side::ZooKeeper => format!("{number} 0 {id}"),
        };
        put(store, &ControlKey::Bridge, text.as_bytes());
        if self.dice.roll(2) == 0 {
            return;
        }
        let identity = store.list().expect("the stores are reachable").identity;
        let record = PairRecord {
            id: Some(id),
            mark: number as u64,
            stores: Pair {
                etcd: identity.as_deref().map(str::to_owned),
                zookeeper: Some("another ensemble".to_owned()),
            },
            ..PairRecord::default()
        };
        let record = serde_json::to_vec(&record).expect("plain data");
        put(sync_state, &ControlKey::Bridge, &record);
        // Its sync state says that every key there was on both sides.
        for key in contents(store).into_keys() {
            let state = SyncState {
                value: Some(sluicegate_bridge::content_hash(b"false")),
                revisions: Pair {
                    etcd: 1 + self.dice.roll(100) as u64,
                    zookeeper: 1 + self.dice.roll(100) as u64,
                },
                mark: number as u64,
                ..SyncState::default()
            };
            put(sync_state, &key, &state.to_json());
        }
    }

    /// Counts the current content of both sides as their last edits, except for keys of a foreign side that the other side also
    /// has; keys that `side` had `before` and does not have now are lost.
    fn rebase(&mut self, side: Side, before: &Pair<BTreeMap<ControlKey, Vec<u8>>>) {
        let now = contents(self.sides.of(side));
        for key in keys() {
            let lost = self.lost.of_mut(side);
            if now.contains_key(&key) {
                lost.remove(&key);
            } else if before.of(side).contains_key(&key) {
                lost.insert(key.clone());
            }
        }
        self.count_edits(self.strange);
    }

    /// Counts the current content of both sides as their last edits, except on a side that `yields`.
    fn count_edits(&mut self, yields: Pair<bool>) {
        let now = Pair::from_fn(|side| contents(self.sides.of(side)));
        self.risen.clear();
        for key in keys() {
            let last = Pair::from_fn(|side| {
                let other = side.other();
                let gives_way = *yields.of(side) && !*yields.of(other);
                let gives_way = gives_way && now.of(other).contains_key(&key);
                (!gives_way).then(|| now.of(side).get(&key).cloned())
            });
            self.last.insert(key, last);
        }
    }

    /// For a halted bridge, an operator starts one that accepts the replaced store, as advised.
    pub(super) fn operate(&mut self) {
        let mut accepted = Pair::default();
        while let Some(foreign) = self.foreign_despite(accepted) {
            let side = match foreign {
                Foreign::Store { side, .. } | Foreign::Unmarked { side, .. } => side,
                // The other pair's bridge was faster, although ZooKeeper belongs to this pair.
                Foreign::Apart { .. } if !self.strange.etcd && self.is_rivals() => Side::ZooKeeper,
                Foreign::Apart { .. } if self.strange.etcd != self.strange.zookeeper => {
                    match self.strange.etcd {
                        true => Side::Etcd,
                        false => Side::ZooKeeper,
                    }
                }
                Foreign::Apart { .. } | Foreign::Named { .. } => self.last_replaced,
            };
            assert!(!*accepted.of(side), "{side} is accepted and still foreign");
            *accepted.of_mut(side) = true;
        }
        let own = self.bridges.iter().filter(|bridge| !bridge.is_rival);
        let is_asked = own.clone().any(|bridge| bridge.accepted == accepted);
        if accepted == Pair::default() || is_asked {
            return;
        }
        let index = self.dice.roll(own.count());
        self.crash(index);
        self.bridges[index].accepted = accepted;
        // Changes in transit before the other pair's bridge came count as edits.
        self.count_edits(match accepted.etcd && accepted.zookeeper {
            true => Pair::default(),
            false => Pair::from_fn(|side| *accepted.of(side) && *self.strange.of(side)),
        });
    }
}

fn record_of(sync_state: &MemoryStore) -> Option<PairRecord> {
    PairRecord::of(&sync_state.list().expect("the stores are reachable"))
}

fn mark_of(store: &MemoryStore) -> u64 {
    marks_of(store).0
}

/// The mark, and the mark from which on absent keys count as deleted.
fn marks_of(store: &MemoryStore) -> (u64, u64) {
    let tree = store.list().expect("the stores are reachable");
    let Some(entry) = tree.get(&ControlKey::Bridge) else {
        return (0, 0);
    };
    let text = std::str::from_utf8(&entry.value).expect("UTF-8");
    let mut numbers = text.split(' ').map(|one| one.parse().expect("a number"));
    (numbers.next().expect("a mark"), numbers.next().unwrap_or(0))
}

fn contents(store: &MemoryStore) -> BTreeMap<ControlKey, Vec<u8>> {
    values(&store.list().expect("the stores are reachable"))
}

/// Older, empty and foreign states of either store, with and without marks, at random times, and another pair's bridge: no key is
/// deleted because a side lost it, and no value is overwritten by a foreign one.
#[test]
fn a_replaced_store_deletes_nothing_from_the_other() {
    let (mut replaced, mut halts) = (Pair::<[u64; 4]>::default(), [0; 6]);
    for seed in 1..300 {
        let bridges = 1 + seed as usize % 3;
        let preferred_side = Side::BOTH[seed as usize % 2];
        let world = run_replaced(seed, bridges, 3_000, preferred_side, 15);
        let world = world.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        for side in Side::BOTH {
            let times = replaced.of_mut(side).iter_mut();
            times
                .zip(world.replaced.of(side))
                .for_each(|(all, one)| *all += one);
        }
        let one = world.halts;
        let one = [
            one.other_store,
            one.unmarked,
            one.apart,
            one.rival_stopped,
            one.stopped_by_rival,
            one.accepted,
        ];
        halts.iter_mut().zip(one).for_each(|(all, one)| *all += one);
    }
    let every = replaced.etcd.iter().chain(&replaced.zookeeper);
    assert!(every.clone().sum::<u64>() > 1_000, "{replaced:?} replaced");
    assert!(
        every.min().is_some_and(|least| *least > 100),
        "{replaced:?} replaced"
    );
    let [store, unmarked, apart, rival, by_rival, accepted] = halts;
    assert!(
        store > 500 && apart > 500 && rival > 500 && by_rival > 100 && accepted > 500,
        "{halts:?} halts"
    );
    assert!(unmarked > 10, "{halts:?} halts");
}
