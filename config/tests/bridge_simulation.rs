//! Situation: users edit both sides while one to three bridges run, see the stores late, lose them, crash and start again;
//! either store is replaced by an older state of itself, by an empty one or by that of somebody else.
//! Property: in the end both sides are equal; a key that is edited on one side only holds that side's last edit, however many
//! bridges there are; any other key holds the last edit of one of the sides, so nothing comes back after its delete. What a
//! side holds once it was replaced counts as edited. No key is ever deleted because the other side has lost it (G10); what is
//! deleted from a side that went back, before the key was noted again, may come back for that.
//! Every store call is a step of its own, and a seeded scheduler chooses the next one.

#[path = "bridge_simulation/replaced.rs"]
mod replaced;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use replaced::Backup;
use sluicegate_config::bridge::{
    Crossing, Decision, Known, Look, Note, Pair, PairCheck, PairRecord, Progress, Renewal, Side,
    check_pair, decide,
};
use sluicegate_config::store::{ControlKey, Expected, MemoryStore, MemoryStoreHandle, Store, Tree};

/// A small generator of its own, so that a seed means the same run for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// What a bridge is doing.
enum Doing {
    Nothing,
    /// Reading everything anew for a look at the pair, with what was read so far.
    Pairing(u64, Tree, Pair<Option<Tree>>),
    Renewing(Box<Renewal>),
    /// Reading both sides anew for a key, with what was read so far.
    Confirming(ControlKey, u64, Tree, Pair<Option<Tree>>),
    Crossing(Crossing),
}

struct SimBridge {
    id: String,
    views: Pair<Tree>,
    notes: Tree,
    /// What it knows of the pair, while it does not doubt it.
    pair: Option<PairRecord>,
    /// Whether it has left its mark since it started.
    marked: bool,
    doing: Doing,
}

struct World {
    dice: Dice,
    sides: Pair<MemoryStore>,
    notes: MemoryStore,
    handles: Vec<MemoryStoreHandle>,
    away: Vec<bool>,
    bridges: Vec<SimBridge>,
    authority: Side,
    now_ms: u64,
    started: u64,
    /// Writes of crashed bridges that are still on their way to a store.
    late: Vec<Crossing>,
    last: BTreeMap<ControlKey, Pair<Option<Option<Vec<u8>>>>>,
    /// What may come back of keys that were deleted from a side that went back, before they were noted again.
    risen: BTreeMap<ControlKey, Vec<Option<Vec<u8>>>>,
    /// What each side held and does not hold since it was replaced.
    lost: Pair<BTreeSet<ControlKey>>,
    backups: Pair<Option<Backup>>,
    /// How often stores are replaced, in 1,000 steps.
    replacements: usize,
    crossed: u64,
    /// How often each side was replaced by an older, an empty and a foreign state.
    replaced: Pair<[u64; 3]>,
    /// How often a side was found to be another store.
    refused: u64,
}

const VALUES: [&str; 3] = ["{\"v\":1}", "{\"v\":2}", "{\"v\":3}"];

fn keys() -> Vec<ControlKey> {
    let mut keys = vec![ControlKey::Logging];
    for name in ["a", "b", "c", "d"] {
        keys.push(ControlKey::Enabled(name.into()));
        keys.push(ControlKey::Config(name.into()));
    }
    keys
}

/// The side that alone is edited, for keys of one side.
fn only(key: &ControlKey) -> Option<Side> {
    match key.handler() {
        Some("a") => Some(Side::Etcd),
        Some("b") => Some(Side::ZooKeeper),
        _ => None,
    }
}

impl World {
    fn new(seed: u64, bridges: usize, authority: Side, replacements: usize) -> Self {
        let sides = Pair::from_fn(|_| MemoryStore::new());
        let notes = MemoryStore::new();
        let handles = vec![
            sides.etcd.handle(),
            sides.zookeeper.handle(),
            notes.handle(),
        ];
        let mut world = Self {
            dice: Dice(seed | 1),
            sides,
            notes,
            handles,
            away: vec![false; 3],
            bridges: Vec::new(),
            authority,
            now_ms: 1_000_000,
            started: 0,
            late: Vec::new(),
            last: BTreeMap::new(),
            risen: BTreeMap::new(),
            lost: Pair::default(),
            backups: Pair::from_fn(|_| None),
            replacements,
            crossed: 0,
            replaced: Pair::default(),
            refused: 0,
        };
        for _ in 0..bridges {
            let bridge = world.fresh_bridge();
            world.bridges.push(bridge);
        }
        world
    }

    fn fresh_bridge(&mut self) -> SimBridge {
        self.started += 1;
        SimBridge {
            id: format!("bridge-{}", self.started),
            views: Pair::default(),
            notes: Tree::default(),
            pair: None,
            marked: false,
            doing: Doing::Nothing,
        }
    }

