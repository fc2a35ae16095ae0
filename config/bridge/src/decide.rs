//! Decides what to do about one key, from its values on both sides and its sync state. Pure, so that the simulation can
//! try every order of readings, writes and crashes: a wrong decision is a deleted key that comes back, or an edit that
//! an echo reverts (ADR 0015).
//!
//! | one side | the other | result |
//! |---|---|---|
//! | same value on both | | the sync state is updated, nothing is copied |
//! | changed since the sync state | as recorded, or an echo | the change is copied; a delete too |
//! | changed | changed to a different value | conflict: the preferred side's value is copied |
//! | has a value, no sync state | has none | the value is copied: a surplus key is easier to notice than a lost one |
//! | has a value, no sync state | has a different value | conflict |
//!
//! A side has changed when its revision is above the recorded one. It holds an echo when it holds exactly what a bridge
//! announced to write there. Deletes, overruling writes and keys without sync state are decided on fresh readings only.
//!
//! A key that is recorded but missing was deleted, unless its side lost it (G10): the side as a whole is at an earlier
//! revision than recorded, or has reverted since (`pair`). The recorded revision then proves nothing, as if there were
//! no sync state. A delete seen by a watch always counts. If a reverted side holds a key that was deleted on both sides
//! since, the key is deleted there again; the sync state of deleted keys is kept for that.
//!
//! What a side held when it joined as a store unknown to the sync state is not a change: its revisions are unrelated to
//! the recorded ones. An equal value counts as recorded. Any other value counts as having no sync state, and yields to
//! the other side if the operator accepted the side (`TakenOver::yields`).

use std::cmp::Ordering;

use sluicegate_config::control::{ControlKey, Pair, Side, check_value};
use sluicegate_config::problem::Problems;
use sluicegate_store::Entry;

use super::pair_record::TakenOver;
use super::sync_state::{FORGET_MS, PENDING_TIMEOUT_MS};
use super::{Ages, PairRecord, SyncState, content_hash};

/// Input of a decision: one key as seen on both sides.
#[derive(Clone, Debug)]
pub struct KeyState<'v> {
    /// The key.
    pub key: &'v ControlKey,
    /// Its place on each side, for messages.
    pub places: &'v Pair<String>,
    /// Its value on each side.
    pub entries: Pair<Option<&'v Entry>>,
    /// The revision of each side as a whole.
    pub revisions: Pair<u64>,
    /// Whether a watch saw the key being deleted there.
    pub deleted: Pair<bool>,
    /// Its sync state.
    pub sync: Option<&'v SyncState>,
    /// How long this bridge has known that state.
    pub ages: &'v Ages,
    /// Whether the sync state of a deleted key may be removed.
    pub forget: bool,
    /// The record of the pair.
    pub pair: &'v PairRecord,
    /// Whether both sides were read after the sync state.
    pub fresh: bool,
    /// The side whose value wins a conflict.
    pub preferred_side: Side,
    /// This bridge's id: its own announcements do not block it.
    pub own: &'v str,
    /// This bridge's clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What to do about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    NoOp,
    /// Decide again on fresh readings.
    Confirm,
    /// A reading is older than the sync state: decide again when the watch has caught up, or on fresh readings.
    Stale,
    /// Another bridge is writing the key, or a late write may still arrive: decide again at this time, in milliseconds
    /// since the Unix epoch.
    Wait {
        /// The time.
        until_ms: u64,
    },
    /// Both sides hold the same value: record it. `None` removes the sync state.
    RecordInSync(Option<SyncState>),
    /// Write the other side's value to one side.
    Copy {
        /// The side that is written.
        to: Side,
        /// Whether this overrules a change of that side.
        conflict: bool,
    },
    /// The value to copy is not valid for its key.
    Refuse(Refusal),
}

/// A value that is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The side that holds it.
    pub side: Side,
    /// The problems and their remedies.
    pub problems: Problems,
}

/// How a side compares with the sync state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SideState {
    /// As recorded.
    Same,
    /// It holds what a bridge announced to write there.
    Echo,
    /// Changed by a writer other than a bridge.
    Changed,
    /// The reading is older than the sync state.
    Stale,
}

