//! What is to be done about one key, from what is seen of it on both sides and what its note says. Pure.
//!
//! | one side | the other | what happens |
//! |---|---|---|
//! | same value on both | | the note is brought up to date, nothing crosses |
//! | changed since the note | as noted, or an echo | the change crosses; a delete too |
//! | changed | changed to something else | a conflict: the authority's value crosses |
//! | has a value, no note | has none | the value crosses: a key too many is easier to see than one that is lost |
//! | has a value, no note | has another one | a conflict |
//!
//! A side has changed when its revision is above the noted one. It holds an echo when it holds just what a bridge announced
//! to write there. What would delete or overrule something, and whatever has no note, is decided on fresh readings only.
//!
//! A key that is noted and missing was deleted, unless its side has lost it (G10): the side as a whole is of an earlier
//! revision than was noted, or went back since (`pair`). What was noted then says nothing, as if there were no note. A delete
//! that a watch saw is one in any case. Where a side that went back holds a key that was deleted on both sides since, it is
//! deleted there again: notes of deleted keys are kept for that.
//!
//! What stood on a side when it was taken over for one that the notes do not know is no change: its revisions have nothing to do
//! with those that are noted. It is as noted where it is the same value; otherwise it is as if there were no note, and it gives
//! way if that is how it was taken over.

use std::cmp::Ordering;

use crate::problem::Problems;
use crate::store::{ControlKey, Entry, check_value};

use super::note::{FORGET_MS, PATIENCE_MS};
use super::pair::TakenOver;
use super::{Ages, Note, Pair, PairRecord, Side, content_hash};

/// What is seen of one key.
#[derive(Clone, Debug)]
pub struct Look<'v> {
    /// The key.
    pub key: &'v ControlKey,
    /// Where it stands on each side, for people.
    pub places: &'v Pair<String>,
    /// What stands on each side.
    pub entries: Pair<Option<&'v Entry>>,
    /// The revisions of the sides as a whole.
    pub revisions: Pair<u64>,
    /// Whether a watch saw the key being deleted there.
    pub deleted: Pair<bool>,
    /// What is noted.
    pub note: Option<&'v Note>,
    /// How long that has been known.
    pub ages: &'v Ages,
    /// The note may go if it is about a key that was deleted.
    pub forget: bool,
    /// What is known of the pair.
    pub pair: &'v PairRecord,
    /// Whether both sides were read after the note.
    pub fresh: bool,
    /// Whose value wins a conflict.
    pub authority: Side,
    /// This bridge's id: its own announcements hold it up no longer.
    pub own: &'v str,
    /// This bridge's clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What is to be done about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Rest,
    /// Decide again on fresh readings.
    Confirm,
    /// A reading is older than the note: decide again when the watch has caught up, or on fresh readings.
    Stale,
    /// Another bridge is at it, or a late write may still come: look again at this time, in milliseconds since the Unix epoch.
    Wait {
        /// When.
        until_ms: u64,
    },
    /// Both sides hold the same: note it; `None` takes the note away.
    Agree(Option<Note>),
    /// Write to one side what the other one holds.
    Cross {
        /// The side that is written.
        to: Side,
        /// Whether this overrules a change of that side.
        conflict: bool,
    },
    /// The value that would cross is not valid for its key.
    Refuse(Refusal),
}

/// A value that does not cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it stands.
    pub side: Side,
    /// What is wrong and what to do.
    pub problems: Problems,
}

/// How a side stands against the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// As noted.
    Same,
    /// It holds what a bridge announced to write there.
    Echo,
    /// Somebody changed it.
    Changed,
    /// The reading is older than the note.
    Stale,
}

/// Decides.
#[must_use]
pub fn decide(look: &Look<'_>) -> Decision {
    if let Some(until_ms) = look.note.and_then(|note| busy_until(look, note)) {
        return Decision::Wait { until_ms };
    }
    let values = Pair::from_fn(|side| look.entries.of(side).map(|entry| &entry.value));
    if values.etcd.is_none() && values.zookeeper.is_none() {
        return agree_on_nothing(look);
    }
    // Without a note of values, or with writes under way, an old reading cannot be told from a new one.
    let is_told = |note: &Note| note.value.is_some() && note.pending.is_empty();
    if !look.fresh && !look.note.is_some_and(is_told) {
        return Decision::Confirm;
    }
    if values.etcd == values.zookeeper {
        return agree(look);
    }
    match look.note {
        Some(note) => differ(look, note),
        None => first(look),
    }
}

