//! The simulated bridges; one store call per step.

use sluicegate_bridge::{
    Decision, Foreign, KeyState, Known, PairCheck, PairRecord, Progress, Renewal, Sightings,
    SyncState, Transfer, check_pair, decide,
};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{MemoryStore, Store, Tree};

use super::{World, keys};

/// Current operation of a bridge.
pub(super) enum Doing {
    Nothing,
    /// Reading everything to check the pair, with the partial result.
    Pairing(u64, Tree, Pair<Option<Tree>>),
    Renewing(Box<Renewal>),
    /// Reading both sides again for one key, with the partial result.
    Confirming(ControlKey, u64, Tree, Pair<Option<Tree>>),
    Transferring(Transfer),
}

pub(super) struct SimBridge {
    pub(super) id: String,
    /// Whether it belongs to the other pair on the same ZooKeeper.
    pub(super) is_rival: bool,
    /// Offset of its clock.
    pub(super) ahead_ms: u64,
    pub(super) sightings: Sightings,
    /// Sides accepted by an operator.
    pub(super) accepted: Pair<bool>,
    pub(super) views: Pair<Tree>,
    pub(super) sync_state: Tree,
    /// Its pair record; `None` while it must be checked again.
    pub(super) pair: Option<PairRecord>,
    /// Whether it has written its mark since its start.
    pub(super) marked: bool,
    pub(super) doing: Doing,
}

/// A crashed bridge's write.
pub(super) struct Late {
    pub(super) transfer: Transfer,
    pub(super) is_rival: bool,
    pub(super) ahead_ms: u64,
}

/// The name of a pair.
pub(super) fn name_of(is_rival: bool) -> &'static str {
    match is_rival {
        true => "rival",
        false => "pair",
    }
}

/// Number of halts, by cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Halts {
    /// A side was another store.
    pub(super) other_store: u64,
    /// A side no longer carried the mark.
    pub(super) unmarked: u64,
    /// The sides belonged to different pairs, or the sync state was missing.
    pub(super) apart: u64,
    /// The other pair's bridge was halted by this pair's mark, and vice versa.
    pub(super) rival_stopped: u64,
    pub(super) stopped_by_rival: u64,
    /// A store was taken over with an operator's consent.
    pub(super) accepted: u64,
}

impl World {
    pub(super) fn fresh_bridge(&mut self, is_rival: bool) -> SimBridge {
        self.started += 1;
        SimBridge {
            id: format!("bridge-{}", self.started),
            is_rival,
            ahead_ms: match self.dice.roll(4) {
                0 => 3_600_000,
                _ => 0,
            },
            sightings: Sightings::default(),
            accepted: Pair::default(),
            views: Pair::default(),
            sync_state: Tree::default(),
            pair: None,
            marked: false,
            doing: Doing::Nothing,
        }
    }

    pub(super) fn observe(&mut self, bridge: usize) {
        let which = self.dice.roll(3);
        let is_rival = self.bridges[bridge].is_rival;
        let now_ms = self.now_ms;
        let read = match which {
            0 => self.side(is_rival, Side::Etcd).list(),
            1 => self.side(is_rival, Side::ZooKeeper).list(),
            _ => self.sync_state(is_rival).list(),
        };
        let (bridge, Ok(tree)) = (&mut self.bridges[bridge], read) else {
            return;
        };
        match which {
            0 => bridge.see_side(Side::Etcd, tree),
            1 => bridge.see_side(Side::ZooKeeper, tree),
            _ => bridge.see_sync_state(tree, now_ms),
        }
    }

    /// A side of a bridge's pair.
    pub(super) fn side(&self, is_rival: bool, side: Side) -> &MemoryStore {
        match side {
            Side::Etcd if is_rival => &self.rival.etcd,
            _ => self.sides.of(side),
        }
    }

    pub(super) fn sync_state(&self, is_rival: bool) -> &MemoryStore {
        match is_rival {
            true => &self.rival.sync_state,
            false => &self.sync_state,
        }
    }

