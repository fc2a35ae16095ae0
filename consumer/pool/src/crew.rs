//! A crew: the threads behind worker pools, and the lock under which they share work.
//!
//! A crew has a fixed number of seats. A seat's thread starts on first use, is replaced after a timed-out call, and exits
//! with the last handler. A batch that any worker may take waits in the shared queue, so that none waits behind a slow call
//! while another worker is idle; a batch bound to a worker waits at that worker's seat. At most one batch per seat is queued
//! in addition to the running one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, Inbox};

use crate::error::ProbeError;
use crate::pool::{HandlerPool, HandlerSetup, Tenant, relock};
use crate::seats::{
    Errand, Job, Notices, Phase, ProbeToken, QueueChoice, Seat, State, TenantState,
};
use crate::watchdog::CallWatchdog;
use crate::worker;

/// Settings of a crew.
#[derive(Clone, Debug)]
pub struct CrewSettings {
    /// Name for the threads' names: the handler's, or the shared pool's.
    pub name: String,
    /// Generation for the threads' names.
    pub generation: u64,
    /// Maximum number of live threads, without abandoned ones.
    pub workers: u32,
    /// Timeout for building and checking an instance; its thread is abandoned afterwards.
    pub create_timeout: Duration,
    /// Timeout of any other lifecycle call (drain, drop, health check, partition or config change); the thread is abandoned
    /// afterwards.
    pub drain_timeout: Duration,
    /// Interval of the health checks.
    pub health_interval: Duration,
}

/// The threads of one pool, used by one handler generation or by several that share them.
pub struct Crew {
    pub(super) settings: CrewSettings,
    state: Mutex<State>,
    ended: Condvar,
    tick_ms: AtomicU64,
}

