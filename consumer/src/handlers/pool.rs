//! A handler generation's share of a crew: what a plan hands to pumps as [`WorkerPool`].
//!
//! ```text
//!  pump ─► HandlerPool::submit ─► Crew: queue ─► worker thread: instance.handle ─► emits ─► home inbox
//!                                  │                    │ panicked: drop, rest, build again (`restart`)
//!                                  │                    │ hangs: given up, replaced (`overrun`)
//!                                  └─ full, resting or failed: refused, PoolFree later
//! ```
//!
//! One lock a crew, taken twice a batch; nothing is locked, counted or timed for a single record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sluicegate_runtime::{HostServices, LoadedPlugin};

use super::crew::Crew;
use super::restart::RestartPolicy;
use super::seats::Claim;
use super::stats::HandlerStats;
use crate::admin::view::now_ms;
use crate::dispatch::{Batch, Inbox, OwnedPartition, PoolState, WorkerPool};
use crate::emit::Emitter;

/// Everything that a worker needs to build and call instances of one handler generation.
pub struct HandlerSetup {
    /// The handler's name in its spec.
    pub name: Arc<str>,
    /// The name under which the plugin exports it.
    pub exported_as: String,
    /// The loaded code.
    pub plugin: Arc<dyn LoadedPlugin>,
    /// The config that its instances are to have.
    pub config: LiveConfig,
    /// `name@version`, when what it emits is to say where it comes from.
    pub provenance: Option<Arc<str>>,
    /// Longest time for one record, or for one call of a handler that takes batches.
    pub timeout: Duration,
    /// When dying instances trip it.
    pub restart: RestartPolicy,
    /// What the service does for it.
    pub services: Arc<dyn HostServices>,
    /// Where its emitted records go.
    pub emitter: Arc<dyn Emitter>,
    /// Where its calls are counted.
    pub stats: Arc<HandlerStats>,
}

/// A handler of a crew. The crew's lock guards its place there; what is here has locks of its own, taken last.
pub(super) struct Tenant {
    pub(super) id: u64,
    pub(super) setup: HandlerSetup,
    tripped: AtomicBool,
    why_tripped: Mutex<Option<Since>>,
    departure: Mutex<Departure>,
    left: Condvar,
    /// What each pump has said of its partitions.
    owned: Mutex<Vec<Owned>>,
    /// Who was refused since it is tripped.
    shut_out: Mutex<Vec<Weak<Inbox>>>,
    /// What instances say is wrong with them, by seat.
    ill: Mutex<BTreeMap<usize, Since>>,
}

/// Why something is so, and since when in milliseconds since the epoch.
struct Since {
    why: Arc<str>,
    since_ms: i64,
}

impl Since {
    fn now(why: &str) -> Self {
        Self {
            why: why.into(),
            since_ms: now_ms(),
        }
    }
}

/// The config of a handler, which [`HandlerPool::reconfigure`] exchanges.
pub struct LiveConfig(Mutex<Config>);

/// A config that instances are to have.
#[derive(Clone)]
pub(super) struct Config {
    /// Grows with each config that was taken.
    pub(super) serial: u64,
    /// JSON text.
    pub(super) json: Arc<str>,
}

impl LiveConfig {
    /// The config to begin with, as JSON text.
    pub fn new(json: impl Into<Arc<str>>) -> Self {
        Self(Mutex::new(Config {
            serial: 1,
            json: json.into(),
        }))
    }
}

struct Owned {
    home: Weak<Inbox>,
    partitions: Vec<OwnedPartition>,
}

/// How far a handler has left its crew.
#[derive(Clone, Copy, Debug, Default)]
struct Departure {
    asked: bool,
    workers_left: u32,
    given_up: bool,
}

impl Tenant {
    pub(super) fn new(id: u64, setup: HandlerSetup) -> Self {
        Self {
            id,
            setup,
            tripped: AtomicBool::new(false),
            why_tripped: Mutex::new(None),
            departure: Mutex::new(Departure::default()),
            left: Condvar::new(),
            owned: Mutex::default(),
            shut_out: Mutex::default(),
            ill: Mutex::default(),
        }
    }

    /// `home` was refused because the handler is tripped, and is to be told when it takes batches again.
    pub(super) fn shut_out(&self, home: &Arc<Inbox>) {
        let mut shut_out = relock(&self.shut_out);
        shut_out.retain(|known| known.strong_count() > 0);
        let home = Arc::downgrade(home);
        if !shut_out.iter().any(|known| known.ptr_eq(&home)) {
            shut_out.push(home);
        }
    }

