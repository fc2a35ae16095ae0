//! Bridges whose thread or watch ends unexpectedly.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sluicegate_bridge::{Bridge, BridgeStores};
use sluicegate_config::control::MemberReport;
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{
    Expected, HistoryEntry, KeyVersion, Membership, MemoryStore, Store, StoreAddress, StoreError,
    StoreSink, StoreWatch, Tree,
};

use super::{Harness, gate};

/// A store whose writes panic or are refused, or whose watches end, on demand.
#[derive(Clone)]
struct Broken {
    store: MemoryStore,
    panics: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
    sinks: Arc<Mutex<Vec<Option<StoreSink>>>>,
}

impl Broken {
    fn over(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            panics: Arc::default(),
            refuses: Arc::default(),
            sinks: Arc::default(),
        }
    }

    fn shared(&self) -> Arc<dyn Store> {
        Arc::new(self.clone())
    }
}

impl Harness {
    /// A settled bridge over the stores that `replace` has changed.
    fn settled_with(&self, replace: impl FnOnce(&mut BridgeStores)) -> Bridge {
        let mut stores = self.stores();
        replace(&mut stores);
        let settings = self.settings("one", Side::Etcd);
        let bridge = Bridge::start(stores, settings).expect("threads start");
        self.settle(&bridge);
        bridge
    }
}

struct NoWatch {
    _watch: Box<dyn StoreWatch>,
}

impl StoreWatch for NoWatch {
    fn reread(&self) {}
}

impl Store for Broken {
    fn address(&self) -> StoreAddress {
        self.store.address()
    }

    fn locate(&self, key: &ControlKey) -> String {
        format!("broken {}", self.store.locate(key))
    }

    fn list(&self) -> Result<Tree, StoreError> {
        self.store.list()
    }

    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError> {
        let mut sinks = self.sinks.lock().expect("not poisoned");
        let index = sinks.len();
        sinks.push(Some(sink));
        drop(sinks);
        let sinks = Arc::clone(&self.sinks);
        let watch = self.store.watch(Box::new(move |update| {
            let mut sinks = sinks.lock().expect("not poisoned");
            if let Some(sink) = &mut sinks[index] {
                sink(update);
            }
        }))?;
        Ok(Box::new(NoWatch { _watch: watch }))
    }

    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "injected fault");
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::Refused {
                store: self.describe(),
                what: format!("the write of {}", self.locate(key)),
                reason: "injected refusal".to_owned(),
            });
        }
        self.store.write(key, value, expected)
    }

    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError> {
        self.store.join(report)
    }

    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.store.members()
    }

    fn history(&self, key: &ControlKey, limit: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        self.store.history(key, limit)
    }
}

#[test]
fn a_bridge_whose_thread_or_watch_has_ended_reports_failure() {
    for panics in [true, false] {
        let harness = Harness::new();
        let broken = Broken::over(&harness.sides.zookeeper);
        let bridge = harness.settled_with(|stores| stores.sides.zookeeper = broken.shared());
        assert_eq!(bridge.report().problems(), Vec::<String>::new());
        assert_eq!(bridge.failure(), None);
        match panics {
            true => broken.panics.store(true, Ordering::SeqCst),
            false => broken.sinks.lock().expect("not poisoned")[0] = None,
        }
        harness.put(Side::Etcd, &gate("a"), "true");
        harness.wait_until("the failure is reported", |_| bridge.failure().is_some());
        let why = bridge.failure().expect("a failure");
        let expected = match panics {
            true => "the worker thread panicked",
            false => "the watch of memory has ended",
        };
        assert!(why.contains(expected), "{why}");
        assert!(why.contains("restart it"), "{why}");
        assert_eq!(bridge.report().problems(), [why]);
    }
}

/// A value written to the refusing side is overruled like any other, and counted at once.
#[test]
fn a_conflict_behind_a_refused_write_is_counted_once() {
    let harness = Harness::new();
    let broken = Broken::over(&harness.sides.zookeeper);
    let bridge = harness.settled_with(|stores| stores.sides.zookeeper = broken.shared());
    broken.refuses.store(true, Ordering::SeqCst);
    harness.put(Side::Etcd, &gate("a"), "true");
    harness.wait_until("the refusal is reported", |_| {
        bridge.report().counts.refusals.zookeeper == 1
    });
    let refused = bridge.report().refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (refused[0].side, refused[0].place.as_str()),
        (Side::ZooKeeper, "broken a/enabled")
    );
    assert_eq!(bridge.report().counts.conflicts, Pair::default());
    harness.put(Side::ZooKeeper, &gate("a"), "false");
    harness.wait_until("the conflict is reported", |_| {
        bridge.report().conflicts.len() == 1
    });
    broken.refuses.store(false, Ordering::SeqCst);
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
    harness.settle(&bridge);
    let report = bridge.report();
    assert_eq!(report.counts.conflicts.zookeeper, 1);
    assert_eq!(report.counts.refusals.zookeeper, 2);
    assert!(report.refused.is_empty());
}

#[test]
fn a_refusal_by_the_state_store_is_not_attributed_to_the_written_side() {
    let harness = Harness::new();
    let broken = Broken::over(&harness.sync_state);
    let bridge = harness.settled_with(|stores| stores.state = broken.shared());
    broken.refuses.store(true, Ordering::SeqCst);
    harness.put(Side::Etcd, &gate("a"), "true");
    harness.wait_until("the refusal is reported", |_| {
        !bridge.report().refused.is_empty()
    });
    let report = bridge.report();
    assert_eq!(
        (report.refused[0].side, report.refused[0].place.as_str()),
        (Side::Etcd, "broken a/enabled")
    );
    assert_eq!(report.counts.refusals.zookeeper, 0);
    assert!(!harness.values(Side::ZooKeeper).contains_key("a/enabled"));
    broken.refuses.store(false, Ordering::SeqCst);
    harness.wait_for(Side::ZooKeeper, &gate("a"), Some("true"));
}
