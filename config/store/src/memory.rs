//! An in-memory store, for tests and embedders: compare-and-set, watches, history, and simulated outages and dropped
//! events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sluicegate_config::control::{ControlKey, MemberReport};

use super::claim::Claim;
use super::{
    Cause, Entry, Expected, HistoryEntry, KeyVersion, MAX_VALUE, Membership, MembershipStatus,
    Store, StoreAddress, StoreError, StoreSink, StoreUpdate, StoreWatch, Tree, TreeChange,
    check_length, check_member_id,
};

/// A store whose failures are controlled by its [`MemoryStoreHandle`]. Watches run on the writer's thread.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

/// Simulates failures of a [`MemoryStore`].
#[derive(Clone)]
pub struct MemoryStoreHandle {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    tree: Tree,
    past: Vec<(ControlKey, HistoryEntry)>,
    members: BTreeMap<String, Vec<u8>>,
    away: bool,
    deaf: bool,
    watches: BTreeMap<u64, Watch>,
    next_watch: u64,
}

/// The content of a [`MemoryStore`] at one moment, like a backup.
#[derive(Clone)]
pub struct MemoryBackup {
    tree: Tree,
    past: Vec<(ControlKey, HistoryEntry)>,
}

impl MemoryBackup {
    /// The same content as a backup of a different store, like a restore under a new cluster id.
    #[must_use]
    pub fn as_another(mut self) -> Self {
        self.tree.identity = empty().identity;
        self
    }
}

