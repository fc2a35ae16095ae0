//! A bridge's view of one store, kept current by its watch, by fresh readings and by the bridge's own writes.

use std::collections::BTreeSet;

use sluicegate_config::control::ControlKey;
use sluicegate_store::{Cause, Entry, StoreUpdate, Tree, TreeChange};

use super::report::StoreReport;

/// One store as last seen.
pub(super) struct View {
    tree: Tree,
    /// Whether it has been read at all.
    read: bool,
    /// Why it is unreachable.
    unreachable: Option<String>,
    store: String,
    /// The last known identity of the store: a store whose root is missing does not report one.
    identity: Option<String>,
    /// Keys that the watch saw being deleted and that have not come back since.
    deleted: BTreeSet<ControlKey>,
    /// Whether a reading of an earlier state or of a different store arrived since the last `take_discontinuity`.
    discontinuity: bool,
    /// Changes that only its re-list found.
    pub(super) repairs: u64,
}

impl View {
    /// Creates the view of the store with the address `store`.
    pub(super) fn new(store: String) -> Self {
        Self {
            tree: Tree::default(),
            read: false,
            unreachable: None,
            store,
            identity: None,
            deleted: BTreeSet::new(),
            discontinuity: false,
            repairs: 0,
        }
    }

    /// The value at `key`.
    pub(super) fn get(&self, key: &ControlKey) -> Option<&Entry> {
        self.tree.get(key)
    }

    /// Every key that has a value, except the bridges' own.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ControlKey> {
        let keys = self.tree.entries.keys();
        keys.filter(|key| **key != ControlKey::Bridge)
    }

    /// The whole content as last seen.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether the watch saw `key` being deleted in the present state of this store, without coming back since.
    pub(super) fn saw_deleted(&self, key: &ControlKey) -> bool {
        self.deleted.contains(key)
    }

    /// Forgets that `key` was deleted, once it exists nowhere.
    pub(super) fn forget_deleted(&mut self, key: &ControlKey) {
        self.deleted.remove(key);
    }

    /// Forgets all deletes, after the pair was rejoined: deletes seen before were not done to this pair.
    pub(super) fn forget_all_deleted(&mut self) {
        self.deleted.clear();
    }

    /// Whether a reading of an earlier state or of a different store has arrived since the last call.
    pub(super) fn take_discontinuity(&mut self) -> bool {
        std::mem::take(&mut self.discontinuity)
    }

    /// Whether it has been read and the store answers.
    pub(super) fn is_ready(&self) -> bool {
        self.read && self.unreachable.is_none()
    }

    /// Applies an update of the watch and returns the changed keys.
    pub(super) fn update(&mut self, update: StoreUpdate) -> Vec<ControlKey> {
        match update {
            StoreUpdate::Tree {
                tree,
                changes,
                cause,
            } => {
                self.unreachable = None;
                self.read = true;
                if cause == Cause::MissedUpdate {
                    self.repairs += changes.len() as u64;
                }
                let keys = changes.iter().map(|change| change.key.clone()).collect();
                if cause != Cause::Event {
                    // Older listings too: the store was replaced or restored then, and the known state is void.
                    self.replace_tree(Tree::clone(&tree));
                } else {
                    for change in &changes {
                        match change.entry {
                            Some(_) => self.deleted.remove(&change.key),
                            None => self.deleted.insert(change.key.clone()),
                        };
                    }
                    self.tree.apply(changes, tree.revision);
                    self.tree
                        .unrecognized_keys
                        .clone_from(&tree.unrecognized_keys);
                }
                keys
            }
            StoreUpdate::Unreachable { reason } => {
                if self.unreachable.as_ref() != Some(&reason) {
                    tracing::warn!(
                        store = self.store,
                        reason,
                        "store unreachable; waiting for it"
                    );
                }
                self.unreachable = Some(reason);
                Vec::new()
            }
            StoreUpdate::Reachable => {
                tracing::info!(store = self.store, "store reachable again");
                self.unreachable = None;
                Vec::new()
            }
        }
    }

    /// Applies a fresh reading. It is never behind the known state, unless the store reverted.
    pub(super) fn adopt(&mut self, tree: Tree) {
        self.replace_tree(tree);
    }

    fn replace_tree(&mut self, tree: Tree) {
        let known = self.identity.as_deref();
        let is_other = (tree.identity.as_deref())
            .is_some_and(|found| known.is_some_and(|known| known != found));
        if tree.revision < self.tree.revision || is_other {
            self.discontinuity = true;
            self.deleted.clear();
        }
        if let Some(found) = &tree.identity {
            self.identity = Some(found.to_string());
        }
        self.deleted.retain(|key| !tree.entries.contains_key(key));
        self.tree = tree;
    }

    /// Applies a write of the bridge itself.
    pub(super) fn wrote(&mut self, key: &ControlKey, entry: Option<Entry>) {
        // Not every store reports the revision of a delete; the watch brings it.
        if let Some(entry) = entry {
            self.deleted.remove(key);
            let revision = entry.stamp.revision;
            let change = TreeChange::put(key.clone(), entry);
            self.tree.apply(vec![change], revision);
        }
    }

    /// Its part of the status.
    pub(super) fn report(&self) -> StoreReport {
        StoreReport {
            store: self.store.clone(),
            reachable: self.is_ready(),
            reason: match &self.unreachable {
                Some(reason) => Some(reason.clone()),
                None => (!self.read).then(|| "not read yet".to_owned()),
            },
            revision: self.tree.revision,
            keys: self.tree.entries.len(),
            unrecognized_keys: self.tree.unrecognized_keys.len(),
        }
    }
}