    pub(super) fn act(&mut self, index: usize) {
        let doing = std::mem::replace(&mut self.bridges[index].doing, Doing::Nothing);
        let is_rival = self.bridges[index].is_rival;
        let now_ms = self.now_ms + self.bridges[index].ahead_ms;
        self.bridges[index].doing = match doing {
            Doing::Nothing => {
                let keys = keys();
                let key = keys[self.dice.roll(keys.len())].clone();
                let bridge = &self.bridges[index];
                match (&bridge.pair, self.sync_state(is_rival).list()) {
                    (Some(pair), _) => {
                        self.judge(bridge, &key, &bridge.views, &bridge.sync_state, pair, None)
                    }
                    (None, Ok(sync_state)) => Doing::Pairing(now_ms, sync_state, Pair::default()),
                    (None, Err(_)) => Doing::Nothing,
                }
            }
            Doing::Pairing(began, sync_state, mut read) => match self.read_one(is_rival, &mut read)
            {
                Some(true) => Doing::Pairing(began, sync_state, read),
                Some(false) => self.pair_up(index, began, sync_state, read),
                None => Doing::Nothing,
            },
            Doing::Renewing(renewal) => self.renew(index, renewal),
            Doing::Confirming(key, began, sync_state, mut read) => {
                match self.read_one(is_rival, &mut read) {
                    Some(true) => Doing::Confirming(key, began, sync_state, read),
                    Some(false) => {
                        let views = whole(&read);
                        let both = Pair::from_fn(|side| views.of(side));
                        match check_pair(
                            name_of(is_rival),
                            &sync_state,
                            &both,
                            false,
                            Pair::default(),
                            began,
                        ) {
                            PairCheck::Fits(pair) => {
                                let bridge = &self.bridges[index];
                                self.judge(bridge, &key, &views, &sync_state, &pair, Some(began))
                            }
                            _ => {
                                self.bridges[index].pair = None;
                                Doing::Nothing
                            }
                        }
                    }
                    None => Doing::Nothing,
                }
            }
            Doing::Transferring(mut transfer) => {
                match self.move_on(&mut transfer, is_rival, now_ms) {
                    Progress::Going => Doing::Transferring(transfer),
                    Progress::Done => {
                        self.transferred += 1;
                        Doing::Nothing
                    }
                    Progress::Overtaken | Progress::Late | Progress::Failed(_) => Doing::Nothing,
                }
            }
        };
        if let Doing::Transferring(transfer) = &self.bridges[index].doing
            && transfer.writes_next()
            && self.dice.roll(12) == 0
        {
            self.crash(index);
        }
    }

    fn renew(&mut self, index: usize, mut renewal: Box<Renewal>) -> Doing {
        let bridge = &self.bridges[index];
        let (is_rival, now_ms) = (bridge.is_rival, self.now_ms + bridge.ahead_ms);
        let sides = Pair::from_fn(|side| self.side(is_rival, side) as &dyn Store);
        match renewal.step(sides, self.sync_state(is_rival), now_ms) {
            Progress::Going => Doing::Renewing(renewal),
            Progress::Done => {
                self.bridges[index].marked = true;
                if renewal.taken_over().next().is_some() {
                    self.halts.accepted += 1;
                    self.bridges[index].accepted = Pair::default();
                }
                Doing::Nothing
            }
            _ => Doing::Nothing,
        }
    }

    /// Reads the next side that was not read yet. Returns whether there was one, or `None` if it is unreachable.
    pub(super) fn read_one(&self, is_rival: bool, read: &mut Pair<Option<Tree>>) -> Option<bool> {
        let missing = Side::BOTH.into_iter().find(|side| read.of(*side).is_none());
        let Some(side) = missing else {
            return Some(false);
        };
        *read.of_mut(side) = Some(self.side(is_rival, side).list().ok()?);
        Some(true)
    }

    /// Checks the pair once everything is read.
    pub(super) fn pair_up(
        &mut self,
        index: usize,
        began: u64,
        sync_state: Tree,
        read: Pair<Option<Tree>>,
    ) -> Doing {
        let views = whole(&read);
        let both = Pair::from_fn(|side| views.of(side));
        let now_ms = self.now_ms;
        let bridge = &mut self.bridges[index];
        let name = name_of(bridge.is_rival);
        match check_pair(
            name,
            &sync_state,
            &both,
            !bridge.marked,
            bridge.accepted,
            began,
        ) {
            PairCheck::Fits(pair) => {
                bridge.see_sync_state(sync_state, now_ms);
                bridge.pair = Some(pair);
                bridge.views = views;
                bridge.accepted = Pair::default();
                if !bridge.is_rival {
                    self.strange = Pair::default();
                }
                Doing::Nothing
            }
            PairCheck::Renew(renewal) => Doing::Renewing(renewal),
            PairCheck::Foreign(foreign) => {
                let (is_rival, accepted) = (bridge.is_rival, bridge.accepted);
                let open = foreign.iter().find(|one| !one.is_answered_by(accepted));
                self.stopped(is_rival, open.expect("the cause of the halt"));
                Doing::Nothing
            }
        }
    }

    pub(super) fn stopped(&mut self, is_rival: bool, foreign: &Foreign) {
        let by_rival = self.is_rivals();
        let halts = &mut self.halts;
        let apart = matches!(foreign, Foreign::Apart { .. });
        *match foreign {
            _ if is_rival && apart => &mut halts.rival_stopped,
            _ if is_rival => return,
            Foreign::Apart { .. } if by_rival => &mut halts.stopped_by_rival,
            Foreign::Apart { .. } | Foreign::Named { .. } => &mut halts.apart,
            Foreign::Store { .. } => &mut halts.other_store,
            Foreign::Unmarked { .. } => &mut halts.unmarked,
        } += 1;
    }

