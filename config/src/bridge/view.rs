//! What a bridge knows of one store: kept up to date by its watch, by fresh readings and by the bridge's own writes.

use std::collections::BTreeSet;

use crate::store::{Cause, ControlKey, Entry, StoreUpdate, Tree, TreeChange};

use super::report::StoreReport;

/// One store as it was last seen.
pub(super) struct View {
    tree: Tree,
    /// Whether it has been read at all.
    read: bool,
    away: Option<String>,
    store: String,
    /// Which store it was when that was last told: one whose root is gone does not tell.
    identity: Option<String>,
    /// Keys that the watch saw being deleted, and that have not come back since.
    deleted: BTreeSet<ControlKey>,
    /// Whether a reading of an earlier state or of another store came since this was last asked.
    broke: bool,
    /// Changes that only its re-list found.
    pub(super) repairs: u64,
}

impl View {
    /// Of the store that people know as `store`.
    pub(super) fn new(store: String) -> Self {
        Self {
            tree: Tree::default(),
            read: false,
            away: None,
            store,
            identity: None,
            deleted: BTreeSet::new(),
            broke: false,
            repairs: 0,
        }
    }

    /// What stands at `key`.
    pub(super) fn get(&self, key: &ControlKey) -> Option<&Entry> {
        self.tree.get(key)
    }

    /// Every key that has a value, but for the bridges' own.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ControlKey> {
        let keys = self.tree.entries.keys();
        keys.filter(|key| **key != ControlKey::Bridge)
    }

    /// Everything as it was last seen.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether the watch saw `key` being deleted from this store as it is, and not put back since.
    pub(super) fn saw_deleted(&self, key: &ControlKey) -> bool {
        self.deleted.contains(key)
    }

    /// A key that stands nowhere any more needs no remembering.
    pub(super) fn forget_deleted(&mut self, key: &ControlKey) {
        self.deleted.remove(key);
    }

    /// The sides belong together as they did not before: what the watch saw until now was not done to this pair.
    pub(super) fn forget_all_deleted(&mut self) {
        self.deleted.clear();
    }

    /// Whether a reading of an earlier state or of another store has come since this was last asked.
    pub(super) fn take_broke(&mut self) -> bool {
        std::mem::take(&mut self.broke)
    }

    /// Whether there is something to decide on.
    pub(super) fn is_ready(&self) -> bool {
        self.read && self.away.is_none()
    }

    /// Takes over what the watch tells, and gives the keys to look at.
    pub(super) fn update(&mut self, update: StoreUpdate) -> Vec<ControlKey> {
        match update {
            StoreUpdate::Tree {
                tree,
                changes,
                cause,
            } => {
                self.away = None;
                self.read = true;
                if cause == Cause::MissedUpdate {
                    self.repairs += changes.len() as u64;
                }
                let keys = changes.iter().map(|change| change.key.clone()).collect();
                if cause != Cause::Event {
                    // Also where it is older: then the store was replaced or restored, and what was known is of no use.
                    self.read_whole(Tree::clone(&tree));
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
                if self.away.as_ref() != Some(&reason) {
                    tracing::warn!(
                        store = self.store,
                        reason,
                        "store is away; the bridge waits for it"
                    );
                }
                self.away = Some(reason);
                Vec::new()
            }
            StoreUpdate::Reachable => {
                tracing::info!(store = self.store, "store is back");
                self.away = None;
                Vec::new()
            }
        }
    }

    /// Takes over a fresh reading. It is not behind what is known, unless the store went back.
    pub(super) fn adopt(&mut self, tree: Tree) {
        self.read_whole(tree);
    }

    fn read_whole(&mut self, tree: Tree) {
        let known = self.identity.as_deref();
        let is_other = (tree.identity.as_deref())
            .is_some_and(|found| known.is_some_and(|known| known != found));
        if tree.revision < self.tree.revision || is_other {
            self.broke = true;
            self.deleted.clear();
        }
        if let Some(found) = &tree.identity {
            self.identity = Some(found.to_string());
        }
        self.deleted.retain(|key| !tree.entries.contains_key(key));
        self.tree = tree;
    }

    /// Takes over what the bridge itself wrote.
    pub(super) fn wrote(&mut self, key: &ControlKey, entry: Option<Entry>) {
        // A delete's revision is not known of every store; the watch brings it.
        if let Some(entry) = entry {
            self.deleted.remove(key);
            let revision = entry.stamp.revision;
            let change = TreeChange::put(key.clone(), entry);
            self.tree.apply(vec![change], revision);
        }
    }

    /// What is said of it.
    pub(super) fn report(&self) -> StoreReport {
        StoreReport {
            store: self.store.clone(),
            reachable: self.is_ready(),
            reason: match &self.away {
                Some(reason) => Some(reason.clone()),
                None => (!self.read).then(|| "it has not been read yet".to_owned()),
            },
            revision: self.tree.revision,
            keys: self.tree.entries.len(),
            strangers: self.tree.unrecognized_keys.len(),
        }
    }
}
