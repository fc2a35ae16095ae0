//! Whether the two stores are still those that the notes are about, and whether one of them went back to an earlier state.
//!
//! ```text
//!  record, in etcd beside the notes:  pair ID, which stores, mark 7, absences in ZooKeeper count from mark 5 on
//!  mark, in ZooKeeper:                7 5 ID lower: ZooKeeper went back    higher: etcd did, with record and notes
//!  mark, in etcd beside the keys:     ID NAME  another ID, or none: the sides do not belong together
//!  a note:                            mark 6: when it was written, ZooKeeper had seen mark 6
//! ```
//!
//! A key that is noted and not there was deleted, or lost with the state of its store. Revisions alone do not tell: a store
//! that was restored counts on from its backup, and passes what was noted. So bridges leave a growing mark in ZooKeeper and
//! remember it in etcd. Where both differ, one of them went back to an earlier state; then no absence there is a delete until
//! its key was noted again. The notes stand in the etcd that is kept equal, and go back with it. What the record says of
//! ZooKeeper goes back with them, so ZooKeeper has that too: the second number.
//!
//! Which store it is, a side says by its identity, and to which pair it belongs by its mark. Where either is not as noted,
//! nothing crosses until somebody says which side is to be taken over ([`Foreign::is_answered_by`]). A side that is taken over
//! counts as gone back: what stands there is no edit and gives way to what the other side holds, and what it lacks was not
//! deleted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mark::{MOST_MARK, Mark, Membership, new_id};
use super::renewal::Renewal;
use super::{Pair, Side, SyncState};
use crate::store::{ControlKey, Tree};

/// The side that is marked with numbers: the one where the notes do not stand.
pub(super) const MARKED: Side = Side::ZooKeeper;

/// What the bridges of a pair know of its stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRecord {
    /// The pair's id, which both sides carry; `None` until it was first joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The id that is about to be written to both sides: until that is done they may carry either or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_id: Option<String>,
    /// Which stores the notes are about, as [`Tree::identity`] names them; `None` where nothing told yet.
    pub stores: Pair<Option<String>>,
    /// The mark that stands in ZooKeeper.
    pub mark: u64,
    /// The mark that is about to be written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// A key that is missing on a side was deleted there only if its note has this mark or a later one.
    pub trusted_from: Pair<u64>,
    /// The revision of a side when it was last found to have gone back: what is no later stood in its earlier state.
    #[serde(default)]
    pub went_back_at: Pair<u64>,
    /// How a side stood when it was taken over for one that the notes do not know.
    #[serde(default)]
    pub taken_over: Pair<Option<TakenOver>>,
}

/// A side as it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// Its revision then: what is no later is no edit.
    pub at: u64,
    /// Notes of an earlier mark know another store.
    pub mark: u64,
    /// Whether that gives way to what the other side holds, whichever side is preferred.
    pub yields: bool,
}

impl PairRecord {
    /// The record in a tree of notes; bytes that are none count as nothing.
    #[must_use]
    pub fn of(notes: &Tree) -> Option<Self> {
        let entry = notes.get(&ControlKey::Bridge)?;
        serde_json::from_slice(&entry.value).ok()
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How `side` was taken over, unless `note` is from after that: what an earlier one, or none, says of revisions there is
    /// about another store.
    pub(super) fn unknown(&self, side: Side, note: Option<&SyncState>) -> Option<&TakenOver> {
        let taken = self.taken_over.of(side).as_ref();
        taken.filter(|taken| note.is_none_or(|note| note.mark < taken.mark))
    }

    /// The revisions of `note` that are about the stores of this record, as they are: 0 for the others, and none that is later
    /// than the state to which a side went back since.
    pub(super) fn known_revisions(&self, note: &SyncState) -> Pair<u64> {
        Pair::from_fn(|side| {
            let noted = *note.revisions.of(side);
            match self.unknown(side, Some(note)) {
                Some(_) => 0,
                None if note.mark < *self.trusted_from.of(side) => {
                    noted.min(*self.went_back_at.of(side))
                }
                None => noted,
            }
        })
    }

    /// Whether `side`, as `tree` has it, carries this pair's id.
    #[must_use]
    pub fn is_carried_by(&self, side: Side, tree: &Tree) -> bool {
        let Some(id) = &self.id else {
            return false;
        };
        match side {
            Side::Etcd => Membership::of(tree, id).is_some(),
            Side::ZooKeeper => Mark::of(tree).pair.as_ref() == Some(id),
        }
    }
}

/// Why nothing crosses: a side is not the one that the notes are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A side is another store.
    Store {
        /// The side.
        side: Side,
        /// Which store the notes are about.
        noted: String,
        /// Which one it is; `None` where nothing is left that would tell.
        found: Option<String>,
    },
    /// A side does not carry the pair's mark any more.
    Unmarked {
        /// The side.
        side: Side,
        /// The pair.
        pair: String,
    },
    /// ZooKeeper belongs to another pair than etcd.
    Apart {
        /// The pair of ZooKeeper; `None` where its mark is from before pairs had ids.
        zookeeper: Option<String>,
        /// The pair of the notes in etcd; `None` without notes.
        etcd: Option<String>,
    },
    /// Both belong to a pair that is bridged under another name.
    Named {
        /// The pair.
        pair: String,
        /// Its name.
        name: String,
    },
}