    fn edit(&mut self) {
        let keys = keys();
        let key = &keys[self.dice.roll(keys.len())];
        let side = only(key).unwrap_or(Side::BOTH[self.dice.roll(2)]);
        let roll = self.dice.roll(4);
        let value = match key {
            _ if roll == 3 => None,
            ControlKey::Config(_) => Some(VALUES[roll].as_bytes().to_vec()),
            _ => Some(["true", "false", " true"][roll].as_bytes().to_vec()),
        };
        if value.is_none() && self.is_behind(side, key) {
            let held = Pair::from_fn(|side| {
                let held = self.sides.of(side).handle().held(key);
                held.map(|value| value.to_vec())
            });
            let risen = self.risen.entry(key.clone()).or_default();
            risen.extend([held.etcd, held.zookeeper]);
        }
        let written = self
            .sides
            .of(side)
            .write(key, value.as_deref(), Expected::Any);
        if written.is_ok() {
            let last = self.last.entry(key.clone()).or_default();
            *last.of_mut(side) = Some(value);
            self.lost.of_mut(side).remove(key);
        }
    }

    fn observe(&mut self, bridge: usize) {
        let which = self.dice.roll(3);
        let bridge = &mut self.bridges[bridge];
        match which {
            0 => take(&mut bridge.views.etcd, self.sides.etcd.list()),
            1 => take(&mut bridge.views.zookeeper, self.sides.zookeeper.list()),
            _ => {
                if let Ok(notes) = self.notes.list() {
                    bridge.see_notes(notes);
                }
            }
        }
    }

    fn act(&mut self, index: usize) {
        let doing = std::mem::replace(&mut self.bridges[index].doing, Doing::Nothing);
        self.bridges[index].doing = match doing {
            Doing::Nothing => {
                let keys = keys();
                let key = keys[self.dice.roll(keys.len())].clone();
                let bridge = &self.bridges[index];
                match (&bridge.pair, self.notes.list()) {
                    (Some(pair), _) => {
                        self.judge(bridge, &key, &bridge.views, &bridge.notes, pair, None)
                    }
                    (None, Ok(notes)) => Doing::Pairing(self.now_ms, notes, Pair::default()),
                    (None, Err(_)) => Doing::Nothing,
                }
            }
            Doing::Pairing(began, notes, mut read) => match self.read_one(&mut read) {
                Some(true) => Doing::Pairing(began, notes, read),
                Some(false) => self.pair_up(index, began, notes, read),
                None => Doing::Nothing,
            },
            Doing::Renewing(mut renewal) => {
                let side = &self.sides.zookeeper;
                match renewal.step(side, &self.notes, self.now_ms) {
                    Progress::Going => Doing::Renewing(renewal),
                    Progress::Done => {
                        self.bridges[index].marked = true;
                        Doing::Nothing
                    }
                    _ => Doing::Nothing,
                }
            }
            Doing::Confirming(key, began, notes, mut read) => match self.read_one(&mut read) {
                Some(true) => Doing::Confirming(key, began, notes, read),
                Some(false) => {
                    let views = whole(&read);
                    let both = Pair::from_fn(|side| views.of(side));
                    match check_pair(&notes, &both, false, began) {
                        PairCheck::Fits(pair) => {
                            let bridge = &self.bridges[index];
                            self.judge(bridge, &key, &views, &notes, &pair, Some(began))
                        }
                        _ => {
                            self.bridges[index].pair = None;
                            Doing::Nothing
                        }
                    }
                }
                None => Doing::Nothing,
            },
            Doing::Crossing(mut crossing) => match self.move_on(&mut crossing) {
                Progress::Going => Doing::Crossing(crossing),
                Progress::Done => {
                    self.crossed += 1;
                    Doing::Nothing
                }
                Progress::Overtaken | Progress::Late | Progress::Failed(_) => Doing::Nothing,
            },
        };
        if let Doing::Crossing(crossing) = &self.bridges[index].doing
            && crossing.writes_next()
            && self.dice.roll(12) == 0
        {
            self.crash(index);
        }
    }

    /// Reads the next side that was not read yet: whether there was one, or `None` if it is away.
    fn read_one(&self, read: &mut Pair<Option<Tree>>) -> Option<bool> {
        let missing = Side::BOTH.into_iter().find(|side| read.of(*side).is_none());
        let Some(side) = missing else {
            return Some(false);
        };
        *read.of_mut(side) = Some(self.sides.of(side).list().ok()?);
        Some(true)
    }

