//! Checks that both stores are still those that the sync state is about, and whether one reverted to an earlier state
//! (G10, ADR 0025).
//!
//! ```text
//!  record, in etcd next to the sync state:  pair ID, the stores, mark 7, missing keys in ZooKeeper count from mark 5 on
//!  mark, in ZooKeeper:                      7 5 ID   lower: ZooKeeper reverted   higher: etcd did, with record and sync state
//!  mark, in etcd next to the keys:          ID NAME  different ID, or none: the sides do not belong together
//!  sync state of a key:                     mark 6: when it was written, ZooKeeper had seen mark 6
//! ```
//!
//! A key that is recorded but missing was deleted, or lost with the state of its store. Revisions alone cannot tell: a
//! restored store counts on from its backup and passes the recorded revision. Bridges therefore write a growing mark to
//! ZooKeeper and record it in etcd. If the two differ, one store reverted to an earlier state; no key missing there
//! counts as deleted until the key was recorded again. The sync state is stored in the replicated etcd and reverts with
//! it. So does the record's knowledge of ZooKeeper, which is why ZooKeeper carries it too: the second number.
//!
//! A side identifies its store by its identity and its pair by its mark. If either differs from the record, nothing is
//! copied until an operator says which side to take over ([`Foreign::is_answered_by`]). A side that is taken over
//! counts as reverted: its values are not edits and yield to the other side, and keys that it lacks were not deleted.
//! The pair then gets a new id, so that a bridge that still joins the former stores stops.

use std::collections::BTreeMap;

use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::Tree;

use super::SyncState;
use super::mark::{MAX_MARK, Mark, Membership, new_id};
use super::pair_record::{MARKED, PairRecord, TakenOver};
use super::renewal::Renewal;

/// Why nothing is copied: a side is not the store that the sync state is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A side is a different store.
    Store {
        /// The side.
        side: Side,
        /// The identity that the sync state is about.
        recorded: String,
        /// The identity found; `None` where nothing is left that would tell.
        found: Option<String>,
    },
    /// A side no longer carries the mark of the pair.
    Unmarked {
        /// The side.
        side: Side,
        /// The pair.
        pair: String,
    },
    /// ZooKeeper belongs to a different pair than etcd.
    Apart {
        /// The pair of ZooKeeper; `None` where its mark is from before pairs had ids.
        zookeeper: Option<String>,
        /// The pair of the sync state in etcd; `None` without any.
        etcd: Option<String>,
    },
    /// Both belong to a pair that is bridged under a different name.
    Named {
        /// The pair.
        pair: String,
        /// Its name.
        name: String,
    },
}

impl Foreign {
    /// Whether `accepted` names the side to take over: the foreign one; where two sides do not belong together, either
    /// of them.
    #[must_use]
    pub fn is_answered_by(&self, accepted: Pair<bool>) -> bool {
        match self {
            Self::Store { side, .. } | Self::Unmarked { side, .. } => *accepted.of(*side),
            Self::Apart { .. } | Self::Named { .. } => accepted != Pair::default(),
        }
    }
}

/// Result of checking a pair.
#[derive(Debug)]
pub enum PairCheck {
    /// Both stores match the record: keys may be copied.
    Fits(PairRecord),
    /// The record or the marks must be renewed first.
    Renew(Box<Renewal>),
    /// Every mismatch between the sides and the record, where the operator's answer does not cover all of them.
    Foreign(Vec<Foreign>),
}

/// Checks fresh readings of both sides against the state store's tree `state` of the pair `name`, which was read before
/// them. `new_mark` requests a new mark even if nothing else requires one; `accepted` are the sides that the operator
/// allows to be taken over if they are foreign.
#[must_use]
pub fn check_pair(
    name: &str,
    state: &Tree,
    sides: &Pair<&Tree>,
    new_mark: bool,
    accepted: Pair<bool>,
    began_ms: u64,
) -> PairCheck {
    let known = PairRecord::of(state);
    let record = known.clone().unwrap_or_default();
    let mark = Mark::of(sides.of(MARKED));
    let foreign = find_foreign(name, known.as_ref(), sides, &mark);
    if !foreign.iter().all(|one| one.is_answered_by(accepted)) {
        return PairCheck::Foreign(foreign);
    }
    let found = Found {
        name,
        // Which sides the sync state knows, and which are taken over.
        fits: Pair::from_fn(|side| {
            known.is_some() && foreign.iter().all(|one| one.is_unrelated_to(side))
        }),
        accepted: Pair::from_fn(|side| !foreign.is_empty() && *accepted.of(side)),
        is_new: known.is_none(),
        mark,
        sides: *sides,
        states: states_of(state),
    };
    let went_back = found.went_back(&record);
    let next_id = found.next_id(&record);
    let none_went_back = went_back == Pair::default();
    let stores = Pair::from_fn(|side| sides.of(side).identity.as_deref().map(str::to_owned));
    let renewed = if next_id.is_some() || new_mark || !none_went_back || record.next.is_some() {
        found.renewed(record, went_back, next_id, stores)
    } else if record.stores == stores {
        return PairCheck::Fits(record);
    } else {
        // The first mark created the root, which identifies its store.
        PairRecord { stores, ..record }
    };
    let taken_over = found.accepted;
    let renewal = Renewal::new(name, renewed, state, sides, began_ms);
    PairCheck::Renew(Box::new(renewal.with_reasons(went_back, taken_over)))
}