impl Foreign {
    /// Whether `accepted` says which side is to be taken over: the one that is foreign; where two sides do not belong
    /// together, either of them.
    #[must_use]
    pub fn is_answered_by(&self, accepted: Pair<bool>) -> bool {
        match self {
            Self::Store { side, .. } | Self::Unmarked { side, .. } => *accepted.of(*side),
            Self::Apart { .. } | Self::Named { .. } => accepted != Pair::default(),
        }
    }
}

/// What is found of a pair.
#[derive(Debug)]
pub enum PairCheck {
    /// Both stores are as the record says: keys may cross.
    Fits(PairRecord),
    /// The record or the marks are to be renewed first.
    Renew(Box<Renewal>),
    /// Everything that keeps the sides from being those that the notes are about: not all of it is answered by what an operator
    /// lets be taken over.
    Foreign(Vec<Foreign>),
}

/// Checks fresh readings of both sides against the `notes` of the pair `name`, which were read before them. `anew` asks for a
/// new mark even if nothing else does; `accepted` are the sides that an operator lets be taken over, if they are found to be foreign.
#[must_use]
pub fn check_pair(
    name: &str,
    notes: &Tree,
    sides: &Pair<&Tree>,
    anew: bool,
    accepted: Pair<bool>,
    began_ms: u64,
) -> PairCheck {
    let known = PairRecord::of(notes);
    let record = known.clone().unwrap_or_default();
    let mark = Mark::of(sides.of(MARKED));
    let foreign = find_foreign(name, known.as_ref(), sides, &mark);
    if !foreign.iter().all(|one| one.is_answered_by(accepted)) {
        return PairCheck::Foreign(foreign);
    }
    let found = Found {
        name,
        // Which sides the notes know, and which are taken over.
        fits: Pair::from_fn(|side| known.is_some() && foreign.iter().all(|one| one.spares(side))),
        accepted: Pair::from_fn(|side| !foreign.is_empty() && *accepted.of(side)),
        is_new: known.is_none(),
        mark,
        sides: *sides,
        notes: notes_of(notes),
    };
    let went_back = found.went_back(&record);
    let next_id = found.next_id(&record);
    let none_went_back = went_back == Pair::default();
    let stores = Pair::from_fn(|side| sides.of(side).identity.as_deref().map(str::to_owned));
    let renewed = if next_id.is_some() || anew || !none_went_back || record.next.is_some() {
        found.renewed(record, went_back, next_id, stores)
    } else if record.stores == stores {
        return PairCheck::Fits(record);
    } else {
        // The first mark has made the root that names its store.
        PairRecord { stores, ..record }
    };
    let taken_over = found.accepted;
    let renewal = Renewal::new(name, renewed, notes, sides, began_ms);
    PairCheck::Renew(Box::new(renewal.because(went_back, taken_over)))
}

impl Foreign {
    /// Whether it says nothing of `side`.
    fn spares(&self, side: Side) -> bool {
        match self {
            Self::Store { side: of, .. } | Self::Unmarked { side: of, .. } => *of != side,
            Self::Apart { .. } | Self::Named { .. } => false,
        }
    }
}