/// Until when another bridge's announced write is left alone.
fn busy_until(look: &Look<'_>, note: &Note) -> Option<u64> {
    let others = look.ages.of_pending(note);
    let others = others.filter(|(pending, age)| pending.by != look.own && *age < PATIENCE_MS);
    others.map(|(_, age)| look.now_ms + PATIENCE_MS - age).max()
}

fn agree(look: &Look<'_>) -> Decision {
    let revisions = Pair::from_fn(|side| look.entries.of(side).map(|entry| entry.stamp.revision));
    let held = Note {
        value: look.entries.etcd.map(|entry| content_hash(&entry.value)),
        revisions: Pair::from_fn(|side| revisions.of(side).unwrap_or_default()),
        pending: look
            .note
            .map(|note| still_possible(look, note))
            .unwrap_or_default(),
        at_ms: look.now_ms,
        mark: look.pair.mark,
    };
    match look.note {
        Some(note)
            if note.says_as(&held) && Side::BOTH.iter().all(|side| counts(look, note, *side)) =>
        {
            Decision::Rest
        }
        Some(note) if !look.fresh && is_behind(look, note) => Decision::Stale,
        _ => Decision::Agree(Some(held)),
    }
}

/// Both sides have none. The note stays for a while: late writes can still come, and whoever has read the sides before
/// the delete must find that something has happened since.
fn agree_on_nothing(look: &Look<'_>) -> Decision {
    let Some(note) = look.note else {
        return Decision::Rest;
    };
    if note.value.is_none() && look.ages.note < FORGET_MS {
        let until_ms = look.now_ms + FORGET_MS - look.ages.note;
        return Decision::Wait { until_ms };
    }
    if note.value.is_none() && note.pending.is_empty() && !look.forget {
        return Decision::Rest;
    }
    if !look.fresh {
        return Decision::Confirm;
    }
    let pending = still_possible(look, note);
    if note.value.is_none() && look.forget && pending.is_empty() {
        return Decision::Agree(None);
    }
    // What was read for an announced write may be lost since then: until none is left, the note is of its old mark.
    let mark = match pending.is_empty() {
        true => look.pair.mark,
        false => note.mark,
    };
    Decision::Agree(Some(Note {
        value: None,
        revisions: look.pair.known_revisions(note),
        pending,
        at_ms: look.now_ms,
        mark,
    }))
}

/// The announced writes that can still take place: what they replace stands there, and they are not too old.
fn still_possible(look: &Look<'_>, note: &Note) -> Vec<super::Pending> {
    let possible = look.ages.of_pending(note).filter(|(pending, age)| {
        let there = look.entries.of(pending.to);
        let there = there.map_or(0, |entry| entry.stamp.revision);
        there == pending.replaces && *age < FORGET_MS
    });
    possible.map(|(pending, _)| pending.clone()).collect()
}

fn is_behind(look: &Look<'_>, note: &Note) -> bool {
    Side::BOTH.iter().any(|side| {
        let noted = *note.revisions.of(*side);
        look.entries
            .of(*side)
            .is_some_and(|entry| entry.stamp.revision < noted)
    })
}

/// The sides differ and nothing is known of them.
fn first(look: &Look<'_>) -> Decision {
    match (look.entries.etcd, look.entries.zookeeper) {
        (Some(_), None) => cross(look, Side::ZooKeeper, false),
        (None, Some(_)) => cross(look, Side::Etcd, false),
        _ => cross(look, prevailing(look).other(), true),
    }
}

/// Whose value stands where both sides hold something of their own.
fn prevailing(look: &Look<'_>) -> Side {
    yielding(look).map_or(look.authority, Side::other)
}

/// The side that was taken over and holds what it held then, if that gives way to what the other one holds. Of two it is the
/// one that was taken over later.
fn yielding(look: &Look<'_>) -> Option<Side> {
    let yields = |side: Side| {
        let taken = look.pair.unknown(side, look.note);
        let entry = *look.entries.of(side);
        let held = taken.zip(entry);
        let held = held.filter(|(taken, entry)| taken.yields && entry.stamp.revision <= taken.at);
        held.map(|(taken, _)| taken.mark)
    };
    match yields(Side::Etcd).cmp(&yields(Side::ZooKeeper)) {
        Ordering::Greater => Some(Side::Etcd),
        Ordering::Less => Some(Side::ZooKeeper),
        Ordering::Equal => None,
    }
}

