//! Sync state of a key: what both sides last held, and the writes under way. Shared by all bridges of a pair.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::digest::sha256_hex;

/// An announced write expires this long after another bridge has seen the announcement; other bridges may then take the
/// write over. In milliseconds.
pub(super) const PENDING_TIMEOUT_MS: u64 = 10_000;
/// A bridge does not start a write that was delayed for longer than this since its announcement, in milliseconds. Far
/// below `PENDING_TIMEOUT_MS`, so that no two bridges write a key at once.
pub(super) const LATE_MS: u64 = 3_000;
/// After this long since a bridge first saw the announcement, an unconfirmed write can no longer arrive, and the sync
/// state of a deleted key may be removed. In milliseconds.
pub(super) const FORGET_MS: u64 = 60_000;

/// The sync state of this many of the latest deleted keys is kept, so that restoring a store does not bring the keys
/// back.
const MAX_DELETED_KEPT: usize = 1_000;

/// Replication state of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// [`content_hash`] of the value that both sides held; `None` when both had none.
    pub value: Option<String>,
    /// The revision of that value on each side; 0 if it never had one.
    pub revisions: Pair<u64>,
    /// Announced writes that are not confirmed yet, oldest first.
    #[serde(default)]
    pub pending: Vec<Pending>,
    /// When it was recorded, in milliseconds since the Unix epoch.
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
    /// The revision that the write replaces there; 0 for no value.
    pub replaces: u64,
    /// The revision of the value on the side where it was read; 0 for a delete.
    #[serde(default)]
    pub read_at: u64,
    /// The bridge that announced it.
    pub by: String,
    /// Time of the announcement by that bridge's clock, in milliseconds since the Unix epoch: for people, and to
    /// distinguish announcements. Clocks differ, so no decision uses it (see [`Sightings`]).
    pub at_ms: u64,
}

/// How long this bridge has known the present sync state of a key, and each of its announced writes, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Age of the sync state.
    pub sync: u64,
    /// Age of each announced write, in their order.
    pub pending: Vec<u64>,
}

impl Ages {
    /// Each announced write of `sync` with its age.
    pub(super) fn of_pending<'n>(
        &'n self,
        sync: &'n SyncState,
    ) -> impl Iterator<Item = (&'n Pending, u64)> {
        let ages = self.pending.iter().copied().chain(std::iter::repeat(0));
        sync.pending.iter().zip(ages)
    }

    /// The ages by the timestamps in `sync`: for a dry run, which has not seen it before and writes nothing.
    pub(super) fn as_recorded(sync: Option<&SyncState>, now_ms: u64) -> Self {
        sync.map_or_else(Self::default, |sync| Self {
            sync: now_ms.saturating_sub(sync.at_ms),
            pending: (sync.pending.iter())
                .map(|pending| now_ms.saturating_sub(pending.at_ms))
                .collect(),
        })
    }
}

/// When a bridge first saw each pending write, by its own monotonic clock. Timestamps of other bridges are not used: a
/// clock ahead of the others would block a key until they catch up.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    seen: BTreeMap<ControlKey, Sighting>,
}

#[derive(Clone, Debug)]
struct Sighting {
    /// Identifies the sync state: its timestamp, and when it was first seen.
    sync: (u64, u64),
    pending: Vec<(Pending, u64)>,
}

impl Sightings {
    /// Records the pending writes in `sync`, the sync state of `key`, if they were not seen before. Forgets the key
    /// once nothing is pending.
    pub fn see(&mut self, key: &ControlKey, sync: Option<&SyncState>, clock_ms: u64) {
        let before = self.seen.remove(key);
        let Some(sync) = sync.filter(|sync| sync.value.is_none() || !sync.pending.is_empty())
        else {
            return;
        };
        let first = before.as_ref().filter(|seen| seen.sync.0 == sync.at_ms);
        let pending = sync.pending.iter().map(|pending| {
            let known = before.iter().flat_map(|seen| &seen.pending);
            let mut known = known.filter(|(known, _)| known == pending);
            let at = known.next().map_or(clock_ms, |(_, at)| *at);
            (pending.clone(), at)
        });
        let seen = Sighting {
            sync: (sync.at_ms, first.map_or(clock_ms, |seen| seen.sync.1)),
            pending: pending.collect(),
        };
        self.seen.insert(key.clone(), seen);
    }

    /// Forgets all keys but `keys`, which are sorted.
    pub(super) fn forget_others(&mut self, keys: &[ControlKey]) {
        self.seen.retain(|key, _| keys.binary_search(key).is_ok());
    }

