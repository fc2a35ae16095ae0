//! A handler generation's share of a thread pool ([`Crew`]), which pumps use as their [`WorkerPool`].
//!
//! ```text
//!  pump ─► HandlerPool::submit ─► Crew: queue ─► worker thread: instance.handle ─► emits ─► the pump's inbox
//!                                  │                    │ panicked: drop, back off, rebuild (`restart`)
//!                                  │                    │ timed out: abandoned, replaced (`watchdog`)
//!                                  └─ full, backing off or failed: refused, PoolFree later
//! ```
//!
//! One lock per thread pool, taken twice per batch; nothing is locked, counted or timed per record (ADR 0010). A
//! refusal registers the pump's inbox, and whatever makes room notifies it: without that notice the pump keeps its
//! batches, since it does not poll. The watchdog's check notifies again, so that a notice that was not used cannot stop
//! a handler.
//!
//! A health check or a new config runs on a worker, and its caller waits with a timeout. `ProbeToken` decides between
//! the two: either the worker starts it or the caller times out, never both, so a config is not applied after its caller
//! was told that it is not. Dropping the last `Arc` of a pool releases it: queued batches return, and each worker
//! drains and drops its instance between two tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, Inbox, OwnedPartition, PoolState, WorkerPool};
use sluicegate_engine::emit::Emitter;
use sluicegate_runtime::{HostServices, LoadedPlugin};

use crate::clock::now_ms;
use crate::crew::Crew;
use crate::error::{ConfigNotTaken, ProbeError};
use crate::restart::RestartPolicy;
use crate::seats::ProbeToken;
use crate::stats::HandlerStats;

/// Maximum number of doublings of the delay between two instances that health checks build in place of an unhealthy one.
const MAX_REBUILD_DOUBLINGS: u32 = 6;

/// What a worker needs to build and call instances of one handler generation.
pub struct HandlerSetup {
    /// The handler's name in its spec.
    pub name: Arc<str>,
    /// The name under which the plugin exports it.
    pub exported_as: String,
    /// The loaded code.
    pub plugin: Arc<dyn LoadedPlugin>,
    /// The current config of its instances.
    pub config: LiveConfig,
    /// `name@version` for the provenance headers of emitted records; `None` if they are disabled.
    pub provenance: Option<Arc<str>>,
    /// Timeout per record, or per call of a handler that takes batches.
    pub timeout: Duration,
    /// When failing instances trip the handler.
    pub restart: RestartPolicy,
    /// Host services for its instances.
    pub services: Arc<dyn HostServices>,
    /// Where its emitted records go.
    pub emitter: Arc<dyn Emitter>,
    /// Where its calls are counted.
    pub stats: Arc<HandlerStats>,
}

/// A handler registered with a crew. The crew's lock guards its scheduling state; the locks in here are taken after it.
pub(super) struct Tenant {
    pub(super) id: u64,
    pub(super) setup: HandlerSetup,
    tripped: AtomicBool,
    why_tripped: Mutex<Option<Since>>,
    departure: Mutex<Departure>,
    released: Condvar,
    /// The partitions that each pump owns.
    owned: Mutex<Vec<Owned>>,
    /// Inboxes refused since the handler was tripped.
    waiting_for_reset: Mutex<Vec<Weak<Inbox>>>,
    /// Unhealthy instances, by seat.
    unhealthy: Mutex<BTreeMap<usize, Unhealthy>>,
}

/// An unhealthy instance, or the lack of one in its place: only a passed health check ends this state, since a gate that is
/// held for it opens then.
struct Unhealthy {
    since: Since,
    /// Instances that health checks have built in its place; none of them has passed.
    rebuilds: u32,
    last_rebuild: Instant,
}

/// The reason of a state, and its start in milliseconds since the Unix epoch.
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

/// The config of a handler, replaced by [`HandlerPool::reconfigure`].
pub struct LiveConfig(Mutex<Config>);

/// A config for instances.
#[derive(Clone)]
pub(super) struct Config {
    /// Incremented with each accepted config.
    pub(super) serial: u64,
    /// JSON text.
    pub(super) json: Arc<str>,
}