/// Decides what to do about one key, from its sync state and what is seen on both sides.
#[must_use]
pub fn decide(state: &KeyState<'_>) -> Decision {
    if let Some(until_ms) = state.sync.and_then(|sync| busy_until(state, sync)) {
        return Decision::Wait { until_ms };
    }
    let values = Pair::from_fn(|side| state.entries.of(side).map(|entry| &entry.value));
    if values.etcd.is_none() && values.zookeeper.is_none() {
        return sync_absent(state);
    }
    // Without a recorded value, or with writes under way, an old reading cannot be told from a new one.
    let is_known = |sync: &SyncState| sync.value.is_some() && sync.pending.is_empty();
    if !state.fresh && !state.sync.is_some_and(is_known) {
        return Decision::Confirm;
    }
    if values.etcd == values.zookeeper {
        return sync_equal(state);
    }
    match state.sync {
        Some(sync) => differ(state, sync),
        None => first(state),
    }
}

/// Until when another bridge's announced write blocks this one.
fn busy_until(state: &KeyState<'_>, sync: &SyncState) -> Option<u64> {
    let others = state.ages.of_pending(sync);
    let others =
        others.filter(|(pending, age)| pending.by != state.own && *age < PENDING_TIMEOUT_MS);
    others
        .map(|(_, age)| state.now_ms + PENDING_TIMEOUT_MS - age)
        .max()
}

fn sync_equal(state: &KeyState<'_>) -> Decision {
    let revisions = Pair::from_fn(|side| state.entries.of(side).map(|entry| entry.stamp.revision));
    let held = SyncState {
        value: state.entries.etcd.map(|entry| content_hash(&entry.value)),
        revisions: Pair::from_fn(|side| revisions.of(side).unwrap_or_default()),
        pending: state
            .sync
            .map(|sync| still_possible(state, sync))
            .unwrap_or_default(),
        at_ms: state.now_ms,
        mark: state.pair.mark,
    };
    match state.sync {
        Some(sync)
            if sync.is_same_as(&held)
                && Side::BOTH.iter().all(|side| counts(state, sync, *side)) =>
        {
            Decision::NoOp
        }
        Some(sync) if !state.fresh && is_behind(state, sync) => Decision::Stale,
        _ => Decision::RecordInSync(Some(held)),
    }
}

/// Neither side has a value. The sync state is kept for a while: late writes can still arrive, and a bridge that read
/// the sides before the delete must notice the change.
fn sync_absent(state: &KeyState<'_>) -> Decision {
    let Some(sync) = state.sync else {
        return Decision::NoOp;
    };
    if sync.value.is_none() && state.ages.sync < FORGET_MS {
        let until_ms = state.now_ms + FORGET_MS - state.ages.sync;
        return Decision::Wait { until_ms };
    }
    if sync.value.is_none() && sync.pending.is_empty() && !state.forget {
        return Decision::NoOp;
    }
    if !state.fresh {
        return Decision::Confirm;
    }
    let pending = still_possible(state, sync);
    if sync.value.is_none() && state.forget && pending.is_empty() {
        return Decision::RecordInSync(None);
    }
    // The reading behind an announced write may be lost since then: until none is pending, the sync state keeps its old
    // mark.
    let mark = match pending.is_empty() {
        true => state.pair.mark,
        false => sync.mark,
    };
    Decision::RecordInSync(Some(SyncState {
        value: None,
        revisions: state.pair.known_revisions(sync),
        pending,
        at_ms: state.now_ms,
        mark,
    }))
}

/// Announced writes that can still take place: the value that they replace is still there, and they have not expired.
fn still_possible(state: &KeyState<'_>, sync: &SyncState) -> Vec<super::Pending> {
    let possible = state.ages.of_pending(sync).filter(|(pending, age)| {
        let there = state.entries.of(pending.to);
        let there = there.map_or(0, |entry| entry.stamp.revision);
        there == pending.replaces && *age < FORGET_MS
    });
    possible.map(|(pending, _)| pending.clone()).collect()
}

fn is_behind(state: &KeyState<'_>, sync: &SyncState) -> bool {
    Side::BOTH.iter().any(|side| {
        let recorded = *sync.revisions.of(*side);
        state
            .entries
            .of(*side)
            .is_some_and(|entry| entry.stamp.revision < recorded)
    })
}

/// The sides differ without a usable sync state.
fn first(state: &KeyState<'_>) -> Decision {
    match (state.entries.etcd, state.entries.zookeeper) {
        (Some(_), None) => copy(state, Side::ZooKeeper, false),
        (None, Some(_)) => copy(state, Side::Etcd, false),
        _ => copy(state, winner(state).other(), true),
    }
}

