//! A key's note: what both sides last held, and the writes that are under way. Shared by all bridges of a pair.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Pair, Side};
use crate::digest::sha256_hex;
use crate::store::ControlKey;

/// A live bridge is done with an announced write this long after another one has seen the announcement, in milliseconds;
/// afterwards others take over.
pub(super) const PENDING_TIMEOUT_MS: u64 = 10_000;
/// A bridge that was held up this long since it announced a write does not begin it, in milliseconds.
pub(super) const LATE_MS: u64 = 3_000;
/// This long after a bridge has seen the announcement, a write that nobody has seen will not come any more, and the note of a
/// deleted key may go, in milliseconds.
pub(super) const FORGET_MS: u64 = 60_000;

/// The notes of this many deleted keys are kept, those of the latest, so that an earlier state of a store that is restored does
/// not bring the keys back.
const DELETED_KEPT: usize = 1_000;

/// What is known of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// [`content_hash`] of the value that both sides held; `None` when both had none.
    pub value: Option<String>,
    /// The revision of that value on each side; 0 when it never had any.
    pub revisions: Pair<u64>,
    /// Announced writes of which nobody knows yet that they are done, oldest first.
    #[serde(default)]
    pub pending: Vec<Pending>,
    /// When it was noted, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub at_ms: u64,
    /// The mark that ZooKeeper had seen by then (see `pair`).
    #[serde(default)]
    pub mark: u64,
}

/// An announced write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The side that is written.
    pub to: Side,
    /// [`content_hash`] of the value; `None` for a delete.
    pub value: Option<String>,
    /// The revision that the write replaces there; 0 where nothing stands.
    pub replaces: u64,
    /// The revision of the value on the side where it was read; 0 for a delete.
    #[serde(default)]
    pub read_at: u64,
    /// The bridge that announced it.
    pub by: String,
    /// When by that bridge's clock, in milliseconds since the Unix epoch: for people, and to tell announcements apart. Clocks
    /// differ, so nobody goes by it (see [`Sightings`]).
    pub at_ms: u64,
}

/// How long a bridge has known a note as it is, and each of its announced writes, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Of the note.
    pub note: u64,
    /// Of each announced write, in their order.
    pub pending: Vec<u64>,
}

impl Ages {
    /// Each announced write of `note` with its age.
    pub(super) fn of_pending<'n>(
        &'n self,
        note: &'n SyncState,
    ) -> impl Iterator<Item = (&'n Pending, u64)> {
        let ages = self.pending.iter().copied().chain(std::iter::repeat(0));
        note.pending.iter().zip(ages)
    }

    /// By what `note` says of itself: for one look, which has not seen it before and writes nothing.
    pub(super) fn as_told(note: Option<&SyncState>, now_ms: u64) -> Self {
        note.map_or_else(Self::default, |note| Self {
            note: now_ms.saturating_sub(note.at_ms),
            pending: (note.pending.iter())
                .map(|pending| now_ms.saturating_sub(pending.at_ms))
                .collect(),
        })
    }
}

/// When a bridge first saw what is under way, by its own clock that nobody sets. What others say of the time does not count:
/// a clock that is ahead of all others would hold up a key until they have caught up with it.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    seen: BTreeMap<ControlKey, Sighting>,
}

#[derive(Clone, Debug)]
struct Sighting {
    /// Which note: when it was noted, and when it was first seen.
    note: (u64, u64),
    pending: Vec<(Pending, u64)>,
}

impl Sightings {
    /// Takes down what `note`, which is that of `key`, says is under way, if it was not seen before. What is settled is
    /// forgotten.
    pub fn see(&mut self, key: &ControlKey, note: Option<&SyncState>, clock_ms: u64) {
        let before = self.seen.remove(key);
        let Some(note) = note.filter(|note| note.value.is_none() || !note.pending.is_empty())
        else {
            return;
        };
        let first = before.as_ref().filter(|seen| seen.note.0 == note.at_ms);
        let pending = note.pending.iter().map(|pending| {
            let known = before.iter().flat_map(|seen| &seen.pending);
            let mut known = known.filter(|(known, _)| known == pending);
            let at = known.next().map_or(clock_ms, |(_, at)| *at);
            (pending.clone(), at)
        });
        let seen = Sighting {
            note: (note.at_ms, first.map_or(clock_ms, |seen| seen.note.1)),
            pending: pending.collect(),
        };
        self.seen.insert(key.clone(), seen);
    }

    /// Forgets what is not of `keys`, which are sorted.
    pub(super) fn forget_others(&mut self, keys: &[ControlKey]) {
        self.seen.retain(|key, _| keys.binary_search(key).is_ok());
    }