impl LiveConfig {
    /// The initial config, as JSON text.
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

/// Progress of a handler's release from its crew.
#[derive(Clone, Copy, Debug, Default)]
struct Departure {
    asked: bool,
    workers_left: u32,
    /// An instance is on an abandoned thread and is never dropped.
    abandoned: bool,
}

impl Tenant {
    pub(super) fn new(id: u64, setup: HandlerSetup) -> Self {
        Self {
            id,
            setup,
            tripped: AtomicBool::new(false),
            why_tripped: Mutex::new(None),
            departure: Mutex::new(Departure::default()),
            released: Condvar::new(),
            owned: Mutex::default(),
            waiting_for_reset: Mutex::default(),
            unhealthy: Mutex::default(),
        }
    }

    /// Registers an inbox that was refused because the handler is tripped; it is notified after a reset.
    pub(super) fn wait_for_reset(&self, home: &Arc<Inbox>) {
        let mut waiting = relock(&self.waiting_for_reset);
        waiting.retain(|known| known.strong_count() > 0);
        let home = Arc::downgrade(home);
        if !waiting.iter().any(|known| known.ptr_eq(&home)) {
            waiting.push(home);
        }
    }

    /// Takes the inboxes that were refused since the handler was tripped.
    pub(super) fn take_waiting_for_reset(&self) -> Vec<Arc<Inbox>> {
        let waiting = std::mem::take(&mut *relock(&self.waiting_for_reset));
        waiting.iter().filter_map(Weak::upgrade).collect()
    }

    /// The current config.
    pub(super) fn config(&self) -> Config {
        relock(&self.setup.config.0).clone()
    }

    /// Replaces the current config.
    pub(super) fn set_config(&self, json: Arc<str>) {
        let mut config = relock(&self.setup.config.0);
        config.serial += 1;
        config.json = json;
    }

    /// Records the result of a health check at a seat; `None`: the instance is healthy.
    pub(super) fn set_unhealthy(&self, seat: usize, why: Option<String>) {
        let mut unhealthy = relock(&self.unhealthy);
        match why {
            Some(why) => {
                self.setup.stats.failed(&format!("unhealthy: {why}"));
                let known = unhealthy.entry(seat).or_insert_with(|| Unhealthy {
                    since: Since::now(&why),
                    rebuilds: 0,
                    last_rebuild: Instant::now(),
                });
                known.since.why = why.into();
            }
            None => {
                unhealthy.remove(&seat);
            }
        }
    }

    pub(super) fn is_unhealthy_at(&self, seat: usize) -> bool {
        relock(&self.unhealthy).contains_key(&seat)
    }

    /// Whether a health check is to build an instance in place of the unhealthy one of a seat now. The first one is built
    /// at the next check, `interval` later; then the delay doubles, because a creation that hangs costs a thread.
    pub(super) fn begin_rebuild(&self, seat: usize, interval: Duration) -> bool {
        let mut unhealthy = relock(&self.unhealthy);
        let Some(known) = unhealthy.get_mut(&seat) else {
            return false;
        };
        let delay = match known.rebuilds {
            0 => Duration::ZERO,
            rebuilds => interval * (1 << rebuilds.min(MAX_REBUILD_DOUBLINGS)),
        };
        if known.last_rebuild.elapsed() < delay {
            return false;
        }
        known.rebuilds = known.rebuilds.saturating_add(1);
        known.last_rebuild = Instant::now();
        true
    }

    /// Records a pump's partitions; returns whether they changed.
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

    /// Starts the release: `workers` threads drop their instances. `abandoned`: one instance is on an abandoned thread and is
    /// never dropped.
    pub(super) fn begin_release(&self, workers: u32, abandoned: bool) {
        let mut departure = relock(&self.departure);
        departure.asked = true;
        departure.workers_left += workers;
        departure.abandoned |= abandoned;
        self.released.notify_all();
    }

    /// One worker has dropped its instance, or was abandoned.
    pub(super) fn worker_released(&self, abandoned: bool) {
        let mut departure = relock(&self.departure);
        departure.workers_left = departure.workers_left.saturating_sub(1);
        departure.abandoned |= abandoned;
        self.released.notify_all();
    }

