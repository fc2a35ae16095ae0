//! Whether the two stores are still those that the notes are about, and whether one of them went back to an earlier state.
//!
//! ```text
//!  record, in etcd beside the notes:  which stores, mark 7, absences in ZooKeeper count from mark 5 on
//!  mark, in ZooKeeper:                7 5    lower: ZooKeeper went back    higher: etcd did, with record and notes
//!  a note:                            mark 6: when it was written, ZooKeeper had seen mark 6
//! ```
//!
//! A key that is noted and not there was deleted, or lost with the state of its store. Revisions alone do not tell: a store
//! that was restored counts on from its backup, and passes what was noted. So bridges leave a growing mark in ZooKeeper and
//! remember it in etcd. Where both differ, one of them went back to an earlier state; then no absence there is a delete until
//! its key was noted again. The notes stand in the etcd that is kept equal, and go back with it. What the record says of
//! ZooKeeper goes back with them, so ZooKeeper has that too: the second number.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::crossing::Progress;
use super::note::LATE_MS;
use super::{Note, Pair, Side};
use crate::store::{ControlKey, Entry, Expected, Stamp, Store, StoreError, Tree};

/// The side that is marked: the one where the notes do not stand.
pub(super) const MARKED: Side = Side::ZooKeeper;

/// What the bridges of a pair know of its stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRecord {
    /// Which stores the notes are about, as [`Tree::identity`] names them; `None` where nothing told yet.
    pub stores: Pair<Option<String>>,
    /// The mark that stands in ZooKeeper.
    pub mark: u64,
    /// The mark that is about to be written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// A key that is missing on a side was deleted there only if its note has this mark or a later one.
    pub trusted_from: Pair<u64>,
}

impl PairRecord {
    /// The record in a tree of notes; bytes that are none count as nothing.
    #[must_use]
    pub fn of(notes: &Tree) -> Option<Self> {
        let entry = notes.get(&ControlKey::Bridge)?;
        serde_json::from_slice(&entry.value).ok()
    }

    fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What is found of a pair.
#[derive(Debug)]
pub enum PairCheck {
    /// Both stores are as the record says: keys may cross.
    Fits(PairRecord),
    /// The record or the mark is to be renewed first.
    Renew(Box<Renewal>),
    /// A side is another store than the notes are about.
    Replaced {
        /// The side.
        side: Side,
        /// Which store the notes are about.
        noted: String,
        /// Which one it is; `None` where nothing is left that would tell.
        found: Option<String>,
    },
}

/// Checks fresh readings of both sides against `notes`, which were read before them. `anew` asks for a new mark even if
/// nothing else does.
#[must_use]
pub fn check_pair(notes: &Tree, sides: &Pair<&Tree>, anew: bool, began_ms: u64) -> PairCheck {
    let known = PairRecord::of(notes);
    let record = known.clone().unwrap_or_default();
    for side in Side::BOTH {
        let found = sides.of(side).identity.as_deref();
        if let Some(noted) = record.stores.of(side)
            && found != Some(noted)
        {
            return PairCheck::Replaced {
                side,
                noted: noted.clone(),
                found: found.map(str::to_owned),
            };
        }
    }
    let parsed = notes_of(notes);
    let mark_entry = sides.of(MARKED).get(&ControlKey::Bridge);
    let (mark, since) = mark_entry.map_or((0, 0), read_mark);
    let mut trusted_from = record.trusted_from;
    let of_marked = trusted_from.of_mut(MARKED);
    *of_marked = since.max(*of_marked);
    let of_marked = *of_marked;
    let behind = is_behind_notes(sides.of(MARKED), &parsed, of_marked);
    let is_back = Pair {
        etcd: mark > record.mark.max(record.next.unwrap_or(0)),
        zookeeper: mark < record.mark || behind,
    };
    // Both can have gone back, one after the other.
    let went_back = Pair::from_fn(|side| known.is_some() && *is_back.of(side));
    let stores = Pair::from_fn(|side| sides.of(side).identity.as_deref().map(str::to_owned));
    let renewal = |record: PairRecord, stage: Stage| {
        PairCheck::Renew(Box::new(Renewal {
            went_back,
            record,
            record_at: notes.get(&ControlKey::Bridge).map(|entry| entry.stamp),
            mark_at: mark_entry.map_or(Expected::Absent, |entry| Expected::At(entry.stamp)),
            stage,
            began_ms,
        }))
    };
    let none_went_back = went_back == Pair::default();
    if known.is_none() || anew || !none_went_back || record.next.is_some() {
        let marks = parsed.values().map(|note| note.mark);
        let newest = marks.filter(|mark| *mark < MOST_MARK).max();
        let next = record.mark.max(mark).max(record.next.unwrap_or(0));
        let next = next.max(newest.unwrap_or(0)) + 1;
        let trusted_from = Pair::from_fn(|side| match *went_back.of(side) || known.is_none() {
            true => next,
            false => *trusted_from.of(side),
        });
        let renewed = PairRecord {
            next: Some(next),
            trusted_from,
            stores,
            ..record
        };
        return renewal(renewed, Stage::Announce);
    }
    match record.stores == stores {
        true => PairCheck::Fits(record),
        // The first mark has made the root that names its store.
        false => renewal(PairRecord { stores, ..record }, Stage::Settle),
    }
}

fn notes_of(notes: &Tree) -> BTreeMap<&ControlKey, Note> {
    let entries = notes.entries.iter();
    let entries = entries.filter(|(key, _)| **key != ControlKey::Bridge);
    entries
        .filter_map(|(key, entry)| Some((key, Note::from_json(&entry.value)?)))
        .collect()
}

/// No bridge comes to this mark: what is beyond it was not written by one.
const MOST_MARK: u64 = 1 << 53;

/// The mark, and from which one on absences there count; what is no number counts as none.
fn read_mark(entry: &Entry) -> (u64, u64) {
    let text = std::str::from_utf8(&entry.value).unwrap_or_default();
    let mut numbers = text.split_whitespace();
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    let mark = number().filter(|mark| *mark < MOST_MARK).unwrap_or(0);
    let since: u64 = number().unwrap_or(0);
    (mark, since.min(mark))
}

/// Whether a side is of a time before some of the notes that count: then it was restored.
fn is_behind_notes(tree: &Tree, notes: &BTreeMap<&ControlKey, Note>, trusted_from: u64) -> bool {
    let counted = notes
        .iter()
        .filter(|(_, note)| note.value.is_some() && note.mark >= trusted_from);
    counted.into_iter().any(|(key, note)| {
        let noted = *note.revisions.of(MARKED);
        let there = tree.get(key).map(|entry| entry.stamp.revision);
        tree.revision < noted || there.is_some_and(|there| there < noted)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Announce,
    Mark,
    Settle,
}

/// A new mark on its way: announced in the record, written, noted. A store call a step, each compared and set.
#[derive(Debug)]
pub struct Renewal {
    record: PairRecord,
    record_at: Option<Stamp>,
    mark_at: Expected,
    stage: Stage,
    went_back: Pair<bool>,
    began_ms: u64,
}

impl Renewal {
    /// The sides that went back to an earlier state, if that is why it is needed.
    pub fn went_back(&self) -> impl Iterator<Item = Side> {
        let sides = Side::BOTH.into_iter();
        sides.filter(|side| *self.went_back.of(*side))
    }

    /// The record as it is to be.
    pub(super) fn record(&self) -> &PairRecord {
        &self.record
    }

    /// Does the next step; `side` is the ZooKeeper side. One that was held up since the readings begins nothing: the store
    /// that it has read may not be there any more.
    pub fn step(&mut self, side: &dyn Store, notes: &dyn Store, now_ms: u64) -> Progress {
        if now_ms.saturating_sub(self.began_ms) > LATE_MS {
            return Progress::Late;
        }
        let done = match self.stage {
            Stage::Announce => self.write_record(notes).map(|()| Stage::Mark),
            Stage::Mark => {
                let mark = self.record.next.unwrap_or_default();
                let text = format!("{mark} {}", self.record.trusted_from.of(MARKED));
                let written = side.write(&ControlKey::Bridge, Some(text.as_bytes()), self.mark_at);
                written.map(|_| {
                    self.record.mark = mark;
                    self.record.next = None;
                    Stage::Settle
                })
            }
            Stage::Settle => match self.write_record(notes) {
                Ok(()) => return Progress::Done,
                Err(error) => Err(error),
            },
        };
        match done {
            Ok(stage) => {
                self.stage = stage;
                Progress::Going
            }
            Err(StoreError::Conflict { .. }) => Progress::Overtaken,
            Err(error) => Progress::Failed(error),
        }
    }

    fn write_record(&mut self, notes: &dyn Store) -> Result<(), StoreError> {
        let expected = self.record_at.map_or(Expected::Absent, Expected::At);
        let json = self.record.to_json();
        self.record_at = Some(notes.write(&ControlKey::Bridge, Some(&json), expected)?);
        Ok(())
    }
}