    /// What a bridge does once it has read everything for a look at the pair.
    fn pair_up(
        &mut self,
        index: usize,
        began: u64,
        notes: Tree,
        read: Pair<Option<Tree>>,
    ) -> Doing {
        let views = whole(&read);
        let both = Pair::from_fn(|side| views.of(side));
        let bridge = &mut self.bridges[index];
        match check_pair(&notes, &both, !bridge.marked, began) {
            PairCheck::Fits(pair) => {
                bridge.pair = Some(pair);
                bridge.views = views;
                bridge.notes = notes;
                Doing::Nothing
            }
            PairCheck::Renew(renewal) => Doing::Renewing(renewal),
            PairCheck::Replaced { .. } => {
                self.refused += 1;
                Doing::Nothing
            }
        }
    }

    /// Does a crossing's next step. A write replaces what the bridge has read, or nothing: an edit that no bridge has read is
    /// never overruled. It deletes nothing that the other side has only lost.
    fn move_on(&mut self, crossing: &mut Crossing) -> Progress {
        let side = self.sides.of(crossing.to());
        let there = side.list().unwrap_or_default();
        let there = there.get(crossing.key());
        let writes = crossing.writes_next();
        let progress = crossing.step(side, &self.notes, self.now_ms);
        if writes && crossing.written().0.is_some() {
            let replaced = there.map_or(0, |entry| entry.stamp.revision);
            assert_eq!(
                replaced,
                crossing.replaces(),
                "{} overruled",
                crossing.key()
            );
            let (key, from) = (crossing.key(), crossing.to().other());
            let lost = self.lost.of(from).contains(key);
            assert!(
                !(crossing.is_delete() && lost),
                "{key} deleted, since {from} has lost it"
            );
            self.lost.of_mut(crossing.to()).remove(key);
        }
        progress
    }

    fn judge(
        &self,
        bridge: &SimBridge,
        key: &ControlKey,
        views: &Pair<Tree>,
        notes: &Tree,
        pair: &PairRecord,
        began: Option<u64>,
    ) -> Doing {
        let fresh = began.is_some();
        let began = began.unwrap_or(self.now_ms);
        let entries = Pair::from_fn(|side| views.of(side).get(key));
        let noted = notes.get(key);
        let note = noted.and_then(|entry| Note::from_json(&entry.value));
        let note_at = noted.map(|entry| entry.stamp);
        let decision = decide(&Look {
            key,
            places: &Pair::from_fn(|side| self.sides.of(side).locate(key)),
            entries,
            revisions: Pair::from_fn(|side| views.of(side).revision),
            // It only reads: it never knows more of a delete than a listing shows.
            deleted: Pair::default(),
            note: note.as_ref(),
            pair,
            fresh,
            authority: self.authority,
            own: &bridge.id,
            now_ms: self.now_ms,
        });
        match decision {
            Decision::Rest | Decision::Wait { .. } => Doing::Nothing,
            Decision::Confirm | Decision::Stale => {
                assert!(!fresh, "{decision:?} on fresh readings of {key}");
                Doing::Confirming(key.clone(), self.now_ms, notes.clone(), Pair::default())
            }
            Decision::Agree(agreed) => {
                Doing::Crossing(Crossing::of_note(key, agreed, note_at, &bridge.id, began))
            }
            Decision::Cross { to, .. } => Doing::Crossing(Crossing::new(
                key,
                to,
                *entries.of(to.other()),
                *entries.of(to),
                Known {
                    note: note.as_ref(),
                    note_at,
                    mark: pair.mark,
                },
                &bridge.id,
                began,
            )),
            Decision::Refuse(refusal) => panic!("{key} is valid: {refusal:?}"),
        }
    }

    /// The bridge is gone; the write that it was about to make may still reach the store, soon.
    fn crash(&mut self, index: usize) {
        let fresh = self.fresh_bridge();
        let gone = std::mem::replace(&mut self.bridges[index], fresh);
        if let Doing::Crossing(crossing) = gone.doing
            && crossing.writes_next()
            && self.dice.roll(2) == 0
        {
            self.late.push(crossing);
        }
    }

    fn step(&mut self, edits: bool) {
        let bridges = self.bridges.len();
        if edits && self.dice.roll(1_000) < self.replacements && !self.away.contains(&true) {
            match self.dice.roll(3) {
                0 => self.back_up(),
                1 => self.replace(),
                _ => self.operate(),
            }
            return;
        }
        match self.dice.roll(100) {
            0..8 if edits => self.edit(),
            8 if edits => {
                let which = self.dice.roll(3);
                let back = self.away.contains(&true);
                for (index, handle) in self.handles.iter().enumerate() {
                    self.away[index] = index == which && !back;
                    handle.set_away(self.away[index]);
                }
            }
            9 if edits => {
                let index = self.dice.roll(bridges);
                self.crash(index);
            }
            10..13 => self.now_ms += self.dice.roll(1_500) as u64,
            13..16 => {
                if let Some(mut crossing) = self.late.pop() {
                    // Whatever comes of it, nobody is there to hear it.
                    let _ = self.move_on(&mut crossing);
                }
            }
            16..45 => {
                let index = self.dice.roll(bridges);
                self.observe(index);
            }
            _ => {
                let index = self.dice.roll(bridges);
                self.act(index);
            }
        }
    }