impl Crew {
    /// A crew without threads yet; `watchdog` times out its calls.
    pub fn new(settings: CrewSettings, watchdog: &CallWatchdog) -> Arc<Self> {
        let crew = Arc::new(Self {
            state: Mutex::new(State::new(
                settings.workers.max(1),
                Instant::now() + settings.health_interval,
            )),
            settings,
            ended: Condvar::new(),
            tick_ms: AtomicU64::new(1_000),
        });
        watchdog.watch(&crew);
        crew
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// Returns the setup if the last handler has already left and the crew is closing.
    #[expect(
        clippy::result_large_err,
        reason = "the setup is passed on to the next crew"
    )]
    pub fn join(self: &Arc<Self>, setup: HandlerSetup) -> Result<Arc<HandlerPool>, HandlerSetup> {
        let mut state = self.lock();
        if state.closing {
            return Err(setup);
        }
        Ok(self.register(&mut state, setup))
    }

    /// Adds the first handler of a crew.
    pub fn join_first(self: &Arc<Self>, setup: HandlerSetup) -> Arc<HandlerPool> {
        self.register(&mut self.lock(), setup)
    }

    fn register(self: &Arc<Self>, state: &mut State, setup: HandlerSetup) -> Arc<HandlerPool> {
        let tick = (setup.timeout.as_millis() as u64 / 10).clamp(10, 1_000);
        self.tick_ms.fetch_min(tick, Ordering::Relaxed);
        let id = state.next_tenant;
        state.next_tenant += 1;
        let tenant = Arc::new(Tenant::new(id, setup));
        state.tenants.insert(id, TenantState::new(&tenant));
        Arc::new(HandlerPool::new(Arc::clone(self), tenant))
    }

    /// Number of threads that are in a call of the handler.
    pub(super) fn busy(&self, tenant: &Tenant) -> u32 {
        let state = self.lock();
        let calls = |seat: &&Seat| matches!(&seat.phase, Phase::Calling(call) if call.tenant.id == tenant.id);
        state.seats.iter().filter(calls).count() as u32
    }

    /// Number of seats.
    pub fn workers(&self) -> u32 {
        self.settings.workers.max(1)
    }

    /// Interval in milliseconds at which its calls must be checked.
    pub(super) fn tick_ms(&self) -> u64 {
        self.tick_ms.load(Ordering::Relaxed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        relock(&self.state)
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        batch: Box<Batch>,
        home: &Arc<Inbox>,
    ) -> Result<(), Box<Batch>> {
        let mut state = self.lock();
        let Some(place) = state.choose_queue(tenant, batch.worker) else {
            match tenant.is_tripped() {
                // It has no room until it is reset, so notices of room would only cause useless retries.
                true => tenant.wait_for_reset(home),
                false => state.add_waiting(home),
            }
            return Err(batch);
        };
        tenant.setup.stats.accepted(batch.records.len() as u64);
        let job = Job {
            tenant: Arc::clone(tenant),
            batch,
            home: Arc::clone(home),
        };
        let seat = match place {
            QueueChoice::Shared => {
                state.queue.push_back(job);
                state.seat_to_wake(tenant.id)
            }
            QueueChoice::Bound(seat) => {
                state.seats[seat].own.push_back(job);
                Some(seat)
            }
        };
        let mut notices = Notices::default();
        if let Some(seat) = seat {
            self.wake_or_spawn(&mut state, seat, &mut notices);
        }
        drop(state);
        notices.deliver();
        Ok(())
    }

    /// Wakes the seat's thread, or starts one.
    pub(super) fn wake_or_spawn(
        self: &Arc<Self>,
        state: &mut State,
        seat: usize,
        notices: &mut Notices,
    ) {
        if state.seats[seat].alive {
            state.seats[seat].parked = false;
            notices.wake(&state.seats[seat].wake);
            return;
        }
        let incarnation = state.next_incarnation;
        state.next_incarnation += 1;
        match worker::spawn(Arc::clone(self), seat, incarnation) {
            Ok(()) => {
                let seat = &mut state.seats[seat];
                seat.incarnation = incarnation;
                seat.alive = true;
                state.threads += 1;
            }
            Err(error) => {
                tracing::error!(pool = %self.settings.name, %error, "cannot start a worker thread");
                let error = ProbeError::NoThread(Arc::new(error));
                self.without_thread(state, seat, &error, notices);
            }
        }
    }

    /// The seat's thread could not be started: returns the seat's own queue, and the shared queue too if no worker remains.
    pub(super) fn without_thread(
        &self,
        state: &mut State,
        seat: usize,
        error: &ProbeError,
        notices: &mut Notices,
    ) {
        let why = &error.to_string();
        let alone = state.threads == 0;
        let place = &mut state.seats[seat];
        let mut jobs: Vec<Job> = place.own.drain(..).collect();
        for errand in place.errands.drain(..) {
            match errand {
                Errand::Probe { reply, .. } => drop(reply.try_send(Err(error.clone()))),
                Errand::Leave(tenant) => tenant.worker_released(false),
                Errand::NotifyChange(_) | Errand::CheckHealth => {}
            }
        }
        if alone {
            jobs.extend(state.queue.drain(..));
        }
        for job in jobs {
            job.tenant.setup.stats.failed(why);
            job.tenant.set_tripped(Some(why));
            notices.not_run(job);
        }
    }

    pub(super) fn probe(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        keep: bool,
        config: Option<Arc<str>>,
        token: Arc<ProbeToken>,
        reply: SyncSender<Result<(), ProbeError>>,
    ) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let idle = |seat: &Seat| matches!(seat.phase, Phase::Idle) && seat.own.is_empty();
        // A worker that only delivers outcomes is free soon; one in a call may hang.
        let soon = |seat: &Seat| matches!(seat.phase, Phase::Finishing) && seat.own.is_empty();
        let seats = &state.seats;
        let seat = seats.iter().position(idle);
        let seat = seat.or_else(|| seats.iter().position(soon)).unwrap_or(0);
        state.seats[seat].errands.push_back(Errand::Probe {
            tenant: Arc::clone(tenant),
            keep,
            config,
            token,
            reply,
        });
        self.wake_or_spawn(&mut state, seat, &mut notices);
        drop(state);
        notices.deliver();
    }

    /// Makes every thread apply the handler's current partitions and config to its instance before the next batch. An instance
    /// built later gets them when it is built.
    pub(super) fn notify_change(self: &Arc<Self>, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        for seat in 0..state.seats.len() {
            if state.seats[seat].alive {
                let errand = Errand::NotifyChange(Arc::clone(tenant));
                state.seats[seat].errands.push_back(errand);
                self.wake_or_spawn(&mut state, seat, &mut notices);
            }
        }
        drop(state);
        notices.deliver();
    }

    /// Makes every thread check the health of its instances, unless its last request is still pending.
    pub(super) fn request_health_checks(
        self: &Arc<Self>,
        state: &mut State,
        notices: &mut Notices,
    ) {
        for seat in 0..state.seats.len() {
            let place = &mut state.seats[seat];
            let pending = |errand: &Errand| matches!(errand, Errand::CheckHealth);
            if place.alive && !place.errands.iter().any(pending) {
                place.errands.push_back(Errand::CheckHealth);
                self.wake_or_spawn(state, seat, notices);
            }
        }
    }

    /// Returns cancelled batches that have not started, and notifies inboxes that wait for room.
    pub(super) fn recall(&self) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        state.send_back_cancelled(&mut notices);
        state.notify_waiting(&mut notices);
        drop(state);
        notices.deliver();
    }

    pub(super) fn reset(&self, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        tenant.set_tripped(None);
        if let Some(tenant_state) = state.tenants.get_mut(&tenant.id) {
            tenant_state.backoff.clear();
        }
        for seat in &mut state.seats {
            seat.backoff_until.retain(|&(id, _)| id != tenant.id);
        }
        for home in tenant.take_waiting_for_reset() {
            state.add_waiting(&home);
        }
        state.notify_waiting(&mut notices);
        drop(state);
        notices.deliver();
    }

    /// Removes a handler: returns its queued batches; each worker drains and drops its instance. The crew closes with its last
    /// handler.
    pub(super) fn leave(self: &Arc<Self>, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let hung = state.tenants.remove(&tenant.id).map_or(0, |left| left.hung);
        state.turns.remove(tenant.id);
        state.send_back(tenant.id, &mut notices);
        let alive: Vec<usize> = (0..state.seats.len())
            .filter(|&seat| state.seats[seat].alive)
            .collect();
        tenant.begin_release(alive.len() as u32, hung > 0);
        state.closing |= state.tenants.is_empty();
        for seat in alive {
            let errand = Errand::Leave(Arc::clone(tenant));
            state.seats[seat].errands.push_back(errand);
            self.wake_or_spawn(&mut state, seat, &mut notices);
        }
        drop(state);
        notices.deliver();
    }

    /// Blocks until a closing crew has no threads left; `false` at the deadline. Returns at once if the crew is still in use.
    pub(super) fn wait_ended(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.closing && state.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// A closing crew's thread was abandoned and is not replaced.
    pub(super) fn seat_abandoned(&self) {
        self.ended.notify_all();
    }

    /// The thread of a seat has exited.
    pub(super) fn thread_ended(&self, state: &mut State, seat: usize) {
        state.seats[seat].alive = false;
        state.threads -= 1;
        self.ended.notify_all();
    }
}
