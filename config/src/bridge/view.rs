//! What a bridge knows of one store: kept up to date by its watch, by fresh readings and by the bridge's own writes.

use crate::store::{Cause, ControlKey, Entry, StoreUpdate, Tree, TreeChange};

use super::report::StoreReport;

/// One store as it was last seen.
pub(super) struct View {
    tree: Tree,
    /// Whether it has been read at all.
    read: bool,
    away: Option<String>,
    store: String,
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
            repairs: 0,
        }
    }

    /// What stands at `key`.
    pub(super) fn get(&self, key: &ControlKey) -> Option<&Entry> {
        self.tree.get(key)
    }

    /// Every key that has a value.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ControlKey> {
        self.tree.entries.keys()
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
                if cause == Cause::Repair {
                    self.repairs += changes.len() as u64;
                }
                let keys = changes.iter().map(|change| change.key.clone()).collect();
                if cause != Cause::Event {
                    // Also where it is older: then the store was replaced or restored, and what was known is of no use.
                    self.tree = Tree::clone(&tree);
                } else {
                    self.tree.apply(changes, tree.revision);
                    self.tree.strangers.clone_from(&tree.strangers);
                }
                keys
            }
            StoreUpdate::Unreachable { reason } => {
                if self.away.is_none() {
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

    /// Takes over a fresh reading, unless the watch is further.
    pub(super) fn adopt(&mut self, tree: &Tree) {
        if tree.revision >= self.tree.revision {
            self.tree = tree.clone();
        }
    }

    /// Takes over what the bridge itself wrote.
    pub(super) fn wrote(&mut self, key: &ControlKey, entry: Option<Entry>) {
        // A delete's revision is not known of every store; the watch brings it.
        if let Some(entry) = entry {
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
            strangers: self.tree.strangers.len(),
        }
    }
}