/// An empty tree with a new store identity.
fn empty() -> Tree {
    Tree {
        identity: Some(format!("memory {:016x}", fastrand::u64(..)).into()),
        ..Tree::default()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        let shared = Shared {
            tree: empty(),
            ..Shared::default()
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }
}

struct Watch {
    known: Tree,
    sink: StoreSink,
}

impl Shared {
    /// Updates every watch to the current tree.
    fn publish(&mut self, cause: Cause) {
        for watch in self.watches.values_mut() {
            let changes = watch.known.changes_to(&self.tree);
            let breaks =
                self.tree.revision < watch.known.revision || self.tree.is_other_than(&watch.known);
            if breaks || !changes.is_empty() {
                watch.known = self.tree.clone();
                (watch.sink)(StoreUpdate::Tree {
                    tree: Arc::new(self.tree.clone()),
                    changes,
                    cause,
                });
            }
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        if !self.away {
            return Ok(());
        }
        Err(StoreError::Unreachable {
            store: "memory".to_owned(),
            reason: "set to be unreachable".to_owned(),
        })
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle that simulates failures.
    #[must_use]
    pub fn handle(&self) -> MemoryStoreHandle {
        MemoryStoreHandle {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl MemoryStoreHandle {
    /// Makes the store unreachable, or reachable again; watches then re-read.
    pub fn set_away(&self, away: bool) {
        let mut shared = lock(&self.shared);
        if shared.away == away {
            return;
        }
        shared.away = away;
        for watch in shared.watches.values_mut() {
            (watch.sink)(match away {
                true => StoreUpdate::Unreachable {
                    reason: "set to be unreachable".to_owned(),
                },
                false => StoreUpdate::Reachable,
            });
        }
        if !away {
            shared.publish(Cause::Resync);
        }
    }

    /// Stops reporting writes to watches, or resumes it; the next event or re-read catches up.
    pub fn set_deaf(&self, deaf: bool) {
        lock(&self.shared).deaf = deaf;
    }

    /// The value at `key`, also while the store is unreachable.
    #[must_use]
    pub fn held(&self, key: &ControlKey) -> Option<Arc<[u8]>> {
        let shared = lock(&self.shared);
        shared.tree.get(key).map(|entry| Arc::clone(&entry.value))
    }

    /// The current content.
    #[must_use]
    pub fn back_up(&self) -> MemoryBackup {
        let shared = lock(&self.shared);
        MemoryBackup {
            tree: shared.tree.clone(),
            past: shared.past.clone(),
        }
    }

    /// Replaces the content with a backup of this store or of a different one, whose identity it then has. Watches
    /// re-read.
    pub fn restore(&self, backup: &MemoryBackup) {
        let mut shared = lock(&self.shared);
        shared.tree = backup.tree.clone();
        shared.past = backup.past.clone();
        shared.publish(Cause::Resync);
    }

    /// Recreates the store: empty, with new revisions and a new identity. Watches re-read.
    pub fn wipe(&self) {
        self.restore(&MemoryBackup {
            tree: empty(),
            past: Vec::new(),
        });
    }

    /// Simulates the periodic re-list, which repairs missed updates.
    pub fn relist(&self) {
        lock(&self.shared).publish(Cause::MissedUpdate);
    }
}

impl Store for MemoryStore {
    fn address(&self) -> StoreAddress {
        StoreAddress {
            kind: "memory".to_owned(),
            servers: Vec::new(),
            below: String::new(),
        }
    }

    fn locate(&self, key: &ControlKey) -> String {
        key.to_string()
    }

    fn list(&self) -> Result<Tree, StoreError> {
        let shared = lock(&self.shared);
        shared.check()?;
        Ok(shared.tree.clone())
    }

    fn watch(&self, mut sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError> {
        let mut shared = lock(&self.shared);
        let known = match shared.away {
            true => {
                sink(StoreUpdate::Unreachable {
                    reason: "set to be unreachable".to_owned(),
                });
                Tree::default()
            }
            false => {
                sink(StoreUpdate::Tree {
                    tree: Arc::new(shared.tree.clone()),
                    changes: Tree::default().changes_to(&shared.tree),
                    cause: Cause::First,
                });
                shared.tree.clone()
            }
        };
        let id = shared.next_watch;
        shared.next_watch += 1;
        shared.watches.insert(id, Watch { known, sink });
        drop(shared);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(MemoryWatch { shared, id }))
    }

    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError> {
        check_length(&self.describe(), &self.locate(key), value, MAX_VALUE)?;
        let mut shared = lock(&self.shared);
        shared.check()?;
        let there = shared.tree.get(key).map(|entry| entry.stamp);
        let as_expected = match expected {
            Expected::Any => true,
            Expected::Absent => there.is_none(),
            Expected::At(stamp) => there == Some(stamp),
        };
        if !as_expected {
            return Err(StoreError::Conflict {
                place: self.locate(key),
            });
        }
        let Some(value) = value.map(Arc::<[u8]>::from) else {
            return Ok(shared.delete(key, there));
        };
        let revision = shared.tree.revision + 1;
        let stamp = KeyVersion {
            revision,
            version: revision as i64,
        };
        let past = HistoryEntry {
            revision,
            value: Some(value.to_vec()),
        };
        shared.past.push((key.clone(), past));
        let entry = Entry { value, stamp };
        shared.change(key, Some(entry), revision);
        Ok(stamp)
    }

    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError> {
        check_member_id(&self.describe(), &report.id)?;
        // In-memory processes are never killed, so the hold timeout is zero.
        let mut claim = Claim::new(&report, Duration::ZERO);
        let mut shared = lock(&self.shared);
        while let Some(there) = shared.members.get(claim.id()) {
            claim.taken(there, tokio::time::Instant::now());
        }
        let member = MemoryMember {
            shared: Arc::clone(&self.shared),
            status: claim.status(),
        };
        shared.write_report(&member.status, report);
        drop(shared);
        Ok(Box::new(member))
    }

    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let shared = lock(&self.shared);
        shared.check()?;
        Ok(shared.members.clone().into_iter().collect())
    }

    fn history(&self, key: &ControlKey, limit: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        let shared = lock(&self.shared);
        shared.check()?;
        let of_key = shared.past.iter().rev().filter(|(of, _)| of == key);
        Ok(of_key.take(limit).map(|(_, past)| past.clone()).collect())
    }
}

impl Shared {
    fn write_report(&mut self, status: &MembershipStatus, report: MemberReport) {
        let id = status.id.clone();
        let report = MemberReport {
            id: id.clone(),
            ..report
        };
        self.members.insert(id, report.to_json());
    }

    fn delete(&mut self, key: &ControlKey, there: Option<KeyVersion>) -> KeyVersion {
        let Some(stamp) = there else {
            return KeyVersion {
                revision: self.tree.revision,
                version: 0,
            };
        };
        let revision = self.tree.revision + 1;
        let past = HistoryEntry {
            revision,
            value: None,
        };
        self.past.push((key.clone(), past));
        self.change(key, None, revision);
        KeyVersion { revision, ..stamp }
    }

    fn change(&mut self, key: &ControlKey, entry: Option<Entry>, revision: u64) {
        let change = match entry {
            Some(entry) => TreeChange::put(key.clone(), entry),
            None => TreeChange::delete(key.clone(), revision),
        };
        self.tree.apply(vec![change], revision);
        if !self.deaf {
            self.publish(Cause::Event);
        }
    }
}

struct MemoryWatch {
    shared: Arc<Mutex<Shared>>,
    id: u64,
}

impl StoreWatch for MemoryWatch {
    fn reread(&self) {
        lock(&self.shared).publish(Cause::Resync);
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        lock(&self.shared).watches.remove(&self.id);
    }
}

struct MemoryMember {
    shared: Arc<Mutex<Shared>>,
    status: MembershipStatus,
}

impl Membership for MemoryMember {
    fn report(&self, report: MemberReport) {
        lock(&self.shared).write_report(&self.status, report);
    }

    fn status(&self) -> MembershipStatus {
        self.status.clone()
    }
}

impl Drop for MemoryMember {
    fn drop(&mut self) {
        lock(&self.shared).members.remove(&self.status.id);
    }
}
