//! The known keys of a store, kept in sync with it by listings and events. Pure.
//!
//! Nothing is ever applied backwards (G10): an event or a listing older than the known state of a key is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate_config::control::ControlKey;

/// Identifies the write of a key that produced a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion {
    /// The store's revision of the write: etcd's `mod_revision`, ZooKeeper's `mzxid`.
    pub revision: u64,
    /// The version of this key for compare-and-set: for etcd the same as `revision`, for ZooKeeper the node's data
    /// version.
    pub version: i64,
}

/// A value and the write that produced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub value: Arc<[u8]>,
    /// Its write.
    pub stamp: KeyVersion,
}

/// Truncates an oversized value to one byte more than the limit, so that readers can still detect it. It is kept at all
/// so that its key is rejected rather than taken as deleted.
pub(super) fn bounded(value: &[u8]) -> Arc<[u8]> {
    value[..value.len().min(super::MAX_VALUE + 1)].into()
}

/// Everything below a prefix, as of one revision of its store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The store's revision: the tree contains nothing newer.
    pub revision: u64,
    /// The control keys that have a value.
    pub entries: BTreeMap<ControlKey, Entry>,
    /// An unknown key was absent at this revision: nothing at or below it is news about such a key. If listings are not
    /// atomic, this is the newest revision that was known when the listing began; 0 if none was.
    pub floor: u64,
    /// Keys deleted by events since the last listing, with the revision of the delete.
    pub deleted: BTreeMap<ControlKey, u64>,
    /// Identity of the store, independent of its addresses: equal for every connection to it and across restarts,
    /// different for a recreated store. `None` while unknown.
    pub identity: Option<Arc<str>>,
    /// Paths below the prefix that are not control keys, with the reasons: reported, otherwise ignored. Sorted.
    pub unrecognized_keys: BTreeMap<String, String>,
}

/// A key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeChange {
    /// The key.
    pub key: ControlKey,
    /// The store's revision of this change: several changes can arrive together under a later one.
    pub revision: u64,
    /// The new value; `None` for a delete.
    pub entry: Option<Entry>,
}

impl TreeChange {
    /// A written value.
    #[must_use]
    pub fn put(key: ControlKey, entry: Entry) -> Self {
        Self {
            key,
            revision: entry.stamp.revision,
            entry: Some(entry),
        }
    }

    /// A key that was deleted at `revision`, or was found missing by then.
    #[must_use]
    pub fn delete(key: ControlKey, revision: u64) -> Self {
        Self {
            key,
            revision,
            entry: None,
        }
    }
}