impl Foreign {
    /// Whether it does not concern `side`.
    fn is_unrelated_to(&self, side: Side) -> bool {
        match self {
            Self::Store { side: of, .. } | Self::Unmarked { side: of, .. } => *of != side,
            Self::Apart { .. } | Self::Named { .. } => false,
        }
    }
}

/// Every mismatch between the sides and the record.
fn find_foreign(
    name: &str,
    known: Option<&PairRecord>,
    sides: &Pair<&Tree>,
    mark: &Mark,
) -> Vec<Foreign> {
    let mut foreign = Vec::new();
    let ids = known.map(|record| [&record.id, &record.next_id]);
    let membership = mark.pair.as_ref();
    let membership = membership.and_then(|pair| Membership::of(sides.of(Side::Etcd), pair));
    let belongs = match (known, &mark.pair) {
        (Some(_), None) => true,
        // The record is from a bridge before pairs had ids: both sides must name the same pair.
        (Some(record), Some(pair)) if record.id.is_none() && record.next_id.is_none() => {
            membership.is_some_and(|of| of.id == *pair)
        }
        (Some(_), Some(pair)) => ids.iter().flatten().any(|id| id.as_ref() == Some(pair)),
        // The sync state is gone: the sides belong together if both name the same pair and etcd has it under this name.
        (None, Some(_)) => match membership {
            Some(Membership {
                id,
                name: Some(other),
            }) if other != name => {
                return vec![Foreign::Named {
                    pair: id,
                    name: other,
                }];
            }
            membership => membership.is_some(),
        },
        (None, None) => !mark.exists(),
    };
    if !belongs {
        foreign.push(Foreign::Apart {
            zookeeper: mark.pair.clone(),
            etcd: known.and_then(|record| record.id.clone().or_else(|| record.next_id.clone())),
        });
        // The recorded stores are irrelevant then.
        return foreign;
    }
    let Some(record) = known else {
        return foreign;
    };
    for side in Side::BOTH {
        let found = sides.of(side).identity.as_deref();
        if let Some(recorded) = record.stores.of(side)
            && found != Some(recorded)
        {
            foreign.push(Foreign::Store {
                side,
                recorded: recorded.clone(),
                found: found.map(str::to_owned),
            });
        }
    }
    if let Some(pair) = &record.id
        && record.next_id.is_none()
    {
        let carries = Pair {
            etcd: record.is_carried_by(Side::Etcd, sides.of(Side::Etcd)),
            // A mark from before pairs had ids gets the id.
            zookeeper: mark.exists(),
        };
        let bare = Side::BOTH.into_iter().filter(|side| !*carries.of(*side));
        foreign.extend(bare.map(|side| Foreign::Unmarked {
            side,
            pair: pair.clone(),
        }));
    }
    foreign
}

/// Result of a check of sides that may be used.
struct Found<'a> {
    /// The name of the pair.
    name: &'a str,
    /// Whether the sync state is about this side.
    fits: Pair<bool>,
    /// Whether this side is taken over by the operator's choice and yields to the other.
    accepted: Pair<bool>,
    /// Whether the pair has no record.
    is_new: bool,
    mark: Mark,
    sides: Pair<&'a Tree>,
    states: BTreeMap<&'a ControlKey, SyncState>,
}