    fn wait_released(&self, deadline: Instant) -> Release {
        let mut departure = relock(&self.departure);
        loop {
            if departure.asked && departure.workers_left == 0 {
                return match departure.abandoned {
                    true => Release::Quarantined,
                    false => Release::Clean,
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Release::Unfinished;
            }
            departure = self
                .released
                .wait_timeout(departure, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// State of a handler's instances after its pool was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// All were dropped, each on its own thread.
    Clean,
    /// Some are on abandoned threads; their memory is never freed.
    Quarantined,
    /// Some worker has not dropped its instance yet.
    Unfinished,
}

/// Waits for a handler's release without keeping its pool alive.
pub struct ReleaseWatch {
    tenant: Arc<Tenant>,
    crew: Arc<Crew>,
}

impl ReleaseWatch {
    /// Blocks until all instances are dropped (and the crew's threads have exited, if it was the last handler) or the deadline
    /// has passed. The release starts when the last `Arc` of the pool is dropped.
    pub fn wait(&self, deadline: Instant) -> Release {
        let release = self.tenant.wait_released(deadline);
        if release == Release::Clean && !self.crew.wait_ended(deadline) {
            return Release::Unfinished;
        }
        release
    }
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

    /// Builds an instance on a worker and health-checks it; blocks until the check is done. With `keep` the worker keeps the
    /// instance, otherwise it is dropped.
    ///
    /// # Errors
    /// [`ProbeError`]; a creation that hangs is abandoned after `timeout`.
    pub fn probe(&self, keep: bool, timeout: Duration) -> Result<(), ProbeError> {
        self.try_out(keep, None, timeout)
            .map_err(|failed| match failed {
                ConfigNotTaken::Refused(error) => error,
                ConfigNotTaken::Busy => ProbeError::NoAnswer(timeout),
            })
    }

    /// Reconfigures running instances in place. One instance takes the new config and is health-checked; the others follow
    /// between batches. Blocks until the first has answered.
    ///
    /// # Errors
    /// [`ConfigNotTaken`]; all instances then keep the previous config.
    pub fn reconfigure(&self, config_json: &str, timeout: Duration) -> Result<(), ConfigNotTaken> {
        let taken = self.try_out(true, Some(config_json.into()), timeout);
        taken.map_err(|error| match error {
            // No instance has seen the config.
            ConfigNotTaken::Refused(ProbeError::NoThread(_)) => ConfigNotTaken::Busy,
            error => error,
        })?;
        self.crew.notify_change(&self.tenant);
        Ok(())
    }

    fn try_out(
        &self,
        keep: bool,
        config: Option<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfigNotTaken> {
        let (reply, answer) = sync_channel(1);
        let token = Arc::new(ProbeToken::default());
        self.crew
            .probe(&self.tenant, keep, config, Arc::clone(&token), reply);
        let mut answered = answer.recv_timeout(timeout);
        if matches!(answered, Err(RecvTimeoutError::Timeout)) {
            if token.take() {
                return Err(ConfigNotTaken::Busy);
            }
            // The worker has started the probe; the watchdog bounds its duration.
            answered = answer.recv_timeout(timeout);
        }
        let result = answered.unwrap_or_else(|no_answer| {
            Err(match no_answer {
                RecvTimeoutError::Timeout => ProbeError::NoAnswer(timeout),
                RecvTimeoutError::Disconnected => ProbeError::ThreadEnded,
            })
        });
        Ok(result?)
    }

    /// Lets a tripped handler run again.
    pub fn reset(&self) {
        self.crew.reset(&self.tenant);
    }

    /// Why the handler was tripped, if it was.
    pub fn failure(&self) -> Option<Arc<str>> {
        let why = relock(&self.tenant.why_tripped);
        why.as_ref().map(|since| since.why.clone())
    }

    /// The reason of one unhealthy instance, if there is one. An instance that was dropped while it was unhealthy counts
    /// until the one in its place has passed a health check.
    pub fn unhealthy_reason(&self) -> Option<Arc<str>> {
        let unhealthy = relock(&self.tenant.unhealthy);
        let first = unhealthy.values().next();
        first.map(|known| known.since.why.clone())
    }

    /// Time since which the handler is tripped, or else unhealthy; in milliseconds since the Unix epoch.
    pub fn failing_since_ms(&self) -> Option<i64> {
        let tripped = relock(&self.tenant.why_tripped);
        if let Some(since) = &*tripped {
            return Some(since.since_ms);
        }
        let unhealthy = relock(&self.tenant.unhealthy);
        unhealthy.values().map(|known| known.since.since_ms).min()
    }

    /// Number of threads currently in a call of the handler.
    pub fn busy(&self) -> u32 {
        self.crew.busy(&self.tenant)
    }

    /// A watch for the pool's release.
    pub fn release_watch(&self) -> ReleaseWatch {
        ReleaseWatch {
            tenant: Arc::clone(&self.tenant),
            crew: Arc::clone(&self.crew),
        }
    }
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
            self.crew.notify_change(&self.tenant);
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

/// Locks a mutex whose contents no panic can leave inconsistent, ignoring poison.
pub fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
