//! The handle of a running bridge.
//!
//! Its threads are the worker, the transfer threads of each batch, and the watches of the three stores. If a worker or
//! a watch ends unexpectedly, the bridge reports itself as failed: it would miss changes from then on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sluicegate_config::control::Side;
use sluicegate_store::{Store, StoreError, StoreWatch};

use super::events::{Event, StoreRole, WorkerError, lock};
use super::report::{BridgeReport, HaltReport};
use super::settings::{BridgeSettings, BridgeStores};
use super::worker::Worker;

/// A running bridge; dropping it finishes the transfers under way and stops.
pub struct Bridge {
    events: Mutex<Sender<Event>>,
    report: Arc<Mutex<BridgeReport>>,
    watches: Vec<Box<dyn StoreWatch>>,
    thread: Option<JoinHandle<()>>,
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
