//! Bridges whose threads or watches end without being asked to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sluicegate_config::MemberReport;
use sluicegate_config::bridge::{Bridge, Side};
use sluicegate_config::store::{
    ControlKey, Expected, HistoryEntry, KeyVersion, Membership, MemoryStore, Store, StoreAddress,
    StoreError, StoreSink, StoreWatch, Tree,
};

use super::{Scene, gate};

/// A store whose calls panic and whose watches end, when they are told to.
#[derive(Clone)]
struct Broken {
    store: MemoryStore,
    panics: Arc<AtomicBool>,
    sinks: Arc<Mutex<Vec<Option<StoreSink>>>>,
}

impl Broken {
    fn over(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            panics: Arc::default(),
            sinks: Arc::default(),
        }
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
        self.store.locate(key)
    }

    fn list(&self) -> Result<Tree, StoreError> {
        self.store.list()
    }

    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError> {
        let mut sinks = self.sinks.lock().expect("nobody panics here");
        let index = sinks.len();
        sinks.push(Some(sink));
        drop(sinks);
        let sinks = Arc::clone(&self.sinks);
        let watch = self.store.watch(Box::new(move |update| {
            let mut sinks = sinks.lock().expect("nobody panics here");
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
        assert!(!self.panics.load(Ordering::SeqCst), "a fault is injected");
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
fn a_bridge_whose_thread_or_watch_has_ended_says_so() {
    for panics in [true, false] {
        let scene = Scene::new();
        let broken = Broken::over(&scene.sides.zookeeper);
        let mut stores = scene.stores();
        stores.sides.zookeeper = Arc::new(broken.clone());
        let settings = scene.settings("one", Side::Etcd);
        let bridge = Bridge::start(stores, settings).expect("threads can be started");
        scene.settle(&bridge);
        assert_eq!(bridge.report().problems(), Vec::<String>::new());
        assert_eq!(bridge.failure(), None);
        match panics {
            true => broken.panics.store(true, Ordering::SeqCst),
            false => broken.sinks.lock().expect("nobody panics here")[0] = None,
        }
        scene.put(Side::Etcd, &gate("a"), "true");
        scene.wait_until("it says so", |_| bridge.failure().is_some());
        let why = bridge.failure().expect("it has failed");
        let expected = match panics {
            true => "its thread has panicked",
            false => "the watch of memory has ended",
        };
        assert!(why.contains(expected), "{why}");
        assert!(why.contains("start it again"), "{why}");
        assert_eq!(bridge.report().problems(), [why]);
    }
}
