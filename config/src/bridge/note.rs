//! A key's note: what both sides last held, and the writes that are under way. Shared by all bridges of a pair.

use serde::{Deserialize, Serialize};

use super::{Pair, Side};
use crate::digest::sha256_hex;

/// A live bridge is done with an announced write long before this, in milliseconds; afterwards others take over.
pub(super) const PATIENCE_MS: u64 = 10_000;
/// A bridge that was held up this long since it announced a write does not begin it, in milliseconds.
pub(super) const LATE_MS: u64 = 3_000;
/// After this long an announced write that nobody has seen will not come any more, and the note of a deleted key may go,
/// in milliseconds.
pub(super) const FORGET_MS: u64 = 60_000;

/// What is known of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
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
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

impl Pending {
    /// How old it is at `now_ms`; clocks that differ make it no older than new.
    pub(super) fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms)
    }
}

impl Note {
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

    /// Whether a write of `value` to `side` was announced.
    pub(super) fn announces(&self, side: Side, value: Option<&str>) -> bool {
        self.pending
            .iter()
            .any(|pending| pending.to == side && pending.value.as_deref() == value)
    }
}

/// What a value is known by: values themselves may be large, and are nobody's business but their key's.
#[must_use]
pub fn content_hash(value: &[u8]) -> String {
    sha256_hex(value)
}