fn differ(look: &Look<'_>, note: &Note) -> Decision {
    let standing = Pair::from_fn(|side| standing(look, note, side));
    let (etcd, zookeeper) = (standing.etcd, standing.zookeeper);
    if etcd == Standing::Stale || zookeeper == Standing::Stale {
        // A store that went back behind the note was restored or replaced: what was noted is of another one.
        return match risen(look, note) {
            _ if !look.fresh => Decision::Stale,
            Some(side) => cross(look, side, false),
            None => first(look),
        };
    }
    use Standing::{Changed, Echo, Same};
    if let Some(side) = yielding(look)
        && look.entries.of(side.other()).is_some()
    {
        return cross(look, side, *standing.of(side) != Same);
    }
    match (etcd, zookeeper) {
        (Changed, Same | Echo) | (Same, Echo) => cross(look, Side::ZooKeeper, false),
        (Same | Echo, Changed) | (Echo, Same) => cross(look, Side::Etcd, false),
        _ => cross(look, prevailing(look).other(), true),
    }
}

/// The side where a value stands again that was deleted on both sides: the side went back to an earlier state since.
fn risen(look: &Look<'_>, note: &Note) -> Option<Side> {
    let known = look.pair.known_revisions(note);
    Side::BOTH.into_iter().find(|side| {
        let entry = *look.entries.of(*side);
        note.value.is_none()
            && look.entries.of(side.other()).is_none()
            && !counts(look, note, *side)
            && entry.is_some_and(|entry| entry.stamp.revision <= *known.of(*side))
    })
}

fn standing(look: &Look<'_>, note: &Note, side: Side) -> Standing {
    if let Some(taken) = look.pair.unknown(side, Some(note)) {
        return standing_of_unknown(look, note, side, taken);
    }
    let noted = *note.revisions.of(side);
    // What was announced to the other side was read here: a value that is gone since then was deleted.
    let read_at = note.read_at(side);
    let was_read = read_at > noted;
    match look.entries.of(side) {
        Some(entry) => {
            let revision = entry.stamp.revision;
            let hash = content_hash(&entry.value);
            // Of a side that went back since, the noted revision says nothing, but the announcement does.
            let can_be_news = revision > noted || !counts(look, note, side);
            let is_held = note.value.as_ref() == Some(&hash);
            if revision == noted && note.value.is_some() && (is_held || counts(look, note, side)) {
                Standing::Same
            } else if can_be_news && note.announces(side, Some(&hash)) {
                Standing::Echo
            } else if revision <= noted {
                Standing::Stale
            } else {
                Standing::Changed
            }
        }
        None if note.value.is_none() && !was_read => Standing::Same,
        None if note.announces(side, None) => Standing::Echo,
        None if *look.deleted.of(side) => Standing::Changed,
        None if *look.revisions.of(side) < noted.max(read_at) => Standing::Stale,
        None if !counts(look, note, side) => Standing::Stale,
        None => Standing::Changed,
    }
}

/// How a side stands that was taken over since the note was written: its revisions say nothing there.
fn standing_of_unknown(look: &Look<'_>, note: &Note, side: Side, taken: &TakenOver) -> Standing {
    let Some(entry) = look.entries.of(side) else {
        return match look.deleted.of(side) {
            true => Standing::Changed,
            false => Standing::Stale,
        };
    };
    let hash = content_hash(&entry.value);
    match &note.value {
        Some(noted) if *noted == hash => Standing::Same,
        _ if note.announces(side, Some(&hash)) => Standing::Echo,
        _ if entry.stamp.revision <= taken.at => Standing::Stale,
        _ => Standing::Changed,
    }
}

/// Whether `side` has seen what was noted of it, and has not gone back since.
fn counts(look: &Look<'_>, note: &Note, side: Side) -> bool {
    note.mark >= *look.pair.trusted_from.of(side)
}

fn cross(look: &Look<'_>, to: Side, conflict: bool) -> Decision {
    let from = to.other();
    match look.entries.of(from) {
        Some(_) if conflict && !look.fresh => Decision::Confirm,
        Some(entry) => match check_value(look.key, look.places.of(from), &entry.value) {
            Ok(()) => Decision::Cross { to, conflict },
            Err(problems) => Decision::Refuse(Refusal {
                side: from,
                problems,
            }),
        },
        None if look.fresh => Decision::Cross { to, conflict },
        None => Decision::Confirm,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
