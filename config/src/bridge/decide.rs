//! What is to be done about one key, from what is seen of it on both sides and what its note says. Pure.
//!
//! | one side | the other | what happens |
//! |---|---|---|
//! | same value on both | | the note is brought up to date, nothing crosses |
//! | changed since the note | as noted, or an echo | the change crosses; a delete too |
//! | changed | changed to something else | a conflict: the preferred side's value crosses |
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

use super::pair::TakenOver;
use super::sync_state::{FORGET_MS, PENDING_TIMEOUT_MS};
use super::{Ages, Pair, PairRecord, Side, SyncState, content_hash};

/// What is seen of one key.
#[derive(Clone, Debug)]
pub struct KeyState<'v> {
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
    pub note: Option<&'v SyncState>,
    /// How long that has been known.
    pub ages: &'v Ages,
    /// The note may go if it is about a key that was deleted.
    pub forget: bool,
    /// What is known of the pair.
    pub pair: &'v PairRecord,
    /// Whether both sides were read after the note.
    pub fresh: bool,
    /// Whose value wins a conflict.
    pub preferred_side: Side,
    /// This bridge's id: its own announcements hold it up no longer.
    pub own: &'v str,
    /// This bridge's clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What is to be done about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    NoOp,
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
    RecordInSync(Option<SyncState>),
    /// Write to one side what the other one holds.
    Copy {
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
enum SideState {
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
pub fn decide(state: &KeyState<'_>) -> Decision {
    if let Some(until_ms) = state.note.and_then(|note| busy_until(state, note)) {
        return Decision::Wait { until_ms };
    }
    let values = Pair::from_fn(|side| state.entries.of(side).map(|entry| &entry.value));
    if values.etcd.is_none() && values.zookeeper.is_none() {
        return agree_on_nothing(state);
    }
    // Without a note of values, or with writes under way, an old reading cannot be told from a new one.
    let is_told = |note: &SyncState| note.value.is_some() && note.pending.is_empty();
    if !state.fresh && !state.note.is_some_and(is_told) {
        return Decision::Confirm;
    }
    if values.etcd == values.zookeeper {
        return agree(state);
    }
    match state.note {
        Some(note) => differ(state, note),
        None => first(state),
    }
}

/// Until when another bridge's announced write is left alone.
fn busy_until(state: &KeyState<'_>, note: &SyncState) -> Option<u64> {
    let others = state.ages.of_pending(note);
    let others =
        others.filter(|(pending, age)| pending.by != state.own && *age < PENDING_TIMEOUT_MS);
    others
        .map(|(_, age)| state.now_ms + PENDING_TIMEOUT_MS - age)
        .max()
}

fn agree(state: &KeyState<'_>) -> Decision {
    let revisions = Pair::from_fn(|side| state.entries.of(side).map(|entry| entry.stamp.revision));
    let held = SyncState {
        value: state.entries.etcd.map(|entry| content_hash(&entry.value)),
        revisions: Pair::from_fn(|side| revisions.of(side).unwrap_or_default()),
        pending: state
            .note
            .map(|note| still_possible(state, note))
            .unwrap_or_default(),
        at_ms: state.now_ms,
        mark: state.pair.mark,
    };
    match state.note {
        Some(note)
            if note.says_as(&held) && Side::BOTH.iter().all(|side| counts(state, note, *side)) =>
        {
            Decision::NoOp
        }
        Some(note) if !state.fresh && is_behind(state, note) => Decision::Stale,
        _ => Decision::RecordInSync(Some(held)),
    }
}

/// Both sides have none. The note stays for a while: late writes can still come, and whoever has read the sides before
/// the delete must find that something has happened since.
fn agree_on_nothing(state: &KeyState<'_>) -> Decision {
    let Some(note) = state.note else {
        return Decision::NoOp;
    };
    if note.value.is_none() && state.ages.note < FORGET_MS {
        let until_ms = state.now_ms + FORGET_MS - state.ages.note;
        return Decision::Wait { until_ms };
    }
    if note.value.is_none() && note.pending.is_empty() && !state.forget {
        return Decision::NoOp;
    }
    if !state.fresh {
        return Decision::Confirm;
    }
    let pending = still_possible(state, note);
    if note.value.is_none() && state.forget && pending.is_empty() {
        return Decision::RecordInSync(None);
    }
    // What was read for an announced write may be lost since then: until none is left, the note is of its old mark.
    let mark = match pending.is_empty() {
        true => state.pair.mark,
        false => note.mark,
    };
    Decision::RecordInSync(Some(SyncState {
        value: None,
        revisions: state.pair.known_revisions(note),
        pending,
        at_ms: state.now_ms,
        mark,
    }))
}

/// The announced writes that can still take place: what they replace stands there, and they are not too old.
fn still_possible(state: &KeyState<'_>, note: &SyncState) -> Vec<super::Pending> {
    let possible = state.ages.of_pending(note).filter(|(pending, age)| {
        let there = state.entries.of(pending.to);
        let there = there.map_or(0, |entry| entry.stamp.revision);
        there == pending.replaces && *age < FORGET_MS
    });
    possible.map(|(pending, _)| pending.clone()).collect()
}

fn is_behind(state: &KeyState<'_>, note: &SyncState) -> bool {
    Side::BOTH.iter().any(|side| {
        let noted = *note.revisions.of(*side);
        state
            .entries
            .of(*side)
            .is_some_and(|entry| entry.stamp.revision < noted)
    })
}

/// The sides differ and nothing is known of them.
fn first(state: &KeyState<'_>) -> Decision {
    match (state.entries.etcd, state.entries.zookeeper) {
        (Some(_), None) => cross(state, Side::ZooKeeper, false),
        (None, Some(_)) => cross(state, Side::Etcd, false),
        _ => cross(state, winner(state).other(), true),
    }
}

/// Whose value stands where both sides hold something of their own.
fn winner(state: &KeyState<'_>) -> Side {
    loser(state).map_or(state.preferred_side, Side::other)
}

/// The side that was taken over and holds what it held then, if that gives way to what the other one holds. Of two it is the
/// one that was taken over later.
fn loser(state: &KeyState<'_>) -> Option<Side> {
    let yields = |side: Side| {
        let taken = state.pair.unknown(side, state.note);
        let entry = *state.entries.of(side);
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

fn differ(state: &KeyState<'_>, note: &SyncState) -> Decision {
    let standing = Pair::from_fn(|side| standing(state, note, side));
    let (etcd, zookeeper) = (standing.etcd, standing.zookeeper);
    if etcd == SideState::Stale || zookeeper == SideState::Stale {
        // A store that went back behind the note was restored or replaced: what was noted is of another one.
        return match resurrected(state, note) {
            _ if !state.fresh => Decision::Stale,
            Some(side) => cross(state, side, false),
            None => first(state),
        };
    }
    use SideState::{Changed, Echo, Same};
    if let Some(side) = loser(state)
        && state.entries.of(side.other()).is_some()
    {
        return cross(state, side, *standing.of(side) != Same);
    }
    match (etcd, zookeeper) {
        (Changed, Same | Echo) | (Same, Echo) => cross(state, Side::ZooKeeper, false),
        (Same | Echo, Changed) | (Echo, Same) => cross(state, Side::Etcd, false),
        _ => cross(state, winner(state).other(), true),
    }
}

/// The side where a value stands again that was deleted on both sides: the side went back to an earlier state since.
fn resurrected(state: &KeyState<'_>, note: &SyncState) -> Option<Side> {
    let known = state.pair.known_revisions(note);
    Side::BOTH.into_iter().find(|side| {
        let entry = *state.entries.of(*side);
        note.value.is_none()
            && state.entries.of(side.other()).is_none()
            && !counts(state, note, *side)
            && entry.is_some_and(|entry| entry.stamp.revision <= *known.of(*side))
    })
}

fn standing(state: &KeyState<'_>, note: &SyncState, side: Side) -> SideState {
    if let Some(taken) = state.pair.unknown(side, Some(note)) {
        return standing_of_unknown(state, note, side, taken);
    }
    let noted = *note.revisions.of(side);
    // What was announced to the other side was read here: a value that is gone since then was deleted.
    let read_at = note.read_at(side);
    let was_read = read_at > noted;
    match state.entries.of(side) {
        Some(entry) => {
            let revision = entry.stamp.revision;
            let hash = content_hash(&entry.value);
            // Of a side that went back since, the noted revision says nothing, but the announcement does.
            let can_be_news = revision > noted || !counts(state, note, side);
            let is_held = note.value.as_ref() == Some(&hash);
            if revision == noted && note.value.is_some() && (is_held || counts(state, note, side)) {
                SideState::Same
            } else if can_be_news && note.announces(side, Some(&hash)) {
                SideState::Echo
            } else if revision <= noted {
                SideState::Stale
            } else {
                SideState::Changed
            }
        }
        None if note.value.is_none() && !was_read => SideState::Same,
        None if note.announces(side, None) => SideState::Echo,
        None if *state.deleted.of(side) => SideState::Changed,
        None if *state.revisions.of(side) < noted.max(read_at) => SideState::Stale,
        None if !counts(state, note, side) => SideState::Stale,
        None => SideState::Changed,
    }
}

/// How a side stands that was taken over since the note was written: its revisions say nothing there.
fn standing_of_unknown(
    state: &KeyState<'_>,
    note: &SyncState,
    side: Side,
    taken: &TakenOver,
) -> SideState {
    let Some(entry) = state.entries.of(side) else {
        return match state.deleted.of(side) {
            true => SideState::Changed,
            false => SideState::Stale,
        };
    };
    let hash = content_hash(&entry.value);
    match &note.value {
        Some(noted) if *noted == hash => SideState::Same,
        _ if note.announces(side, Some(&hash)) => SideState::Echo,
        _ if entry.stamp.revision <= taken.at => SideState::Stale,
        _ => SideState::Changed,
    }
}

/// Whether `side` has seen what was noted of it, and has not gone back since.
fn counts(state: &KeyState<'_>, note: &SyncState, side: Side) -> bool {
    note.mark >= *state.pair.trusted_from.of(side)
}

fn cross(state: &KeyState<'_>, to: Side, conflict: bool) -> Decision {
    let from = to.other();
    match state.entries.of(from) {
        Some(_) if conflict && !state.fresh => Decision::Confirm,
        Some(entry) => match check_value(state.key, state.places.of(from), &entry.value) {
            Ok(()) => Decision::Copy { to, conflict },
            Err(problems) => Decision::Refuse(Refusal {
                side: from,
                problems,
            }),
        },
        None if state.fresh => Decision::Copy { to, conflict },
        None => Decision::Confirm,
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
