//! Conformance checks that every [`Store`] must pass: memory, etcd and ZooKeeper run all of them.
//!
//! Each check takes a [`Bench`] without keys and uses its own names; it panics with the observed state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, MAX_VALUE, MemberReport};
use sluicegate_store::{
    Cause, Expected, KeyVersion, Membership, MembershipStatus, Store, StoreError, StoreSink,
    StoreUpdate, StoreWatch, Tree,
};

use crate::wait::{wait_for, wait_until};

/// Maximum time until a watch reports a change while the store is healthy.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until an outage, or its end, is reported.
const OUTAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// A store under test.
pub trait Bench {
    /// A new connection to the same keys.
    fn open(&self) -> Arc<dyn Store>;
    /// Cuts off the store from all connections without an answer, or restores it with all its data.
    fn set_away(&self, away: bool);
    /// Kills the store and restarts it with all its data.
    fn restart(&self);
}

/// A property that every store must have.
pub type Check = fn(&dyn Bench);

/// Every check with its name.
pub const CHECKS: [(&str, Check); 10] = [
    ("list", list),
    ("change", change),
    ("delete", delete),
    ("burst", burst),
    ("compare and set", compare_and_set),
    ("reorder", reorder),
    ("members", members),
    ("one id twice", one_id_twice),
    ("outage", outage),
    ("restart", restart),
];

/// Runs every check, each on an emptied store.
///
/// # Panics
/// If one fails.
pub fn run_all(bench: &dyn Bench) {
    for (name, check) in CHECKS {
        let store = bench.open();
        let tree = store.list().unwrap_or_else(|error| panic!("{error}"));
        for key in tree.entries.keys() {
            delete_key(&*store, key);
        }
        drop(store);
        let started = Instant::now();
        check(bench);
        println!("{name}: {:.2} s", started.elapsed().as_secs_f32());
    }
}

/// Recorder of everything that a watch reported.
#[derive(Clone, Default)]
pub struct Record {
    recorded: Arc<Mutex<Vec<StoreUpdate>>>,
}

impl Record {
    /// Starts a watch that is recorded.
    ///
    /// # Panics
    /// If the watch cannot be started.
    #[must_use]
    pub fn watch(store: &dyn Store) -> (Self, Box<dyn StoreWatch>) {
        let record = Self::default();
        let recorded = Arc::clone(&record.recorded);
        let sink: StoreSink = Box::new(move |update| {
            recorded
                .lock()
                .expect("no panic while it is held")
                .push(update);
        });
        let watch = store.watch(sink).unwrap_or_else(|error| panic!("{error}"));
        (record, watch)
    }

    /// All updates so far.
    ///
    /// # Panics
    /// If a test panicked while it held them.
    #[must_use]
    pub fn updates(&self) -> Vec<StoreUpdate> {
        self.recorded
            .lock()
            .expect("no panic while it is held")
            .clone()
    }

    /// The newest reported tree.
    #[must_use]
    pub fn tree(&self) -> Option<Arc<Tree>> {
        self.updates().iter().rev().find_map(|update| match update {
            StoreUpdate::Tree { tree, .. } => Some(Arc::clone(tree)),
            _ => None,
        })
    }

    /// The value of `key` in the newest tree, as text.
    #[must_use]
    pub fn value(&self, key: &ControlKey) -> Option<String> {
        let tree = self.tree()?;
        let entry = tree.get(key)?;
        Some(String::from_utf8_lossy(&entry.value).into_owned())
    }

    /// Polls until `done` returns true.
    ///
    /// # Panics
    /// After `deadline`, with `what` and the last updates.
    pub fn until(&self, what: &str, deadline: Duration, done: impl Fn(&Self) -> bool) {
        let seen = || {
            let last: Vec<_> = self.updates().iter().rev().take(3).cloned().collect();
            format!("{what}; last updates: {last:#?}")
        };
        wait_until(deadline, || done(self), seen);
    }

    /// Waits until `key` has this value, or none.
    ///
    /// # Panics
    /// After `deadline`.
    pub fn until_value(&self, key: &ControlKey, value: Option<&str>, deadline: Duration) {
        self.until(&format!("{key} = {value:?}"), deadline, |record| {
            record.tree().is_some() && record.value(key).as_deref() == value
        });
    }

