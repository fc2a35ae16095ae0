//! A running bridge, as its owner holds it.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::report::BridgeReport;
use super::worker::Worker;
use super::{Pair, Side};
use crate::store::{Store, StoreError, StoreUpdate, StoreWatch};

/// The stores of a bridge.
#[derive(Clone)]
pub struct BridgeStores {
    /// The two that are kept equal.
    pub sides: Pair<Arc<dyn Store>>,
    /// Where the notes stand, at the keys that they are about. Every bridge of the pair has the same.
    pub notes: Arc<dyn Store>,
}

/// How a bridge works.
#[derive(Clone, Debug)]
pub struct BridgeSettings {
    /// Tells it from every other bridge, also from those before it.
    pub id: String,
    /// Whose value wins a conflict.
    pub authority: Side,
    /// Every key is looked at again this often, give or take a fifth.
    pub look_again: Duration,
    /// Carry deletes across however many keys a listing finds missing.
    pub allow_mass_delete: bool,
}

/// A running bridge; dropping it finishes what is on its way and stops.
pub struct Bridge {
    news: Mutex<Sender<News>>,
    report: Arc<Mutex<BridgeReport>>,
    watches: Vec<Box<dyn StoreWatch>>,
    thread: Option<JoinHandle<()>>,
}

/// Which of the three stores.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    Side(Side),
    Notes,
}

pub(super) enum News {
    Of(Which, StoreUpdate),
    Stop,
}

impl Bridge {
    /// Starts a bridge. Stores that are away are waited for.
    ///
    /// # Errors
    /// [`StoreError`] when a watch or the thread cannot be started.
    pub fn start(stores: BridgeStores, settings: BridgeSettings) -> Result<Self, StoreError> {
        let (news, inbox) = channel();
        let watch = |store: &dyn Store, which: Which| {
            let news = news.clone();
            store.watch(Box::new(move |update| {
                // A bridge that has stopped needs no news.
                let _ = news.send(News::Of(which, update));
            }))
        };
        let watches = vec![
            watch(&*stores.notes, Which::Notes)?,
            watch(&*stores.sides.etcd, Which::Side(Side::Etcd))?,
            watch(&*stores.sides.zookeeper, Which::Side(Side::ZooKeeper))?,
        ];
        let worker = Worker::new(stores, settings, inbox);
        let report = Arc::clone(&worker.report);
        let thread = std::thread::Builder::new()
            .name("bridge".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| StoreError::Unreachable {
                store: "the bridge".to_owned(),
                reason: format!("no thread can be started: {error}"),
            })?;
        Ok(Self {
            news: Mutex::new(news),
            report,
            watches,
            thread: Some(thread),
        })
    }

    /// What it says of itself.
    #[must_use]
    pub fn report(&self) -> BridgeReport {
        lock(&self.report).clone()
    }

    /// A way to ask for [`Bridge::report`] from elsewhere.
    pub fn reporter(&self) -> impl Fn() -> BridgeReport + Clone + Send + Sync + 'static {
        let report = Arc::clone(&self.report);
        move || lock(&report).clone()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.watches.clear();
        // A thread that is gone needs no command.
        let _ = lock(&self.news).send(News::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic has said what it was.
            let _ = thread.join();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