impl Found<'_> {
    /// The sides that reverted to an earlier state. Both can, one after the other.
    fn went_back(&self, record: &PairRecord) -> Pair<bool> {
        let trusted_from = self.mark.since.max(*record.trusted_from.of(MARKED));
        let marked = self.sides.of(MARKED);
        let behind = is_behind_recorded(marked, &self.states, trusted_from);
        let is_back = Pair {
            // The mark of a different ZooKeeper says nothing about etcd.
            etcd: *self.fits.of(MARKED)
                && self.mark.number > record.mark.max(record.next.unwrap_or(0)),
            zookeeper: self.mark.number < record.mark || behind,
        };
        Pair::from_fn(|side| *self.fits.of(side) && *is_back.of(side))
    }

    /// The id to write to both sides, if they need one.
    fn next_id(&self, record: &PairRecord) -> Option<String> {
        // A store that was a side of this pair before must find that it no longer is.
        if self.is_new || self.accepted != Pair::default() {
            return Some(new_id());
        }
        match (&record.id, &record.next_id) {
            (_, Some(next)) => Some(next.clone()),
            (None, None) => Some(self.mark.pair.clone().unwrap_or_else(new_id)),
            // The mark has no id or a different name: the name in the config wins.
            (Some(id), None) => {
                let membership = Membership::of(self.sides.of(Side::Etcd), id);
                let is_named = |of: Membership| of.name.as_deref() == Some(self.name);
                let is_unnamed = membership.is_some_and(|of| !is_named(of));
                (self.mark.pair.is_none() || is_unnamed).then(|| id.clone())
            }
        }
    }

    /// The record with a new mark.
    fn renewed(
        &self,
        record: PairRecord,
        went_back: Pair<bool>,
        next_id: Option<String>,
        stores: Pair<Option<String>>,
    ) -> PairRecord {
        let marks = self.states.values().map(|sync| sync.mark);
        let newest = marks.filter(|mark| *mark < MAX_MARK).max();
        let known = record.mark.max(record.next.unwrap_or(0));
        let next = known.max(self.mark.number).max(newest.unwrap_or(0)) + 1;
        let mut trusted_from = record.trusted_from;
        let of_marked = trusted_from.of_mut(MARKED);
        *of_marked = self.mark.since.max(*of_marked);
        let mut taken_over = record.taken_over;
        let mut went_back_at = record.went_back_at;
        for side in Side::BOTH {
            let revision = self.sides.of(side).revision;
            if *went_back.of(side) {
                // An earlier announcement was about the same state: anything written since is later.
                let is_announced = record.next == Some(*record.trusted_from.of(side));
                let at = went_back_at.of_mut(side);
                *at = if is_announced {
                    revision.min(*at)
                } else {
                    revision
                };
            }
            let accepted = *self.accepted.of(side);
            let taken = taken_over.of_mut(side);
            if accepted || !*self.fits.of(side) {
                *taken = Some(TakenOver {
                    at: revision,
                    mark: next,
                    yields: accepted,
                });
            } else if let Some(taken) = taken {
                // On a side that reverted since, anything later is an edit.
                taken.at = taken.at.min(revision);
            }
            if *went_back.of(side) || accepted || !*self.fits.of(side) {
                *trusted_from.of_mut(side) = next;
            }
        }
        PairRecord {
            // The id that ZooKeeper carries until the new one is written, also if that is interrupted.
            id: match next_id.is_some() {
                true => self.mark.pair.clone().or(record.id),
                false => record.id,
            },
            next_id,
            next: Some(next),
            trusted_from,
            went_back_at,
            taken_over,
            stores,
            ..record
        }
    }
}

fn states_of(state: &Tree) -> BTreeMap<&ControlKey, SyncState> {
    let entries = state.entries.iter();
    let entries = entries.filter(|(key, _)| **key != ControlKey::Bridge);
    entries
        .filter_map(|(key, entry)| Some((key, SyncState::from_json(&entry.value)?)))
        .collect()
}

/// Whether a side is older than some of the sync state that counts: then it was restored.
fn is_behind_recorded(
    tree: &Tree,
    states: &BTreeMap<&ControlKey, SyncState>,
    trusted_from: u64,
) -> bool {
    let counted = states.iter().filter(|(_, sync)| sync.mark >= trusted_from);
    counted.into_iter().any(|(key, sync)| {
        let recorded = *sync.revisions.of(MARKED);
        let there = tree.get(key).map(|entry| entry.stamp.revision);
        tree.revision < recorded
            || there.is_some_and(|there| there < recorded || sync.was_deleted_after(MARKED, there))
    })
}