    /// Waits until `key` has this version.
    ///
    /// # Panics
    /// After `deadline`.
    pub fn until_version(&self, key: &ControlKey, version: KeyVersion, deadline: Duration) {
        self.until(&format!("{key} at {version:?}"), deadline, |record| {
            let tree = record.tree();
            let entry = tree.as_ref().and_then(|tree| tree.get(key));
            entry.is_some_and(|entry| entry.stamp == version)
        });
    }

    /// Waits until the latest update reports the store as unreachable.
    ///
    /// # Panics
    /// After `deadline`.
    pub fn until_away(&self, deadline: Duration) {
        self.until("the report of the outage", deadline, |record| {
            let recorded = record.updates();
            matches!(recorded.last(), Some(StoreUpdate::Unreachable { .. }))
        });
    }

    /// Number of updates with changes of this cause.
    #[must_use]
    pub fn count(&self, wanted: Cause) -> usize {
        self.updates()
            .iter()
            .filter(|update| matches!(update, StoreUpdate::Tree { cause, changes, .. } if *cause == wanted && !changes.is_empty()))
            .count()
    }

    /// Checks that no key ever reverted to an earlier write, and that no change was reported twice (G10).
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_never_backwards(&self) {
        let mut newest: BTreeMap<ControlKey, u64> = BTreeMap::new();
        for update in self.updates() {
            let StoreUpdate::Tree { changes, tree, .. } = update else {
                continue;
            };
            for change in changes {
                let Some(entry) = change.entry else {
                    continue;
                };
                let revision = entry.stamp.revision;
                let earlier = newest.insert(change.key.clone(), revision).unwrap_or(0);
                assert!(
                    revision > earlier,
                    "{} went from revision {earlier} to {revision}",
                    change.key
                );
                assert!(
                    tree.revision >= revision,
                    "{} is ahead of its tree",
                    change.key
                );
            }
        }
    }
}

/// A gate.
fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).unwrap_or_else(|error| panic!("{error}"))
}

