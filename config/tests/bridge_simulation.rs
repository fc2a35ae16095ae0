//! Situation: users edit both sides while one to three bridges run, see the stores late, lose them, crash and start again.
//! Property: in the end both sides are equal; a key that is edited on one side only holds that side's last edit, however many
//! bridges there are; any other key holds the last edit of one of the sides, so nothing comes back after its delete.
//! Every store call is a step of its own, and a seeded scheduler chooses the next one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluicegate_config::bridge::{Crossing, Decision, Look, Note, Pair, Progress, Side, decide};
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
    /// Reading both sides anew for a key, with what was read so far.
    Confirming(ControlKey, u64, Tree, Pair<Option<Tree>>),
    Crossing(Crossing),
}

struct SimBridge {
    id: String,
    views: Pair<Tree>,
    notes: Tree,
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
    crossed: u64,
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
    fn new(seed: u64, bridges: usize, authority: Side) -> Self {
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
            crossed: 0,
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
        let written = self
            .sides
            .of(side)
            .write(key, value.as_deref(), Expected::Any);
        if written.is_ok() {
            let last = self.last.entry(key.clone()).or_default();
            *last.of_mut(side) = Some(value);
        }
    }

    fn observe(&mut self, bridge: usize) {
        let which = self.dice.roll(3);
        let bridge = &mut self.bridges[bridge];
        match which {
            0 => take(&mut bridge.views.etcd, self.sides.etcd.list()),
            1 => take(&mut bridge.views.zookeeper, self.sides.zookeeper.list()),
            _ => take(&mut bridge.notes, self.notes.list()),
        }
    }

    fn act(&mut self, index: usize) {
        let doing = std::mem::replace(&mut self.bridges[index].doing, Doing::Nothing);
        self.bridges[index].doing = match doing {
            Doing::Nothing => {
                let keys = keys();
                let key = keys[self.dice.roll(keys.len())].clone();
                let bridge = &self.bridges[index];
                self.judge(bridge, &key, &bridge.views, &bridge.notes, None)
            }
            Doing::Confirming(key, began, notes, mut read) => {
                let missing = Side::BOTH.into_iter().find(|side| read.of(*side).is_none());
                match missing {
                    Some(side) => match self.sides.of(side).list() {
                        Ok(tree) => {
                            *read.of_mut(side) = Some(tree);
                            Doing::Confirming(key, began, notes, read)
                        }
                        Err(_) => Doing::Nothing,
                    },
                    None => {
                        let views = Pair::from_fn(|side| read.of(side).clone().unwrap_or_default());
                        self.judge(&self.bridges[index], &key, &views, &notes, Some(began))
                    }
                }
            }
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

    /// Does a crossing's next step. A write replaces what the bridge has read, or nothing: an edit that no bridge has read is
    /// never overruled.
    fn move_on(&self, crossing: &mut Crossing) -> Progress {
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
        }
        progress
    }

    fn judge(
        &self,
        bridge: &SimBridge,
        key: &ControlKey,
        views: &Pair<Tree>,
        notes: &Tree,
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
            note: note.as_ref(),
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
                (note.as_ref(), note_at),
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
        values(&views.etcd) == values(&views.zookeeper)
            && keys().iter().all(|key| {
                matches!(
                    self.judge(bridge, key, &views, &notes, Some(self.now_ms)),
                    Doing::Nothing
                )
            })
            && notes.entries.values().all(|entry| {
                Note::from_json(&entry.value)
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
            if !fits {
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

fn values(tree: &Tree) -> BTreeMap<ControlKey, Vec<u8>> {
    let entries = tree.entries.iter();
    entries
        .map(|(key, entry)| (key.clone(), entry.value.to_vec()))
        .collect()
}

fn run(seed: u64, bridges: usize, steps: usize, authority: Side) -> Result<World, String> {
    let mut world = World::new(seed, bridges, authority);
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
    ) {
        let authority = if etcd_wins { Side::Etcd } else { Side::ZooKeeper };
        if let Err(wrong) = run(seed, bridges, steps, authority) {
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