/// Everything that keeps the sides from being those of the notes.
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
        // A bridge from before pairs had ids has written the record: both sides say that they belong together.
        (Some(record), Some(pair)) if record.id.is_none() && record.next_id.is_none() => {
            membership.is_some_and(|of| of.id == *pair)
        }
        (Some(_), Some(pair)) => ids.iter().flatten().any(|id| id.as_ref() == Some(pair)),
        // The notes are gone: then both sides say that they belong together, or one says it of another one.
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
        (None, None) => !mark.is_there(),
    };
    if !belongs {
        foreign.push(Foreign::Apart {
            zookeeper: mark.pair.clone(),
            etcd: known.and_then(|record| record.id.clone().or_else(|| record.next_id.clone())),
        });
        // Which stores such notes are about does not matter any more.
        return foreign;
    }
    let Some(record) = known else {
        return foreign;
    };
    for side in Side::BOTH {
        let found = sides.of(side).identity.as_deref();
        if let Some(noted) = record.stores.of(side)
            && found != Some(noted)
        {
            foreign.push(Foreign::Store {
                side,
                noted: noted.clone(),
                found: found.map(str::to_owned),
            });
        }
    }
    if let Some(pair) = &record.id
        && record.next_id.is_none()
    {
        let carries = Pair {
            etcd: record.is_carried_by(Side::Etcd, sides.of(Side::Etcd)),
            // One from before pairs had ids gets the id.
            zookeeper: mark.is_there(),
        };
        let bare = Side::BOTH.into_iter().filter(|side| !*carries.of(*side));
        foreign.extend(bare.map(|side| Foreign::Unmarked {
            side,
            pair: pair.clone(),
        }));
    }
    foreign
}

/// What a check has found of sides that may be worked with.
struct Found<'a> {
    /// What the pair is known by.
    name: &'a str,
    /// Whether the notes are about this side.
    fits: Pair<bool>,
    /// Whether this side is to be taken over, and gives way.
    accepted: Pair<bool>,
    /// Whether nothing is noted of the pair.
    is_new: bool,
    mark: Mark,
    sides: Pair<&'a Tree>,
    notes: BTreeMap<&'a ControlKey, SyncState>,
}

impl Found<'_> {
    /// The sides that went back to an earlier state. Both can have, one after the other.
    fn went_back(&self, record: &PairRecord) -> Pair<bool> {
        let trusted_from = self.mark.since.max(*record.trusted_from.of(MARKED));
        let marked = self.sides.of(MARKED);
        let behind = is_behind_notes(marked, &self.notes, trusted_from);
        let is_back = Pair {
            // Another ZooKeeper's mark says nothing of etcd.
            etcd: *self.fits.of(MARKED)
                && self.mark.number > record.mark.max(record.next.unwrap_or(0)),
            zookeeper: self.mark.number < record.mark || behind,
        };
        Pair::from_fn(|side| *self.fits.of(side) && *is_back.of(side))
    }

    /// The id that both sides are to carry, if they are to be given one.
    fn next_id(&self, record: &PairRecord) -> Option<String> {
        // Whoever was a side of this pair before must find that it is none any more.
        if self.is_new || self.accepted != Pair::default() {
            return Some(new_id());
        }
        match (&record.id, &record.next_id) {
            (_, Some(next)) => Some(next.clone()),
            (None, None) => Some(self.mark.pair.clone().unwrap_or_else(new_id)),
            // The mark is from before pairs had ids, or has another name: that of the config is what counts.
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
        let marks = self.notes.values().map(|note| note.mark);
        let newest = marks.filter(|mark| *mark < MOST_MARK).max();
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
                // One that was announced before is about the same state: what was written meanwhile is later.
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
                // Of a side that went back since, what is later is an edit.
                taken.at = taken.at.min(revision);
            }
            if *went_back.of(side) || accepted || !*self.fits.of(side) {
                *trusted_from.of_mut(side) = next;
            }
        }
        PairRecord {
            // What ZooKeeper carries until the new one is written, also if that breaks off.
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

fn notes_of(notes: &Tree) -> BTreeMap<&ControlKey, SyncState> {
    let entries = notes.entries.iter();
    let entries = entries.filter(|(key, _)| **key != ControlKey::Bridge);
    entries
        .filter_map(|(key, entry)| Some((key, SyncState::from_json(&entry.value)?)))
        .collect()
}

/// Whether a side is of a time before some of the notes that count: then it was restored.
fn is_behind_notes(
    tree: &Tree,
    notes: &BTreeMap<&ControlKey, SyncState>,
    trusted_from: u64,
) -> bool {
    let counted = notes.iter().filter(|(_, note)| note.mark >= trusted_from);
    counted.into_iter().any(|(key, note)| {
        let noted = *note.revisions.of(MARKED);
        let there = tree.get(key).map(|entry| entry.stamp.revision);
        tree.revision < noted
            || there.is_some_and(|there| there < noted || note.was_deleted_after(MARKED, there))
    })
}