fn put(store: &dyn Store, key: &ControlKey, value: &str) -> KeyVersion {
    store
        .write(key, Some(value.as_bytes()), Expected::Any)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn delete_key(store: &dyn Store, key: &ControlKey) -> KeyVersion {
    store
        .write(key, None, Expected::Any)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn read(store: &dyn Store) -> Tree {
    store.list().unwrap_or_else(|error| panic!("{error}"))
}

fn list(bench: &dyn Bench) {
    let (writer, reader) = (bench.open(), bench.open());
    assert!(read(&*reader).entries.is_empty(), "it starts empty");
    let name = "lister";
    let keys = [
        ControlKey::Logging,
        ControlKey::MetricsLevel,
        gate(name),
        ControlKey::spec(name).unwrap_or_else(|error| panic!("{error}")),
        ControlKey::config(name).unwrap_or_else(|error| panic!("{error}")),
        ControlKey::canary(name).unwrap_or_else(|error| panic!("{error}")),
        ControlKey::rollout(name).unwrap_or_else(|error| panic!("{error}")),
    ];
    let mut last = 0;
    for key in &keys {
        let stamp = put(&*writer, key, &format!("value of {key}"));
        assert!(stamp.revision > last, "revisions grow");
        last = stamp.revision;
        let tree = read(&*reader);
        let entry = tree.get(key).unwrap_or_else(|| panic!("no {key}"));
        assert_eq!(entry.stamp, stamp, "{key}");
        assert_eq!(*entry.value, *format!("value of {key}").as_bytes());
        assert!(tree.revision >= stamp.revision);
    }
    assert_eq!(read(&*reader).entries.len(), keys.len());
    assert!(reader.locate(&gate(name)).contains(name));
    // The first update is the whole tree.
    let (record, _watch) = Record::watch(&*reader);
    record.until("the first tree", CHANGE_TIMEOUT, |record| {
        record.tree().is_some()
    });
    assert_eq!(
        record.tree().map(|tree| tree.entries.len()),
        Some(keys.len())
    );
    assert_eq!(record.count(Cause::First), 1);
}

fn change(bench: &dyn Bench) {
    let (writer, reader) = (bench.open(), bench.open());
    let (record, watch) = Record::watch(&*reader);
    record.until("the first tree", CHANGE_TIMEOUT, |record| {
        record.tree().is_some()
    });
    let key = gate("changer");
    for round in 0..20 {
        let value = if round % 2 == 0 { "true" } else { "false" };
        let stamp = put(&*writer, &key, value);
        record.until_value(&key, Some(value), CHANGE_TIMEOUT);
        let tree = record.tree().expect("there is one");
        assert_eq!(tree.get(&key).map(|entry| entry.stamp), Some(stamp));
    }
    record.assert_never_backwards();
    watch.reread();
    drop(watch);
    let recorded = record.updates().len();
    put(&*writer, &key, "after the watch");
    assert_eq!(
        record.updates().len(),
        recorded,
        "a dropped watch is silent"
    );
}

fn delete(bench: &dyn Bench) {
    let (writer, reader) = (bench.open(), bench.open());
    let (record, _watch) = Record::watch(&*reader);
    let spec = ControlKey::spec("deleter").unwrap_or_else(|error| panic!("{error}"));
    let key = gate("deleter");
    for _ in 0..3 {
        put(&*writer, &key, "true");
        put(&*writer, &spec, "name: deleter");
        record.until_value(&spec, Some("name: deleter"), CHANGE_TIMEOUT);
        // The gate goes first, while the spec is still there, and the other way round.
        let stamp = delete_key(&*writer, &key);
        record.until_value(&key, None, CHANGE_TIMEOUT);
        assert_eq!(record.value(&spec).as_deref(), Some("name: deleter"));
        let tree = record.tree().expect("there is one");
        assert!(tree.revision >= stamp.revision, "a waiter sees the delete");
        put(&*writer, &key, "false");
        delete_key(&*writer, &spec);
        record.until_value(&spec, None, CHANGE_TIMEOUT);
        record.until_value(&key, Some("false"), CHANGE_TIMEOUT);
        delete_key(&*writer, &key);
        record.until_value(&key, None, CHANGE_TIMEOUT);
        assert!(read(&*reader).entries.is_empty());
    }
    // Deleting an absent key succeeds.
    delete_key(&*writer, &key);
    record.assert_never_backwards();
    // Only a re-read without a preceding event leaves the cause of a delete open.
    for update in record.updates() {
        if let StoreUpdate::Tree { changes, cause, .. } = update
            && let Some(gone) = changes.iter().find(|change| change.entry.is_none())
        {
            assert_eq!(cause, Cause::Event, "{} is deleted", gone.key);
        }
    }
}

fn burst(bench: &dyn Bench) {
    const KEYS: usize = 60;
    const ROUNDS: usize = 5;
    let (writer, reader) = (bench.open(), bench.open());
    let (record, _watch) = Record::watch(&*reader);
    let keys: Vec<ControlKey> = (0..KEYS).map(|at| gate(&format!("burst-{at}"))).collect();
    for round in 0..ROUNDS {
        for key in &keys {
            put(&*writer, key, &round.to_string());
        }
    }
    let last = (ROUNDS - 1).to_string();
    for key in &keys {
        record.until_value(key, Some(&last), CHANGE_TIMEOUT);
    }
    assert_eq!(record.tree().map(|tree| tree.entries.len()), Some(KEYS));
    assert_eq!(record.count(Cause::MissedUpdate), 0, "no event was lost");
    record.assert_never_backwards();
}

fn compare_and_set(bench: &dyn Bench) {
    let (one, two) = (bench.open(), bench.open());
    let key = gate("compared");
    let conflict = |result: Result<KeyVersion, StoreError>| {
        assert!(
            matches!(result, Err(StoreError::Conflict { .. })),
            "{result:?}"
        );
    };
    let value = |text: &'static str| Some(text.as_bytes());
    let nothing = KeyVersion {
        revision: 1,
        version: 1,
    };
    conflict(one.write(&key, value("true"), Expected::At(nothing)));
    let first = one
        .write(&key, value("true"), Expected::Absent)
        .unwrap_or_else(|error| panic!("{error}"));
    conflict(two.write(&key, value("false"), Expected::Absent));
    let second = two
        .write(&key, value("false"), Expected::At(first))
        .unwrap_or_else(|error| panic!("{error}"));
    conflict(one.write(&key, value("true"), Expected::At(first)));
    conflict(one.write(&key, None, Expected::At(first)));
    assert_eq!(
        read(&*one).get(&key).map(|entry| entry.stamp),
        Some(second),
        "a refused write changes nothing"
    );
    one.write(&key, None, Expected::At(second))
        .unwrap_or_else(|error| panic!("{error}"));
    conflict(two.write(&key, value("true"), Expected::At(second)));
    two.write(&key, value("true"), Expected::Absent)
        .unwrap_or_else(|error| panic!("{error}"));
    let long = vec![b'x'; MAX_VALUE + 1];
    let refused = one.write(&key, Some(&long), Expected::Any);
    assert!(
        matches!(refused, Err(StoreError::Refused { .. })),
        "a value that is too long: {refused:?}"
    );
}

fn reorder(bench: &dyn Bench) {
    const WRITES: usize = 60;
    let reader = bench.open();
    let (record, _watch) = Record::watch(&*reader);
    let keys = [gate("first"), gate("second")];
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (store, keys) = (bench.open(), &keys);
            scope.spawn(move || {
                for at in 0..WRITES {
                    let key = &keys[(at + writer) % 2];
                    match at % 7 {
                        6 => drop(delete_key(&*store, key)),
                        _ => drop(put(&*store, key, &format!("{writer}-{at}"))),
                    }
                }
            });
        }
    });
    let settled = read(&*bench.open());
    let same = |tree: &Tree| tree.entries == settled.entries;
    record.until("the content of the store", CHANGE_TIMEOUT, |record| {
        record.tree().is_some_and(|tree| same(&tree))
    });
    record.assert_never_backwards();
    assert_eq!(record.count(Cause::MissedUpdate), 0, "no event was lost");
}

