//! A running bridge, as its owner holds it.
//!
//! Its threads are the worker, what the worker begins and ends with each pass, and the watches of the three stores. Where one
//! of them ends without being asked to, the bridge has failed and says so: it would hear of nothing any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::report::{BridgeReport, HaltReport};
use super::worker::Worker;
use super::{Pair, Side};
use crate::store::{Store, StoreError, StoreUpdate, StoreWatch};

/// The stores of a bridge.
#[derive(Clone)]
pub struct BridgeStores {
    /// What the pair is known by among those of one etcd: what its notes stand below.
    pub name: String,
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
    pub preferred_side: Side,
    /// Every key is looked at again this often, give or take a fifth.
    pub resync_interval: Duration,
    /// Carry deletes across however many keys a listing finds missing.
    pub allow_mass_delete: bool,
    /// Sides that may be taken over as they are, if they are found to be foreign at the start: what the other side holds
    /// travels there.
    pub accept: Pair<bool>,
}

/// A running bridge; dropping it finishes what is on its way and stops.
pub struct Bridge {
    news: Mutex<Sender<Event>>,
    report: Arc<Mutex<BridgeReport>>,
    watches: Vec<Box<dyn StoreWatch>>,
    thread: Option<JoinHandle<()>>,
}

/// Which of the three stores.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoreRole {
    Side(Side),
    Notes,
}

pub(super) enum Event {
    Of(StoreRole, StoreUpdate),
    /// The watch of this store tells nothing any more.
    Deaf(StoreRole),
    Stop,
}

/// What a watch tells its bridge by; going away tells that the watch is over.
struct EventForwarder {
    news: Sender<Event>,
    which: StoreRole,
}

impl Drop for EventForwarder {
    fn drop(&mut self) {
        // A bridge that has stopped needs no news.
        let _ = self.news.send(Event::Deaf(self.which));
    }
}

impl Bridge {
    /// Starts a bridge. Stores that are away are waited for.
    ///
    /// # Errors
    /// [`StoreError`] when a watch or the thread cannot be started.
    pub fn start(stores: BridgeStores, settings: BridgeSettings) -> Result<Self, StoreError> {
        let (news, inbox) = channel();
        let watch = |store: &dyn Store, which: StoreRole| {
            let ear = EventForwarder {
                news: news.clone(),
                which,
            };
            store.watch(Box::new(move |update| {
                let ear = &ear;
                // A bridge that has stopped needs no news.
                let _ = ear.news.send(Event::Of(ear.which, update));
            }))
        };
        let watches = vec![
            watch(&*stores.notes, StoreRole::Notes)?,
            watch(&*stores.sides.etcd, StoreRole::Side(Side::Etcd))?,
            watch(&*stores.sides.zookeeper, StoreRole::Side(Side::ZooKeeper))?,
        ];
        let worker = Worker::new(stores, settings, inbox);
        let report = Arc::clone(&worker.report);
        let told = Arc::clone(&report);
        let thread = std::thread::Builder::new()
            .name("bridge".to_owned())
            .spawn(move || work(worker, &told))
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

    /// Why it will never carry anything across again, if that is so; it has to be started anew.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let failed = lock(&self.report).failed.clone();
        failed.map(|failed| failed.reason)
    }

    /// A way to ask for [`Bridge::report`] from elsewhere.
    pub fn reporter(&self) -> impl Fn() -> BridgeReport + Clone + Send + Sync + 'static {
        let report = Arc::clone(&self.report);
        move || lock(&report).clone()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Before the watches, whose end it would take for a fault. A thread that is gone needs no command.
        let _ = lock(&self.news).send(Event::Stop);
        self.watches.clear();
        if let Some(thread) = self.thread.take() {
            // A panic does not come this far.
            let _ = thread.join();
        }
    }
}

/// Runs the worker to its end; one that is not what it was told is a failure of the bridge.
fn work(worker: Worker, report: &Mutex<BridgeReport>) {
    // Whatever the worker was about is dropped with it; its report is only ever replaced field by field.
    let why = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        // The panic's own words are in the log already.
        Err(_) => "its thread has panicked".to_owned(),
    };
    let reason = format!(
        "the bridge has failed and carries nothing across any more: {why}; start it again, and report the lines of its log that \
         stand before this"
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