    /// Everybody who was refused since it is tripped.
    pub(super) fn let_in(&self) -> Vec<Arc<Inbox>> {
        let shut_out = std::mem::take(&mut *relock(&self.shut_out));
        shut_out.iter().filter_map(Weak::upgrade).collect()
    }

    /// The config that instances are to have.
    pub(super) fn config(&self) -> Config {
        relock(&self.setup.config.0).clone()
    }

    /// Instances are to have this config from now on.
    pub(super) fn set_config(&self, json: Arc<str>) {
        let mut config = relock(&self.setup.config.0);
        config.serial += 1;
        config.json = json;
    }

    /// Takes note of what the instance at a seat says of itself; `None` is well, or gone.
    pub(super) fn set_ill(&self, seat: usize, why: Option<String>) {
        let mut ill = relock(&self.ill);
        match why {
            Some(why) => {
                self.setup.stats.failed(&format!("not well: {why}"));
                let since = ill.entry(seat).or_insert_with(|| Since::now(&why));
                since.why = why.into();
            }
            None => {
                ill.remove(&seat);
            }
        }
    }

    /// Takes note of a pump's partitions; `false` when they are the same as before.
    fn set_owned(&self, home: &Arc<Inbox>, partitions: &[OwnedPartition]) -> bool {
        let mut owned = relock(&self.owned);
        owned.retain(|pump| pump.home.strong_count() > 0);
        let home = Arc::downgrade(home);
        let at = owned.iter().position(|pump| pump.home.ptr_eq(&home));
        match at.map(|at| &mut owned[at]) {
            Some(pump) if pump.partitions == partitions => return false,
            Some(pump) => pump.partitions = partitions.to_vec(),
            None => owned.push(Owned {
                home,
                partitions: partitions.to_vec(),
            }),
        }
        true
    }

    /// The partitions of all pumps.
    pub(super) fn owned(&self) -> BTreeSet<OwnedPartition> {
        let owned = relock(&self.owned);
        owned
            .iter()
            .flat_map(|pump| &pump.partitions)
            .cloned()
            .collect()
    }

