//! What the bridges of a pair know about its stores, kept next to the sync state.

use serde::{Deserialize, Serialize};
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::Tree;

use super::mark::{Mark, Membership};
use super::sync_state::SyncState;

/// The side that carries the numbered mark: the one that does not store the sync state.
pub(super) const MARKED: Side = Side::ZooKeeper;

/// What the bridges of a pair know about its stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRecord {
    /// The pair's id, which both sides carry; `None` until the pair was first joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The id about to be written to both sides: until that is done they may carry either id or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_id: Option<String>,
    /// The identities ([`Tree::identity`]) of the stores that the sync state is about; `None` while unknown.
    pub stores: Pair<Option<String>>,
    /// The mark in ZooKeeper.
    pub mark: u64,
    /// The mark about to be written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// A key missing on a side counts as deleted only if its sync state has this mark or a later one.
    pub trusted_from: Pair<u64>,
    /// The revision of a side when it was last found to have reverted: anything no later belongs to its earlier state.
    #[serde(default)]
    pub went_back_at: Pair<u64>,
    /// How a side joined as a store unknown to the sync state.
    #[serde(default)]
    pub taken_over: Pair<Option<TakenOver>>,
}

/// A side at the moment when it joined as an unknown store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// Its revision then: values no later than this are not edits.
    pub at: u64,
    /// Sync state of an earlier mark is about a different store.
    pub mark: u64,
    /// Whether its values from then yield to the other side, whichever side is preferred.
    pub yields: bool,
}

impl PairRecord {
    /// The record in the tree of the state store; unreadable bytes count as no record.
    #[must_use]
    pub fn of(state: &Tree) -> Option<Self> {
        let entry = state.get(&ControlKey::Bridge)?;
        serde_json::from_slice(&entry.value).ok()
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How `side` joined as an unknown store, unless `sync` was written after that. Revisions in earlier sync state, or
    /// in none, are about a different store.
    pub(super) fn unknown(&self, side: Side, sync: Option<&SyncState>) -> Option<&TakenOver> {
        let taken = self.taken_over.of(side).as_ref();
        taken.filter(|taken| sync.is_none_or(|sync| sync.mark < taken.mark))
    }

    /// The revisions of `sync` that apply to the current stores: 0 for a store that was replaced, and none later than
    /// the state to which a side reverted since.
    pub(super) fn known_revisions(&self, sync: &SyncState) -> Pair<u64> {
        Pair::from_fn(|side| {
            let recorded = *sync.revisions.of(side);
            match self.unknown(side, Some(sync)) {
                Some(_) => 0,
                None if sync.mark < *self.trusted_from.of(side) => {
                    recorded.min(*self.went_back_at.of(side))
                }
                None => recorded,
            }
        })
    }

    /// Whether `side`, with the content `tree`, carries this pair's id.
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