/// The winner where each side holds a value of its own.
fn winner(state: &KeyState<'_>) -> Side {
    loser(state).map_or(state.preferred_side, Side::other)
}

/// The side that joined as an unknown store and still holds what it held then, if that yields to the other side. Of two
/// such sides it is the one that joined later.
fn loser(state: &KeyState<'_>) -> Option<Side> {
    let yields = |side: Side| {
        let taken = state.pair.unknown(side, state.sync);
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

fn differ(state: &KeyState<'_>, sync: &SyncState) -> Decision {
    let sides = Pair::from_fn(|side| side_state(state, sync, side));
    let (etcd, zookeeper) = (sides.etcd, sides.zookeeper);
    if etcd == SideState::Stale || zookeeper == SideState::Stale {
        // A store whose revision is below the recorded one was restored or replaced: the record is of a different
        // state.
        return match restored_deleted(state, sync) {
            _ if !state.fresh => Decision::Stale,
            Some(side) => copy(state, side, false),
            None => first(state),
        };
    }
    use SideState::{Changed, Echo, Same};
    if let Some(side) = loser(state)
        && state.entries.of(side.other()).is_some()
    {
        return copy(state, side, *sides.of(side) != Same);
    }
    match (etcd, zookeeper) {
        (Changed, Same | Echo) | (Same, Echo) => copy(state, Side::ZooKeeper, false),
        (Same | Echo, Changed) | (Echo, Same) => copy(state, Side::Etcd, false),
        _ => copy(state, winner(state).other(), true),
    }
}

/// The side that holds a value again which was deleted on both sides: it reverted to an earlier state since.
fn restored_deleted(state: &KeyState<'_>, sync: &SyncState) -> Option<Side> {
    let known = state.pair.known_revisions(sync);
    Side::BOTH.into_iter().find(|side| {
        let entry = *state.entries.of(*side);
        sync.value.is_none()
            && state.entries.of(side.other()).is_none()
            && !counts(state, sync, *side)
            && entry.is_some_and(|entry| entry.stamp.revision <= *known.of(*side))
    })
}

fn side_state(state: &KeyState<'_>, sync: &SyncState, side: Side) -> SideState {
    if let Some(taken) = state.pair.unknown(side, Some(sync)) {
        return unknown_side_state(state, sync, side, taken);
    }
    let recorded = *sync.revisions.of(side);
    // A value announced to the other side was read here: if it is missing since then, it was deleted.
    let read_at = sync.read_at(side);
    let was_read = read_at > recorded;
    match state.entries.of(side) {
        Some(entry) => {
            let revision = entry.stamp.revision;
            let hash = content_hash(&entry.value);
            // After a revert the recorded revision proves nothing, but the announcement does.
            let may_be_new = revision > recorded || !counts(state, sync, side);
            let is_held = sync.value.as_ref() == Some(&hash);
            if revision == recorded
                && sync.value.is_some()
                && (is_held || counts(state, sync, side))
            {
                SideState::Same
            } else if may_be_new && sync.announces(side, Some(&hash)) {
                SideState::Echo
            } else if revision <= recorded {
                SideState::Stale
            } else {
                SideState::Changed
            }
        }
        None if sync.value.is_none() && !was_read => SideState::Same,
        None if sync.announces(side, None) => SideState::Echo,
        None if *state.deleted.of(side) => SideState::Changed,
        None if *state.revisions.of(side) < recorded.max(read_at) => SideState::Stale,
        None if !counts(state, sync, side) => SideState::Stale,
        None => SideState::Changed,
    }
}

/// Compares a side that joined as an unknown store after the sync state was written: its revisions are unrelated.
fn unknown_side_state(
    state: &KeyState<'_>,
    sync: &SyncState,
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
    match &sync.value {
        Some(recorded) if *recorded == hash => SideState::Same,
        _ if sync.announces(side, Some(&hash)) => SideState::Echo,
        _ if entry.stamp.revision <= taken.at => SideState::Stale,
        _ => SideState::Changed,
    }
}

/// Whether the recorded state still applies to `side`: it has not reverted since.
fn counts(state: &KeyState<'_>, sync: &SyncState, side: Side) -> bool {
    sync.mark >= *state.pair.trusted_from.of(side)
}

fn copy(state: &KeyState<'_>, to: Side, conflict: bool) -> Decision {
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