impl Tree {
    /// The value at `key`.
    #[must_use]
    pub fn get(&self, key: &ControlKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Whether both are known to be different stores.
    #[must_use]
    pub fn is_other_than(&self, other: &Self) -> bool {
        let both = self.identity.as_ref().zip(other.identity.as_ref());
        both.is_some_and(|(one, two)| one != two)
    }

    /// Applies events in their order, or what was read after a notice; `revision` is the newest revision that they
    /// carry. Returns the effective changes; a change older than the known state of its key is dropped. Each change
    /// counts with its own revision: a delete that arrives together with later changes must not hide a write that
    /// followed it.
    pub fn apply(&mut self, changes: Vec<TreeChange>, revision: u64) -> Vec<TreeChange> {
        let applied: Vec<TreeChange> = changes
            .into_iter()
            .filter(|change| self.apply_one(change))
            .collect();
        self.revision = self.revision.max(revision);
        applied
    }

    fn apply_one(&mut self, change: &TreeChange) -> bool {
        let known = self.entries.get(&change.key);
        let known = known.map(|entry| entry.stamp.revision);
        let newest = known.or_else(|| self.deleted.get(&change.key).copied());
        if change.revision <= newest.unwrap_or(self.floor) {
            return false;
        }
        match &change.entry {
            Some(entry) => {
                // A value read after its notice can be newer than the notice.
                self.revision = self.revision.max(entry.stamp.revision);
                self.deleted.remove(&change.key);
                self.entries.insert(change.key.clone(), entry.clone());
                true
            }
            None => {
                self.deleted.insert(change.key.clone(), change.revision);
                self.entries.remove(&change.key).is_some()
            }
        }
    }

    /// Applies a full reading and returns the effective changes. A key missing in `listing` is deleted only if its
    /// known state is not newer than the listing's floor; a value older than the known state of its key is dropped.
    pub fn catch_up(&mut self, listing: Self) -> Vec<TreeChange> {
        let gone: Vec<ControlKey> = self
            .entries
            .iter()
            .filter(|(key, entry)| {
                !listing.entries.contains_key(*key) && entry.stamp.revision <= listing.floor
            })
            .map(|(key, _)| key.clone())
            .collect();
        let mut changes = Vec::new();
        for key in gone {
            if let Some(entry) = self.entries.remove(&key) {
                // A later write of the key has a later revision than this.
                let revision = entry.stamp.revision + 1;
                self.deleted.insert(key.clone(), revision);
                changes.push(TreeChange::delete(key, revision));
            }
        }
        let mut written: Vec<TreeChange> = Vec::new();
        for (key, entry) in listing.entries {
            let known = self.entries.get(&key).map(|known| known.stamp.revision);
            let newest = known.or_else(|| self.deleted.get(&key).copied());
            if newest.is_none_or(|newest| entry.stamp.revision > newest) {
                self.deleted.remove(&key);
                self.entries.insert(key.clone(), entry.clone());
                written.push(TreeChange::put(key, entry));
            }
        }
        written.sort_by_key(|change| change.revision);
        changes.append(&mut written);
        self.deleted.retain(|_, revision| *revision > listing.floor);
        self.floor = self.floor.max(listing.floor);
        self.revision = self.revision.max(listing.revision);
        self.unrecognized_keys = listing.unrecognized_keys;
        self.identity = listing.identity.or(self.identity.take());
        changes
    }

    /// The changes that lead from `self` to `newer`: deletes first, then writes in the order of their revisions.
    #[must_use]
    pub fn changes_to(&self, newer: &Self) -> Vec<TreeChange> {
        let gone = self
            .entries
            .keys()
            .filter(|key| !newer.entries.contains_key(*key));
        let mut changes: Vec<TreeChange> = gone
            .map(|key| {
                let deleted = newer.deleted.get(key).copied();
                TreeChange::delete(key.clone(), deleted.unwrap_or(newer.revision))
            })
            .collect();
        let mut written: Vec<TreeChange> = newer
            .entries
            .iter()
            .filter(|(key, entry)| self.entries.get(*key) != Some(*entry))
            .map(|(key, entry)| TreeChange::put(key.clone(), entry.clone()))
            .collect();
        written.sort_by_key(|change| change.revision);
        changes.append(&mut written);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> ControlKey {
        ControlKey::Enabled("auditor".to_owned())
    }

    fn put(value: &str, revision: u64) -> TreeChange {
        let stamp = KeyVersion {
            revision,
            version: revision as i64,
        };
        let entry = Entry {
            value: value.as_bytes().into(),
            stamp,
        };
        TreeChange::put(gate(), entry)
    }

    fn delete(revision: u64) -> TreeChange {
        TreeChange::delete(gate(), revision)
    }

    #[test]
    fn a_delete_and_a_later_put_in_one_batch_both_apply() {
        let mut tree = Tree::default();
        tree.apply(vec![put("true", 10)], 10);
        // A lagging watcher receives many revisions in one response, whose header has the store's current one.
        let batch = vec![delete(11), put("false", 12)];
        assert_eq!(tree.apply(batch.clone(), 50), batch);
        assert_eq!(
            tree.get(&gate()).map(|entry| entry.stamp.revision),
            Some(12)
        );
        // A key written again after the batch is not dropped by the listing that contains it.
        assert_eq!(tree.apply(vec![delete(60)], 90).len(), 1);
        let mut listing = Tree::default();
        listing.apply(vec![put("true", 61)], 95);
        listing.floor = 95;
        assert_eq!(tree.catch_up(listing), [put("true", 61)]);
    }

    #[test]
    fn older_changes_are_not_applied() {
        let mut tree = Tree {
            revision: 10,
            floor: 10,
            ..Tree::default()
        };
        assert!(tree.apply(vec![put("true", 9)], 9).is_empty(), "history");
        assert_eq!(tree.apply(vec![put("true", 12)], 12).len(), 1);
        assert!(tree.apply(vec![put("false", 11)], 11).is_empty());
        assert!(tree.apply(vec![delete(11)], 11).is_empty());
        assert_eq!(tree.apply(vec![delete(13)], 13).len(), 1);
        assert!(
            tree.apply(vec![put("true", 12)], 14).is_empty(),
            "resurrected"
        );
        assert_eq!(tree.revision, 14);
        assert_eq!(tree.apply(vec![put("true", 15)], 15).len(), 1);
    }

    #[test]
    fn a_listing_applies_newer_values_and_deletes_up_to_its_floor() {
        let listing = |entries: &[TreeChange], floor: u64| {
            let mut tree = Tree::default();
            tree.apply(entries.to_vec(), floor);
            tree.floor = floor;
            tree
        };
        let mut tree = listing(&[put("true", 5)], 10);
        assert!(tree.catch_up(listing(&[put("false", 4)], 10)).is_empty());
        assert_eq!(tree.catch_up(listing(&[put("false", 12)], 12)).len(), 1);
        tree.apply(vec![put("true", 20)], 20);
        assert!(tree.catch_up(listing(&[], 15)).is_empty(), "it is newer");
        assert_eq!(tree.catch_up(listing(&[], 25)), [delete(21)]);
        assert!(tree.apply(vec![put("true", 20)], 26).is_empty());
        assert!(tree.entries.is_empty());
        assert_eq!((tree.floor, tree.revision), (25, 26));
    }

    #[test]
    fn changes_lead_from_one_tree_to_the_next() {
        let mut older = Tree::default();
        older.apply(vec![put("true", 1)], 1);
        let mut newer = older.clone();
        assert!(older.changes_to(&newer).is_empty());
        newer.apply(vec![put("false", 2)], 2);
        assert_eq!(older.changes_to(&newer), [put("false", 2)]);
        assert_eq!(newer.changes_to(&Tree::default()), [delete(0)]);
    }
}