    /// How long what `note` says has been known; what was not seen before is new.
    #[must_use]
    pub fn ages(&self, key: &ControlKey, note: Option<&SyncState>, clock_ms: u64) -> Ages {
        let (Some(seen), Some(note)) = (self.seen.get(key), note) else {
            return Ages::default();
        };
        let age = |at: u64| clock_ms.saturating_sub(at);
        let pending = note.pending.iter().map(|pending| {
            let known = seen.pending.iter().find(|(known, _)| known == pending);
            known.map_or(0, |(_, at)| age(*at))
        });
        Ages {
            note: match seen.note.0 == note.at_ms {
                true => age(seen.note.1),
                false => 0,
            },
            pending: pending.collect(),
        }
    }
}

impl SyncState {
    /// Reads a note; `None` when the bytes are none, as if nothing were known.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        crate::document::from_object(bytes).ok()
    }

    /// The note as it is written.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether both notes say the same of the sides.
    pub(super) fn says_as(&self, other: &Self) -> bool {
        self.value == other.value
            && self.revisions == other.revisions
            && self.pending == other.pending
    }

    /// The latest revision at which a value was seen on `side`, be it for a write that was only announced; 0 for none.
    pub(super) fn seen_at(&self, side: Side) -> u64 {
        let noted = self.value.as_ref().map_or(0, |_| *self.revisions.of(side));
        noted.max(self.read_at(side))
    }

    /// The latest revision at which a value was read on `side` for an announced write; 0 for none.
    pub(super) fn read_at(&self, side: Side) -> u64 {
        let read = self.pending.iter().filter(|pending| pending.to != side);
        read.map(|pending| pending.read_at).max().unwrap_or(0)
    }

    /// Whether it is about a key that was deleted on both sides since its value on `side` was of `revision`.
    pub(super) fn was_deleted_after(&self, side: Side, revision: u64) -> bool {
        self.value.is_none() && revision <= *self.revisions.of(side)
    }

    /// Whether a write of `value` to `side` was announced.
    pub(super) fn announces(&self, side: Side, value: Option<&str>) -> bool {
        self.pending
            .iter()
            .any(|pending| pending.to == side && pending.value.as_deref() == value)
    }
}

/// Notes of deleted keys that were written at an earlier revision than this are forgotten: the latest are kept. `notes` are the
/// revisions and the texts of all. Revisions, and not times: a clock that is ahead would have every other note forgotten.
pub(super) fn forget_deleted_before<'n>(notes: impl Iterator<Item = (u64, &'n [u8])>) -> u64 {
    let is_deleted =
        |text: &[u8]| SyncState::from_json(text).is_some_and(|note| note.value.is_none());
    let deleted = notes.filter(|(_, text)| is_deleted(text));
    let mut revisions: Vec<u64> = deleted.map(|(revision, _)| revision).collect();
    revisions.sort_unstable_by(|one, other| other.cmp(one));
    let surplus = revisions.get(DELETED_KEPT);
    surplus.map_or(0, |revision| revision.saturating_add(1))
}

/// What a value is known by: values themselves may be large, and are nobody's business but their key's.
#[must_use]
pub fn content_hash(value: &[u8]) -> String {
    sha256_hex(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_thousand_deleted_keys_are_remembered() {
        let before = |count: u64, value: Option<String>| {
            let note = SyncState {
                value,
                ..SyncState::default()
            };
            let text = note.to_json();
            forget_deleted_before((1..=count).map(|revision| (revision, text.as_slice())))
        };
        assert_eq!(before(0, None), 0);
        assert_eq!(before(1_000, None), 0);
        assert_eq!(before(1_003, None), 4);
        assert_eq!(before(1_003, Some("held".to_owned())), 0);
    }

    #[test]
    fn an_announcement_grows_old_from_when_it_was_seen_whatever_it_says_of_the_time() {
        let announced = |at_ms| Pending {
            to: Side::Etcd,
            value: None,
            replaces: 1,
            read_at: 0,
            by: "another".to_owned(),
            at_ms,
        };
        let far_ahead = 1_000_000_000;
        let mut note = SyncState {
            pending: vec![announced(far_ahead)],
            at_ms: far_ahead,
            ..SyncState::default()
        };
        let key = ControlKey::Logging;
        let mut sightings = Sightings::default();
        assert_eq!(sightings.ages(&key, Some(&note), 5), Ages::default());
        sightings.see(&key, Some(&note), 10);
        sightings.see(&key, Some(&note), 20);
        note.pending.push(announced(0));
        sightings.see(&key, Some(&note), 30);
        let ages = sightings.ages(&key, Some(&note), 40);
        assert_eq!((ages.note, ages.pending), (30, vec![30, 10]));
        note.at_ms += 1;
        assert_eq!(
            sightings.ages(&key, Some(&note), 40).note,
            0,
            "it is another one"
        );
        sightings.see(&key, None, 50);
        assert_eq!(sightings.ages(&key, Some(&note), 60), Ages::default());
        sightings.see(&key, Some(&note), 60);
        sightings.forget_others(&[]);
        assert_eq!(sightings.ages(&key, Some(&note), 90), Ages::default());
    }
}