/// The listed members, each with its applied revision.
fn listed(store: &dyn Store) -> Vec<(String, u64)> {
    let members = store.members().unwrap_or_else(|error| panic!("{error}"));
    let read = |(id, report): (String, Vec<u8>)| {
        let report = MemberReport::from_json(&report).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.id, id, "a report has the id of its key");
        (id, report.applied_revision)
    };
    members.into_iter().map(read).collect()
}

fn until_listed(store: &dyn Store, wanted: &[(&str, u64)]) {
    let fits = |seen: &Vec<(String, u64)>| {
        let pairs = seen.iter().map(|(id, applied)| (id.as_str(), *applied));
        pairs.eq(wanted.iter().copied())
    };
    let seen = |last: &Vec<(String, u64)>| format!("wanted {wanted:?}, saw {last:?}");
    wait_for(CHANGE_TIMEOUT, || listed(store), fits, seen);
}

fn reporting(id: &str, instance: &str, applied_revision: u64) -> MemberReport {
    MemberReport {
        id: id.to_owned(),
        instance: instance.to_owned(),
        applied_revision,
        ..MemberReport::default()
    }
}

fn join(store: &dyn Store, id: &str, instance: &str) -> Box<dyn Membership> {
    let joined = store.join(reporting(id, instance, 1));
    joined.unwrap_or_else(|error| panic!("{error}"))
}

fn members(bench: &dyn Bench) {
    let (one, two) = (bench.open(), bench.open());
    until_listed(&*two, &[]);
    let a = join(&*one, "host-1", "a");
    let b = join(&*two, "host-2", "b");
    until_listed(&*two, &[("host-1", 1), ("host-2", 1)]);
    a.report(reporting("host-1", "a", 7));
    until_listed(&*two, &[("host-1", 7), ("host-2", 1)]);
    drop(a);
    until_listed(&*two, &[("host-2", 1)]);
    assert!(
        read(&*one).entries.is_empty(),
        "member keys are not control keys"
    );
    drop(b);
    until_listed(&*two, &[]);
    assert!(one.join(reporting("a/b", "a", 1)).is_err());
}