    /// Runs a transfer's next step. Asserts that a write replaces only the value that the bridge has read, so that an unseen edit is
    /// never overwritten, and that nothing is deleted because the other side has lost it.
    pub(super) fn move_on(
        &mut self,
        transfer: &mut Transfer,
        is_rival: bool,
        now_ms: u64,
    ) -> Progress {
        let side = self.side(is_rival, transfer.to());
        let there = side.list().unwrap_or_default();
        let there = there.get(transfer.key());
        let writes = transfer.writes_next();
        let progress = transfer.step(side, self.sync_state(is_rival), now_ms);
        if writes && let Some(wrote) = transfer.written().0 {
            let replaced = there.map_or(0, |entry| entry.stamp.revision);
            assert_eq!(
                replaced,
                transfer.replaces(),
                "{} overruled",
                transfer.key()
            );
            if is_rival {
                if transfer.to() == Side::ZooKeeper {
                    let value = wrote.map(|entry| entry.value.to_vec());
                    self.edited(transfer.key(), Side::ZooKeeper, value);
                }
                return progress;
            }
            let (key, from) = (transfer.key(), transfer.to().other());
            let lost = self.lost.of(from).contains(key);
            assert!(
                !(transfer.is_delete() && lost),
                "{key} deleted because {from} has lost it"
            );
            self.lost.of_mut(transfer.to()).remove(key);
        }
        progress
    }

    pub(super) fn judge(
        &self,
        bridge: &SimBridge,
        key: &ControlKey,
        views: &Pair<Tree>,
        sync_state: &Tree,
        pair: &PairRecord,
        began: Option<u64>,
    ) -> Doing {
        let fresh = began.is_some();
        let now_ms = self.now_ms + bridge.ahead_ms;
        let began = began.unwrap_or(now_ms);
        let entries = Pair::from_fn(|side| views.of(side).get(key));
        let entry = sync_state.get(key);
        let state = entry.and_then(|entry| SyncState::from_json(&entry.value));
        let state_at = entry.map(|entry| entry.stamp);
        let ages = bridge.sightings.ages(key, state.as_ref(), self.now_ms);
        let decision = decide(&KeyState {
            key,
            places: &Pair::from_fn(|side| self.sides.of(side).locate(key)),
            entries,
            revisions: Pair::from_fn(|side| views.of(side).revision),
            // The simulation has no watch events: deletes are known only from listings.
            deleted: Pair::default(),
            sync: state.as_ref(),
            ages: &ages,
            // Some deleted keys are forgotten within a run.
            forget: state_at.is_some_and(|stamp| stamp.revision % 4 == 0),
            pair,
            fresh,
            preferred_side: self.preferred_side,
            own: &bridge.id,
            now_ms,
        });
        match decision {
            Decision::NoOp | Decision::Wait { .. } => Doing::Nothing,
            Decision::Confirm | Decision::Stale => {
                assert!(!fresh, "{decision:?} on fresh readings of {key}");
                Doing::Confirming(key.clone(), now_ms, sync_state.clone(), Pair::default())
            }
            Decision::RecordInSync(agreed) => Doing::Transferring(Transfer::state_only(
                key, agreed, state_at, &bridge.id, began,
            )),
            Decision::Copy { to, .. } => Doing::Transferring(Transfer::new(
                key,
                to,
                *entries.of(to.other()),
                *entries.of(to),
                Known {
                    sync: state.as_ref(),
                    sync_at: state_at,
                    ages: &ages,
                    pair,
                },
                &bridge.id,
                began,
            )),
            Decision::Refuse(refusal) => panic!("{key} is valid: {refusal:?}"),
        }
    }

    /// Replaces the bridge by a new one; its pending write may still reach the store.
    pub(super) fn crash(&mut self, index: usize) {
        let fresh = self.fresh_bridge(self.bridges[index].is_rival);
        let gone = std::mem::replace(&mut self.bridges[index], fresh);
        let (is_rival, ahead_ms) = (gone.is_rival, gone.ahead_ms);
        if let Doing::Transferring(transfer) = gone.doing
            && transfer.writes_next()
            && self.dice.roll(2) == 0
        {
            self.late.push(Late {
                transfer,
                is_rival,
                ahead_ms,
            });
        }
    }
}

impl SimBridge {
    pub(super) fn see_sync_state(&mut self, sync_state: Tree, clock_ms: u64) {
        if PairRecord::of(&sync_state) != self.pair {
            self.pair = None;
        }
        for key in keys() {
            let state = sync_state.get(&key);
            let state = state.and_then(|entry| SyncState::from_json(&entry.value));
            self.sightings.see(&key, state.as_ref(), clock_ms);
        }
        self.sync_state = sync_state;
    }

    /// Applies a watch update of a side: another store, an older state or another pair's mark cause a check of the pair.
    pub(super) fn see_side(&mut self, side: Side, tree: Tree) {
        let seen = self.views.of(side);
        let broke = tree.revision < seen.revision || tree.is_other_than(seen);
        let carried = (self.pair.as_ref()).is_none_or(|pair| pair.is_carried_by(side, &tree));
        if broke || !carried {
            self.pair = None;
        }
        *self.views.of_mut(side) = tree;
    }
}

fn whole(read: &Pair<Option<Tree>>) -> Pair<Tree> {
    Pair::from_fn(|side| read.of(side).clone().unwrap_or_default())
}
