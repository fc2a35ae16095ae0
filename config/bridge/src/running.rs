//! The handle of a running bridge.
//!
//! Its threads are the worker, the transfer threads of each batch, and the watches of the three stores. If a worker or
//! a watch ends unexpectedly, the bridge reports itself as failed: it would miss changes from then on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use sluicegate_config::control::{Pair, PathMap, Side};
use sluicegate_config::service::{BridgeConfig, EtcdSettings};
use sluicegate_store::{OpenStore, Store, StoreError, StoreUpdate, StoreWatch};

use super::report::{BridgeReport, HaltReport};
use super::worker::Worker;

/// The stores of a bridge.
#[derive(Clone)]
pub struct BridgeStores {
    /// The name of the pair, unique within one etcd: its sync state is stored below it.
    pub name: String,
    /// The two replicated stores.
    pub sides: Pair<Arc<dyn Store>>,
    /// The store of the sync state, at the same keys. Shared by every bridge of the pair.
    pub state: Arc<dyn Store>,
}

impl BridgeStores {
    /// Opens the stores of a config; nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError`] for TLS files that cannot be used.
    pub fn open(config: &BridgeConfig) -> Result<Self, StoreError> {
        let below = format!("{}/{}", config.state_prefix, config.name);
        let state = EtcdSettings {
            prefix: below.clone(),
            paths: PathMap::etcd(),
            ..config.etcd.clone()
        };
        Ok(Self {
            // The mark stores the name as one whitespace-free word.
            name: below.replace(char::is_whitespace, "_"),
            sides: Pair {
                etcd: config.etcd.open()?,
                zookeeper: config.zookeeper.open()?,
            },
            state: state.open()?,
        })
    }
}

/// Settings of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeSettings {
    /// Unique id of this run of the bridge; earlier runs had others.
    pub id: String,
    /// The side whose value wins a conflict.
    pub preferred_side: Side,
    /// Period of a full comparison of all keys, with ±20 % jitter.
    pub resync_interval: Duration,
    /// Copy deletes regardless of how many keys a listing finds missing.
    pub allow_mass_delete: bool,
    /// Sides that may be taken over if they are foreign at the start: values of the other side are written there.
    pub accept: Pair<bool>,
}

impl BridgeSettings {
    /// Runtime settings of a bridge with this config; each call generates a new bridge id.
    #[must_use]
    pub fn new(config: &BridgeConfig) -> Self {
        Self {
            id: format!("{}-{:08x}", std::process::id(), fastrand::u32(..)),
            preferred_side: config.preferred_side,
            resync_interval: config.resync_interval,
            allow_mass_delete: false,
            accept: Pair::default(),
        }
    }
}

/// A running bridge; dropping it finishes the transfers under way and stops.
pub struct Bridge {
    events: Mutex<Sender<Event>>,
    report: Arc<Mutex<BridgeReport>>,
    watches: Vec<Box<dyn StoreWatch>>,
    thread: Option<JoinHandle<()>>,
}

/// One of the three stores.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoreRole {
    Side(Side),
    State,
}

pub(super) enum Event {
    Update(StoreRole, StoreUpdate),
    /// The watch of this store has ended.
    WatchEnded(StoreRole),
    Stop,
}

/// Forwards the updates of a watch to the worker; its drop reports the end of the watch.
struct EventForwarder {
    events: Sender<Event>,
    which: StoreRole,
}

impl Drop for EventForwarder {
    fn drop(&mut self) {
        // The send fails only after the worker has stopped.
        let _ = self.events.send(Event::WatchEnded(self.which));
    }
}

impl Bridge {
    /// Starts a bridge. An unreachable store is waited for.
    ///
    /// # Errors
    /// [`StoreError`] when a watch or the thread cannot be started.
    pub fn start(stores: BridgeStores, settings: BridgeSettings) -> Result<Self, StoreError> {
        let (events, inbox) = channel();
        let watch = |store: &dyn Store, which: StoreRole| {
            let forwarder = EventForwarder {
                events: events.clone(),
                which,
            };
            store.watch(Box::new(move |update| {
                let forwarder = &forwarder;
                // The send fails only after the worker has stopped.
                let _ = forwarder
                    .events
                    .send(Event::Update(forwarder.which, update));
            }))
        };
        let watches = vec![
            watch(&*stores.state, StoreRole::State)?,
            watch(&*stores.sides.etcd, StoreRole::Side(Side::Etcd))?,
            watch(&*stores.sides.zookeeper, StoreRole::Side(Side::ZooKeeper))?,
        ];
        let worker = Worker::new(stores, settings, inbox);
        let report = Arc::clone(&worker.report);
        let shared_report = Arc::clone(&report);
        let thread = std::thread::Builder::new()
            .name("bridge".to_owned())
            .spawn(move || work(worker, &shared_report))
            .map_err(|error| StoreError::Unreachable {
                store: "the bridge".to_owned(),
                reason: format!("cannot start a thread: {error}"),
            })?;
        Ok(Self {
            events: Mutex::new(events),
            report,
            watches,
            thread: Some(thread),
        })
    }

    /// The current status.
    #[must_use]
    pub fn report(&self) -> BridgeReport {
        lock(&self.report).clone()
    }

    /// Why the bridge has stopped for good, if it has; it must be restarted.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let failed = lock(&self.report).failed.clone();
        failed.map(|failed| failed.reason)
    }

    /// A handle that returns [`Bridge::report`] independently of the bridge's lifetime.
    pub fn reporter(&self) -> impl Fn() -> BridgeReport + Clone + Send + Sync + 'static {
        let report = Arc::clone(&self.report);
        move || lock(&report).clone()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Stopped before the watches, whose end would count as a failure. The send fails only if the thread has ended.
        let _ = lock(&self.events).send(Event::Stop);
        self.watches.clear();
        if let Some(thread) = self.thread.take() {
            // `work` catches panics.
            let _ = thread.join();
        }
    }
}

/// Why the worker ended without a request to stop; only a restart helps.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    #[error("the watch of {0} has ended")]
    WatchEnded(String),
    #[error("the worker thread panicked")]
    Panicked,
}

/// Runs the worker to its end; any end other than a requested stop marks the bridge as failed.
fn work(worker: Worker, report: &Mutex<BridgeReport>) {
    // The worker's state is dropped with it; the shared report is only ever replaced field by field.
    let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        // The panic message is already in the log.
        Err(_) => WorkerError::Panicked,
    };
    let reason = format!(
        "the bridge has failed and stopped replicating: {why}; restart it, and report the log lines \
         before this one"
    );
    tracing::error!("{reason}");
    lock(report).failed = Some(HaltReport {
        reason,
        since: jiff::Timestamp::now().to_string(),
    });
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