fn one_id_twice(bench: &dyn Bench) {
    let (one, two) = (bench.open(), bench.open());
    let first = join(&*one, "host-1", "a");
    until_listed(&*two, &[("host-1", 1)]);
    let second = join(&*two, "host-1", "b");
    let has_moved = |status: &MembershipStatus| {
        if status.id != "host-1" {
            return true;
        }
        // It may already be listed under its next id.
        let listed = listed(&*two);
        let of_second = (listed.iter()).any(|(id, applied)| id == "host-1" && *applied > 1);
        assert!(
            !of_second,
            "the second member's report appears under the first id"
        );
        second.report(reporting("host-1", "b", 2));
        false
    };
    let read = || second.status();
    wait_for(OUTAGE_TIMEOUT, read, has_moved, |last| format!("{last:?}"));
    second.report(reporting("host-1", "b", 2));
    let status = second.status();
    assert!(status.id.starts_with("host-1-"), "{status:?}");
    assert!(status.clash.is_some(), "the clash is reported");
    assert_eq!(first.status().clash, None);
    until_listed(&*two, &[("host-1", 1), (&status.id, 2)]);
    // A leaving member removes only its own key.
    drop(second);
    until_listed(&*two, &[("host-1", 1)]);
    let third = join(&*two, "host-2", "c");
    until_listed(&*one, &[("host-1", 1), ("host-2", 1)]);
    drop(first);
    until_listed(&*one, &[("host-2", 1)]);
    drop(third);
    until_listed(&*two, &[]);
}

fn outage(bench: &dyn Bench) {
    let (writer, reader) = (bench.open(), bench.open());
    let key = gate("outage");
    put(&*writer, &key, "true");
    let (record, _watch) = Record::watch(&*reader);
    record.until_value(&key, Some("true"), CHANGE_TIMEOUT);
    bench.set_away(true);
    record.until_away(OUTAGE_TIMEOUT);
    let refused = writer.write(&key, Some(b"lost"), Expected::Any);
    assert!(
        matches!(&refused, Err(error) if error.is_retryable()),
        "{refused:?}"
    );
    assert!(reader.list().is_err());
    assert_eq!(
        record.value(&key).as_deref(),
        Some("true"),
        "the last tree stays"
    );
    bench.set_away(false);
    record.until(
        "the report that it is reachable",
        OUTAGE_TIMEOUT,
        |record| {
            let back = |update: &StoreUpdate| matches!(update, StoreUpdate::Reachable);
            record.updates().iter().any(back)
        },
    );
    let end = Instant::now() + OUTAGE_TIMEOUT;
    while let Err(error) = writer.write(&key, Some(b"false"), Expected::Any) {
        assert!(error.is_retryable() && Instant::now() < end, "{error}");
    }
    record.until_value(&key, Some("false"), CHANGE_TIMEOUT);
    record.assert_never_backwards();
}

fn restart(bench: &dyn Bench) {
    let (writer, reader) = (bench.open(), bench.open());
    let key = gate("restart");
    let (record, _watch) = Record::watch(&*reader);
    put(&*writer, &key, "true");
    record.until_value(&key, Some("true"), CHANGE_TIMEOUT);
    bench.restart();
    let end = Instant::now() + OUTAGE_TIMEOUT;
    while let Err(error) = writer.write(&key, Some(b"false"), Expected::Any) {
        assert!(error.is_retryable() && Instant::now() < end, "{error}");
    }
    record.until_value(&key, Some("false"), OUTAGE_TIMEOUT);
    put(&*writer, &key, "true");
    record.until_value(&key, Some("true"), CHANGE_TIMEOUT);
    record.assert_never_backwards();
}

#[cfg(test)]
mod tests {
    use sluicegate_store::{MemoryStore, MemoryStoreHandle};

    use super::*;

    struct Memory {
        store: MemoryStore,
        handle: MemoryStoreHandle,
    }

    impl Bench for Memory {
        fn open(&self) -> Arc<dyn Store> {
            Arc::new(self.store.clone())
        }

        fn set_away(&self, away: bool) {
            self.handle.set_away(away);
        }

        fn restart(&self) {
            self.handle.set_away(true);
            self.handle.set_away(false);
        }
    }

    #[test]
    fn the_memory_store_conforms() {
        let store = MemoryStore::new();
        let handle = store.handle();
        run_all(&Memory { store, handle });
    }
}