    /// How long the content of `sync` has been known; unseen content is new.
    #[must_use]
    pub fn ages(&self, key: &ControlKey, sync: Option<&SyncState>, clock_ms: u64) -> Ages {
        let (Some(seen), Some(sync)) = (self.seen.get(key), sync) else {
            return Ages::default();
        };
        let age = |at: u64| clock_ms.saturating_sub(at);
        let pending = sync.pending.iter().map(|pending| {
            let known = seen.pending.iter().find(|(known, _)| known == pending);
            known.map_or(0, |(_, at)| age(*at))
        });
        Ages {
            sync: match seen.sync.0 == sync.at_ms {
                true => age(seen.sync.1),
                false => 0,
            },
            pending: pending.collect(),
        }
    }
}

impl SyncState {
    /// Reads the JSON form; `None` for unreadable bytes, which count as no sync state.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        sluicegate_config::document::from_object(bytes).ok()
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether both record the same about the sides, whatever their time and mark.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.value == other.value
            && self.revisions == other.revisions
            && self.pending == other.pending
    }

    /// The latest revision at which a value was seen on `side`, including for a write that was only announced; 0 for
    /// none.
    pub(super) fn seen_at(&self, side: Side) -> u64 {
        let recorded = self.value.as_ref().map_or(0, |_| *self.revisions.of(side));
        recorded.max(self.read_at(side))
    }

    /// The latest revision at which a value was read on `side` for an announced write; 0 for none.
    pub(super) fn read_at(&self, side: Side) -> u64 {
        let read = self.pending.iter().filter(|pending| pending.to != side);
        read.map(|pending| pending.read_at).max().unwrap_or(0)
    }

    /// Whether the key was deleted on both sides since its value on `side` had `revision`.
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

/// The revision below which the sync state of deleted keys may be removed, so that only the latest are kept. `states`
/// are the revisions and JSON forms of all keys. It compares revisions, not times: a clock that is ahead would evict
/// all others.
pub(super) fn forget_deleted_before<'n>(states: impl Iterator<Item = (u64, &'n [u8])>) -> u64 {
    let is_deleted =
        |text: &[u8]| SyncState::from_json(text).is_some_and(|sync| sync.value.is_none());
    let deleted = states.filter(|(_, text)| is_deleted(text));
    let mut revisions: Vec<u64> = deleted.map(|(revision, _)| revision).collect();
    revisions.sort_unstable_by(|one, other| other.cmp(one));
    let surplus = revisions.get(MAX_DELETED_KEPT);
    surplus.map_or(0, |revision| revision.saturating_add(1))
}

/// Digest by which values are compared: values can be large and confidential, so they are not repeated in the sync state.
#[must_use]
pub fn content_hash(value: &[u8]) -> String {
    sha256_hex(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sync_state_of_the_latest_thousand_deleted_keys_is_kept() {
        let before = |count: u64, value: Option<String>| {
            let sync = SyncState {
                value,
                ..SyncState::default()
            };
            let text = sync.to_json();
            forget_deleted_before((1..=count).map(|revision| (revision, text.as_slice())))
        };
        assert_eq!(before(0, None), 0);
        assert_eq!(before(1_000, None), 0);
        assert_eq!(before(1_003, None), 4);
        assert_eq!(before(1_003, Some("held".to_owned())), 0);
    }

    #[test]
    fn an_announcement_ages_from_its_first_sighting_whatever_its_timestamp() {
        let announced = |at_ms| Pending {
            to: Side::Etcd,
            value: None,
            replaces: 1,
            read_at: 0,
            by: "another".to_owned(),
            at_ms,
        };
        let far_ahead = 1_000_000_000;
        let mut sync = SyncState {
            pending: vec![announced(far_ahead)],
            at_ms: far_ahead,
            ..SyncState::default()
        };
        let key = ControlKey::Logging;
        let mut sightings = Sightings::default();
        assert_eq!(sightings.ages(&key, Some(&sync), 5), Ages::default());
        sightings.see(&key, Some(&sync), 10);
        sightings.see(&key, Some(&sync), 20);
        sync.pending.push(announced(0));
        sightings.see(&key, Some(&sync), 30);
        let ages = sightings.ages(&key, Some(&sync), 40);
        assert_eq!((ages.sync, ages.pending), (30, vec![30, 10]));
        sync.at_ms += 1;
        assert_eq!(
            sightings.ages(&key, Some(&sync), 40).sync,
            0,
            "it is a different state"
        );
        sightings.see(&key, None, 50);
        assert_eq!(sightings.ages(&key, Some(&sync), 60), Ages::default());
        sightings.see(&key, Some(&sync), 60);
        sightings.forget_others(&[]);
        assert_eq!(sightings.ages(&key, Some(&sync), 90), Ages::default());
    }
}