    pub(super) fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::Acquire)
    }

    pub(super) fn set_tripped(&self, why: Option<&str>) {
        *relock(&self.why_tripped) = why.map(Since::now);
        self.tripped.store(why.is_some(), Ordering::Release);
    }

    /// Starts the departure: `workers` threads are to drop their instances, `given_up` if one of them never will.
    pub(super) fn departs(&self, workers: u32, given_up: bool) {
        let mut departure = relock(&self.departure);
        departure.asked = true;
        departure.workers_left += workers;
        departure.given_up |= given_up;
        self.left.notify_all();
    }

    /// One worker has let go, or is given up.
    pub(super) fn let_go(&self, given_up: bool) {
        let mut departure = relock(&self.departure);
        departure.workers_left = departure.workers_left.saturating_sub(1);
        departure.given_up |= given_up;
        self.left.notify_all();
    }

    fn wait_left(&self, deadline: Instant) -> Release {
        let mut departure = relock(&self.departure);
        loop {
            if departure.asked && departure.workers_left == 0 {
                return match departure.given_up {
                    true => Release::Quarantined,
                    false => Release::Clean,
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Release::Unfinished;
            }
            departure = self
                .left
                .wait_timeout(departure, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// What became of a handler's instances after its pool was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// All are dropped, each on its own thread.
    Clean,
    /// Some sit on a thread that hangs; their memory stays.
    Quarantined,
    /// Some worker has not come to it yet.
    Unfinished,
}

/// Follows a handler's way out of its crew without keeping its pool alive.
pub struct ReleaseWatch {
    tenant: Arc<Tenant>,
    crew: Arc<Crew>,
}

impl ReleaseWatch {
    /// Blocks until all instances are gone (and the crew's threads with them, if it was the last handler) or the
    /// deadline has passed. Before the last `Arc` of the pool is dropped nothing leaves.
    pub fn wait(&self, deadline: Instant) -> Release {
        let release = self.tenant.wait_left(deadline);
        if release == Release::Clean && !self.crew.wait_ended(deadline) {
            return Release::Unfinished;
        }
        release
    }
}

/// Why a pool's instances have not taken a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigNotTaken {
    /// No worker came to it in time: all are in long calls.
    Busy,
    /// The instance that was asked refused it, or is not well with it; a sentence.
    Refused(String),
}

/// The pool of one handler generation. Dropping the last `Arc` drains its instances and drops them on their threads.
pub struct HandlerPool {
    crew: Arc<Crew>,
    tenant: Arc<Tenant>,
}

impl HandlerPool {
    pub(super) fn new(crew: Arc<Crew>, tenant: Arc<Tenant>) -> Self {
        Self { crew, tenant }
    }

    /// Builds an instance on a worker and asks it whether it is well; blocks until then. With `keep` the worker goes
    /// on with that instance, otherwise it is dropped again.
    ///
    /// # Errors
    /// The reason in a sentence; a creation that hangs is given up after `timeout`.
    pub fn probe(&self, keep: bool, timeout: Duration) -> Result<(), String> {
        self.try_out(keep, None, timeout)
            .map_err(|failed| match failed {
                ConfigNotTaken::Refused(reason) => reason,
                ConfigNotTaken::Busy => late(timeout),
            })
    }

    /// Puts a config in the place of the one that instances have, without building them anew: first one instance takes it
    /// and is asked whether it is well, and then all the others, each between two batches. Blocks until the first has
    /// answered.
    ///
    /// # Errors
    /// [`ConfigNotTaken`]; every instance then has the config of before.
    pub fn reconfigure(&self, config_json: &str, timeout: Duration) -> Result<(), ConfigNotTaken> {
        self.try_out(true, Some(config_json.into()), timeout)?;
        self.crew.tell_news(&self.tenant);
        Ok(())
    }

    fn try_out(
        &self,
        keep: bool,
        config: Option<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfigNotTaken> {
        let (reply, answer) = sync_channel(1);
        let claim = Arc::new(Claim::default());
        self.crew
            .probe(&self.tenant, keep, config, Arc::clone(&claim), reply);
        let mut answered = answer.recv_timeout(timeout);
        if answered == Err(RecvTimeoutError::Timeout) {
            if claim.take() {
                return Err(ConfigNotTaken::Busy);
            }
            // It is at it: the watch over hanging calls bounds that.
            answered = answer.recv_timeout(timeout);
        }
        match answered {
            Ok(result) => result.map_err(ConfigNotTaken::Refused),
            Err(RecvTimeoutError::Timeout) => Err(ConfigNotTaken::Refused(late(timeout))),
            Err(RecvTimeoutError::Disconnected) => Err(ConfigNotTaken::Refused(
                "its worker ended during the health check".to_owned(),
            )),
        }
    }

    /// Lets a tripped handler run again.
    pub fn reset(&self) {
        self.crew.reset(&self.tenant);
    }

    /// Why it was tripped, if it was.
    pub fn failure(&self) -> Option<Arc<str>> {
        let why = relock(&self.tenant.why_tripped);
        why.as_ref().map(|since| since.why.clone())
    }

    /// What one of its instances says is wrong with it, if so.
    pub fn illness(&self) -> Option<Arc<str>> {
        let ill = relock(&self.tenant.ill);
        ill.values().next().map(|since| since.why.clone())
    }

    /// Since when it is tripped, or else some instance says that it is not healthy; in milliseconds since the epoch.
    pub fn failing_since_ms(&self) -> Option<i64> {
        let tripped = relock(&self.tenant.why_tripped);
        if let Some(since) = &*tripped {
            return Some(since.since_ms);
        }
        let ill = relock(&self.tenant.ill);
        ill.values().map(|since| since.since_ms).min()
    }

    /// Number of threads in a call of it just now.
    pub fn busy(&self) -> u32 {
        self.crew.busy(&self.tenant)
    }

    /// Follows its way out.
    pub fn release_watch(&self) -> ReleaseWatch {
        ReleaseWatch {
            tenant: Arc::clone(&self.tenant),
            crew: Arc::clone(&self.crew),
        }
    }
}

fn late(timeout: Duration) -> String {
    format!("its creation and health check did not end within {timeout:?}")
}

impl WorkerPool for HandlerPool {
    fn submit(&self, batch: Box<Batch>, home: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        self.crew.submit(&self.tenant, batch, home)
    }

    fn recall(&self) {
        self.crew.recall();
    }

    fn own(&self, home: &Arc<Inbox>, partitions: &[OwnedPartition]) {
        if self.tenant.set_owned(home, partitions) {
            self.crew.tell_news(&self.tenant);
        }
    }

    fn workers(&self) -> u32 {
        self.crew.workers()
    }

    fn state(&self) -> PoolState {
        match self.tenant.is_tripped() {
            true => PoolState::Failed,
            false => PoolState::Active,
        }
    }
}

impl Drop for HandlerPool {
    fn drop(&mut self) {
        self.crew.leave(&self.tenant);
    }
}

/// Locks what no panic can leave half-changed.
pub(super) fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