    /// Lets the bridges finish, with every store back.
    fn settle(&mut self) {
        for handle in &self.handles {
            handle.set_away(false);
        }
        self.away = vec![false; 3];
        self.operate();
        for _ in 0..200 {
            for _ in 0..2_000 {
                self.step(false);
            }
            self.now_ms += 5_000;
            if self.late.is_empty() && self.is_quiet() {
                return;
            }
        }
        panic!("the bridges do not come to rest");
    }

    fn is_quiet(&mut self) -> bool {
        let views = Pair::from_fn(|side| self.sides.of(side).list().expect("the store is back"));
        let notes = self.notes.list().expect("the store is back");
        let bridge = &self.bridges[0];
        let Some(pair) = &bridge.pair else {
            return false;
        };
        values(&views.etcd) == values(&views.zookeeper)
            && keys().iter().all(|key| {
                matches!(
                    self.judge(bridge, key, &views, &notes, pair, Some(self.now_ms)),
                    Doing::Nothing
                )
            })
            && notes.entries.iter().all(|(key, entry)| {
                *key == ControlKey::Bridge
                    || Note::from_json(&entry.value)
                        .expect("bridges write notes")
                        .pending
                        .is_empty()
            })
    }

    fn check(&self) -> Result<(), String> {
        let etcd = values(&self.sides.etcd.list().expect("the store is back"));
        let zookeeper = values(&self.sides.zookeeper.list().expect("the store is back"));
        if etcd != zookeeper {
            return Err(format!("{etcd:?} is not {zookeeper:?}"));
        }
        for (key, last) in &self.last {
            let now = etcd.get(key).cloned();
            let fits = Side::BOTH
                .into_iter()
                .any(|side| last.of(side).as_ref().is_some_and(|last| *last == now));
            let rose = self
                .risen
                .get(key)
                .is_some_and(|risen| risen.contains(&now));
            if !fits && !rose {
                return Err(format!("{key} holds {now:?}; last edits were {last:?}"));
            }
        }
        Ok(())
    }
}

fn take(view: &mut Tree, read: Result<Tree, sluicegate_config::store::StoreError>) {
    if let Ok(tree) = read {
        *view = tree;
    }
}

impl SimBridge {
    fn see_notes(&mut self, notes: Tree) {
        if PairRecord::of(&notes) != self.pair {
            self.pair = None;
        }
        self.notes = notes;
    }
}

fn whole(read: &Pair<Option<Tree>>) -> Pair<Tree> {
    Pair::from_fn(|side| read.of(side).clone().unwrap_or_default())
}

fn put(store: &MemoryStore, key: &ControlKey, value: &[u8]) {
    let written = store.write(key, Some(value), Expected::Any);
    written.expect("no store is away");
}

fn values(tree: &Tree) -> BTreeMap<ControlKey, Vec<u8>> {
    let entries = tree.entries.iter();
    let entries = entries.filter(|(key, _)| **key != ControlKey::Bridge);
    entries
        .map(|(key, entry)| (key.clone(), entry.value.to_vec()))
        .collect()
}

fn run(seed: u64, bridges: usize, steps: usize, authority: Side) -> Result<World, String> {
    run_replaced(seed, bridges, steps, authority, 0)
}

fn run_replaced(
    seed: u64,
    bridges: usize,
    steps: usize,
    authority: Side,
    replacements: usize,
) -> Result<World, String> {
    let mut world = World::new(seed, bridges, authority, replacements);
    for _ in 0..steps {
        world.step(true);
    }
    world.settle();
    world.check().map(|()| world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_end_equal_and_hold_a_last_edit(
        seed in any::<u64>(),
        bridges in 1usize..4,
        steps in 1usize..4_000,
        etcd_wins in any::<bool>(),
        replacements in 0usize..20,
    ) {
        let authority = if etcd_wins { Side::Etcd } else { Side::ZooKeeper };
        if let Err(wrong) = run_replaced(seed, bridges, steps, authority, replacements) {
            return Err(TestCaseError::fail(wrong));
        }
    }
}

#[test]
fn ten_thousand_edits_with_three_bridges_end_in_equal_trees() {
    let world = run(7, 3, 130_000, Side::Etcd).unwrap();
    assert!(world.crossed > 1_000, "{} crossed", world.crossed);
}

/// A key that is noted on both sides and edited on one: the other bridges' echoes never undo the edit.
#[test]
fn a_second_bridge_does_not_mistake_an_echo_for_an_edit() {
    for seed in 1..150 {
        run(seed, 2, 600, Side::ZooKeeper).unwrap();
        run(seed, 2, 600, Side::Etcd).unwrap();
    }
}
