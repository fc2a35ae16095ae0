//! State behind the lock of a thread pool: worker slots, queues, inboxes that wait for room. Makes the scheduling
//! decisions; starts no thread and calls no plugin.
//!
//! ```text
//!  Idle ─┬─► Creating ─► Calling ─► Finishing ─► Idle
//!        └─► LifecycleCall ────────────┘
//!  Creating, Calling, LifecycleCall past their timeout ─► abandoned: another thread takes the slot, a new incarnation
//! ```
//!
//! `incarnation` is the number of the thread that holds a slot, and every report of a thread is checked against it
//! under the lock. An abandoned thread finds another number, discards its results and exits; without the check it would
//! deliver outcomes of records that the pump has given to another worker since (G14).
//!
//! The shared queue and the workers' own queues have room for one batch per slot in addition to the running ones: more
//! would wait behind slow calls, fewer would let workers idle between batches (ADR 0010). Messages and wake-ups are
//! collected in [`Notices`] and delivered after the lock is released, so that a woken thread does not block on it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, FlightKey, HandlerIx, Inbox, PumpMessage};
use sluicegate_runtime::{CallMonitor, CancelFlag, RawOutcome};

use crate::error::ProbeError;
use crate::pool::Tenant;
use crate::restart::{AfterFailure, RestartBackoff};
use crate::turns::Turns;

/// State behind the crew's lock.
pub(super) struct State {
    pub(super) seats: Vec<Seat>,
    /// Batches that any worker may run.
    pub(super) queue: VecDeque<Job>,
    pub(super) tenants: HashMap<u64, TenantState>,
    pub(super) turns: Turns,
    /// Inboxes whose submit was refused; notified once there is room.
    pub(super) waiting: Vec<Arc<Inbox>>,
    /// The last handler has left: threads exit once idle.
    pub(super) closing: bool,
    /// Threads that hold a seat; abandoned ones do not count.
    pub(super) threads: u32,
    pub(super) next_tenant: u64,
    pub(super) next_incarnation: u64,
    /// Time of the next health check.
    pub(super) health_due: Instant,
}

/// Per-handler state of the crew.
pub(super) struct TenantState {
    tenant: Arc<Tenant>,
    pub(super) backoff: RestartBackoff,
    /// Number of its calls that hang on abandoned threads.
    pub(super) hung: u32,
}

impl TenantState {
    pub(super) fn new(tenant: &Arc<Tenant>) -> Self {
        Self {
            tenant: Arc::clone(tenant),
            backoff: RestartBackoff::default(),
            hung: 0,
        }
    }
}

/// A worker's slot: the thread that holds it, that thread's state, and its own queue.
pub(super) struct Seat {
    /// Number of the thread that holds the seat; a thread that finds another number here was abandoned and exits.
    pub(super) incarnation: u64,
    pub(super) alive: bool,
    /// Its thread waits for work and has not been woken yet.
    pub(super) parked: bool,
    pub(super) phase: Phase,
    /// Batches bound to this worker.
    pub(super) own: VecDeque<Job>,
    pub(super) errands: VecDeque<Errand>,
    /// Handlers that back off at this seat, and when their instance may be rebuilt.
    pub(super) backoff_until: Vec<(u64, Instant)>,
    /// The last batch came from `own`: own and shared batches alternate.
    own_was_last: bool,
    pub(super) wake: Arc<Condvar>,
}

/// What a seat's thread is doing, as far as the watchdog must know.
pub(super) enum Phase {
    Idle,
    /// Builds an instance: for `job`, or for a probe that `reply` answers.
    Creating {
        since: Instant,
        tenant: Arc<Tenant>,
        job: Option<Job>,
        reply: Option<SyncSender<Result<(), ProbeError>>>,
    },
    Calling(Call),
    /// Delivers emits and outcomes; runs no plugin code.
    Finishing,
    /// Runs a lifecycle call on an instance (health check, drain, drop, partition or config change). `leaving`: the
    /// handler's release waits for it.
    LifecycleCall {
        since: Instant,
        tenant: Arc<Tenant>,
        leaving: bool,
    },
}

/// A running call.
pub(super) struct Call {
    pub(super) tenant: Arc<Tenant>,
    pub(super) home: Arc<Inbox>,
    pub(super) handler: HandlerIx,
    pub(super) flight: FlightKey,
    pub(super) records: u64,
    pub(super) monitor: Arc<dyn CallMonitor>,
    pub(super) cancel: CancelFlag,
    /// Outcomes that the call had written when it was found to hang.
    pub(super) completed: Vec<RawOutcome>,
    /// When the current record was first seen; the timeout counts from here.
    pub(super) since: Instant,
    /// Progress (call serial, record index) at the last check.
    pub(super) seen: Option<(u64, u32)>,
    /// When the call was asked to stop.
    pub(super) cancelled: Option<Instant>,
}

impl Call {
    pub(super) fn of(job: &Job, monitor: Arc<dyn CallMonitor>) -> Self {
        Self {
            tenant: Arc::clone(&job.tenant),
            home: Arc::clone(&job.home),
            handler: job.batch.handler,
            flight: job.batch.flight,
            records: job.batch.records.len() as u64,
            monitor,
            cancel: job.batch.cancel.clone(),
            completed: Vec::new(),
            since: Instant::now(),
            seen: None,
            cancelled: None,
        }
    }
}

/// A batch and the inbox that gets it back.
pub(super) struct Job {
    pub(super) tenant: Arc<Tenant>,
    pub(super) batch: Box<Batch>,
    pub(super) home: Arc<Inbox>,
}

/// A command to one worker; takes precedence over batches.
pub(super) enum Errand {
    Probe {
        tenant: Arc<Tenant>,
        keep: bool,
        /// New config to apply, if any.
        config: Option<Arc<str>>,
        token: Arc<ProbeToken>,
        reply: SyncSender<Result<(), ProbeError>>,
    },
    Leave(Arc<Tenant>),
    /// The handler's partitions or config have changed.
    NotifyChange(Arc<Tenant>),
    CheckHealth,
}

/// A worker's next step.
pub(super) enum Task {
    Call(Job),
    /// Build an instance; the job waits in the seat's phase.
    Create(Arc<Tenant>),
    Probe(Probe),
    Leave(Arc<Tenant>),
    NotifyChange(Arc<Tenant>),
    CheckHealth,
    /// The seat belongs to another thread, or the crew is closing.
    Exit,
}

/// Health check of an instance, which is built first if there is none.
pub(super) struct Probe {
    pub(super) tenant: Arc<Tenant>,
    /// Keep an instance that the probe has built; otherwise it is dropped.
    pub(super) keep: bool,
    /// New config to apply, if any.
    pub(super) config: Option<Arc<str>>,
    pub(super) token: Arc<ProbeToken>,
}

/// One-shot token of a probe: taken by the worker that runs it or by the caller that times out, so that exactly one of them
/// decides whether the probe takes place.
#[derive(Default)]
pub(super) struct ProbeToken(AtomicBool);

impl ProbeToken {
    /// Returns `true` to the first taker.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Messages and wake-ups that are delivered after the lock is released.
#[derive(Default)]
pub(super) struct Notices {
    messages: Vec<(Arc<Inbox>, PumpMessage)>,
    /// A thread to wake; woken under the lock, it would only block on it.
    wake: Option<Arc<Condvar>>,
}

impl Notices {
    pub(super) fn push(&mut self, home: Arc<Inbox>, message: PumpMessage) {
        self.messages.push((home, message));
    }

    /// Returns the batch to its inbox unprocessed.
    pub(super) fn not_run(&mut self, mut job: Job) {
        let records = job.batch.records.len();
        job.tenant.setup.stats.returned(records as u64);
        job.batch.not_run();
        self.push(job.home, PumpMessage::Finished(job.batch));
    }

    /// Wakes a thread: the first one after the lock is released, others immediately.
    pub(super) fn wake(&mut self, thread: &Arc<Condvar>) {
        match self.wake {
            None => self.wake = Some(Arc::clone(thread)),
            Some(_) => thread.notify_one(),
        }
    }

    pub(super) fn deliver(self) {
        if let Some(thread) = self.wake {
            thread.notify_one();
        }
        for (home, message) in self.messages {
            home.push(message);
        }
    }
}

/// The queue for a batch.
pub(super) enum QueueChoice {
    /// The shared queue.
    Shared,
    /// The own queue of a worker.
    Bound(usize),
}

impl State {
    pub(super) fn new(seats: u32, health_due: Instant) -> Self {
        Self {
            seats: (0..seats).map(|_| Seat::new()).collect(),
            queue: VecDeque::new(),
            tenants: HashMap::new(),
            turns: Turns::default(),
            waiting: Vec::new(),
            closing: false,
            threads: 0,
            next_tenant: 1,
            next_incarnation: 1,
            health_due,
        }
    }

    /// The queue that a batch of `tenant` may wait in; `None` refuses it.
    pub(super) fn choose_queue(
        &mut self,
        tenant: &Tenant,
        worker: Option<u32>,
    ) -> Option<QueueChoice> {
        if tenant.is_tripped() || !self.tenants.contains_key(&tenant.id) {
            return None;
        }
        if let Some(worker) = worker {
            let at = worker as usize % self.seats.len();
            let seat = &self.seats[at];
            let room = !seat.is_backing_off(tenant.id) && seat.own.len() + seat.busy() < 2;
            return room.then_some(QueueChoice::Bound(at));
        }
        if self.seats.iter().all(|seat| seat.is_backing_off(tenant.id)) {
            return None;
        }
        let load = self.queue.len() + self.seats.iter().map(Seat::busy).sum::<usize>();
        let free = (2 * self.seats.len()).saturating_sub(load);
        let shared = self.tenants.len() > 1;
        if free > 0 && (!shared || self.turns.may_go(tenant.id, free)) {
            if shared {
                self.turns.served(tenant.id);
            }
            return Some(QueueChoice::Shared);
        }
        if shared {
            self.turns.enqueue(tenant.id);
        }
        None
    }

    /// The seat to wake for a batch in the shared queue: preferably an idle thread, else a seat without one. `None` if all are
    /// busy; one of them takes the batch next.
    pub(super) fn seat_to_wake(&self, tenant: u64) -> Option<usize> {
        let able = |seat: &&Seat| !seat.is_backing_off(tenant);
        let find = |wanted: fn(&Seat) -> bool| {
            let fits = |seat: &Seat| wanted(seat) && able(&seat);
            self.seats.iter().position(fits)
        };
        find(|seat| seat.parked).or_else(|| find(|seat| !seat.alive))
    }

    /// Registers an inbox whose submit was refused.
    pub(super) fn add_waiting(&mut self, home: &Arc<Inbox>) {
        if !self.waiting.iter().any(|known| Arc::ptr_eq(known, home)) {
            self.waiting.push(Arc::clone(home));
        }
    }

    /// Notifies all waiting inboxes that there may be room.
    pub(super) fn notify_waiting(&mut self, notices: &mut Notices) {
        for home in self.waiting.drain(..) {
            notices.push(home, PumpMessage::PoolFree);
        }
    }

    /// Whether the shared queue has room.
    pub(super) fn has_room(&self) -> bool {
        let load = self.queue.len() + self.seats.iter().map(Seat::busy).sum::<usize>();
        load < 2 * self.seats.len()
    }

    /// The next batch that the thread at `seat` can run; own and shared ones alternate.
    pub(super) fn next_job(&mut self, seat: usize) -> Option<Job> {
        let place = &self.seats[seat];
        let common = match place.backoff_until.is_empty() {
            true => (!self.queue.is_empty()).then_some(0),
            false => {
                let able = |job: &Job| !place.is_backing_off(job.tenant.id);
                self.queue.iter().position(able)
            }
        };
        let place = &mut self.seats[seat];
        if !place.own.is_empty() && (common.is_none() || !place.own_was_last) {
            place.own_was_last = true;
            return place.own.pop_front();
        }
        place.own_was_last = false;
        self.queue.remove(common?)
    }

    /// The handlers that are unhealthy at `seat` and do not back off there.
    pub(super) fn unhealthy_at(&self, seat: usize) -> Vec<Arc<Tenant>> {
        let place = &self.seats[seat];
        let tenants = self.tenants.values().map(|state| &state.tenant);
        tenants
            .filter(|tenant| tenant.is_unhealthy_at(seat) && !place.is_backing_off(tenant.id))
            .cloned()
            .collect()
    }

    /// Returns the queued batches of a handler to their inboxes.
    pub(super) fn send_back(&mut self, tenant: u64, notices: &mut Notices) {
        let own = self.seats.iter_mut().map(|seat| &mut seat.own);
        for queue in own.chain([&mut self.queue]) {
            send_back_from(queue, tenant, notices);
        }
    }

    /// Returns cancelled batches that have not started: queued ones, and those whose instance is still being built.
    pub(super) fn send_back_cancelled(&mut self, notices: &mut Notices) {
        let own = self.seats.iter_mut().map(|seat| &mut seat.own);
        for queue in own.chain([&mut self.queue]) {
            send_back_where(queue, |job| job.batch.cancel.is_set(), notices);
        }
        for seat in &mut self.seats {
            if let Phase::Creating { job, .. } = &mut seat.phase
                && let Some(job) = job.take_if(|job| job.batch.cancel.is_set())
            {
                notices.not_run(job);
            }
        }
    }

    /// An instance at `seat` failed or could not be built: its handler backs off there, or is tripped.
    pub(super) fn instance_failed(
        &mut self,
        seat: usize,
        tenant: &Arc<Tenant>,
        why: &str,
        notices: &mut Notices,
    ) {
        let Some(tenant_state) = self.tenants.get_mut(&tenant.id) else {
            return;
        };
        let policy = &tenant.setup.restart;
        match tenant_state.backoff.record_failure(Instant::now(), policy) {
            AfterFailure::Rebuild(Duration::ZERO) => {}
            AfterFailure::Rebuild(wait) => {
                let place = &mut self.seats[seat];
                place.backoff_until.retain(|&(id, _)| id != tenant.id);
                place.backoff_until.push((tenant.id, Instant::now() + wait));
                send_back_from(&mut place.own, tenant.id, notices);
                if self.seats.iter().all(|seat| seat.is_backing_off(tenant.id)) {
                    self.turns.withdraw(tenant.id);
                    send_back_from(&mut self.queue, tenant.id, notices);
                }
            }
            AfterFailure::Trip => {
                let failures = u64::from(policy.max_restarts) + 1;
                self.trip(
                    tenant,
                    &format!(
                        "instances failed {failures} times within {:?} without an acknowledged record in between; last failure: {why}",
                        policy.restart_window
                    ),
                    notices,
                );
            }
        }
    }

    /// Trips the handler: it takes no batch until it is reset.
    pub(super) fn trip(&mut self, tenant: &Arc<Tenant>, why: &str, notices: &mut Notices) {
        tracing::error!(handler = %tenant.setup.name, reason = why, "handler tripped");
        tenant.set_tripped(Some(why));
        tenant.setup.stats.failed(why);
        self.turns.withdraw(tenant.id);
        self.send_back(tenant.id, notices);
        // A later submit reads the state; inboxes refused before must be made to read it too.
        self.notify_waiting(notices);
    }
}

fn send_back_from(queue: &mut VecDeque<Job>, tenant: u64, notices: &mut Notices) {
    send_back_where(queue, |job| job.tenant.id == tenant, notices);
}

fn send_back_where(
    queue: &mut VecDeque<Job>,
    wanted: impl Fn(&Job) -> bool,
    notices: &mut Notices,
) {
    for job in std::mem::take(queue) {
        match wanted(&job) {
            true => notices.not_run(job),
            false => queue.push_back(job),
        }
    }
}

impl Seat {
    fn new() -> Self {
        Self {
            incarnation: 0,
            alive: false,
            parked: false,
            phase: Phase::Idle,
            own: VecDeque::new(),
            errands: VecDeque::new(),
            backoff_until: Vec::new(),
            own_was_last: false,
            wake: Arc::new(Condvar::new()),
        }
    }

    pub(super) fn busy(&self) -> usize {
        usize::from(!matches!(self.phase, Phase::Idle))
    }

    pub(super) fn is_backing_off(&self, tenant: u64) -> bool {
        !self.backoff_until.is_empty() && {
            let now = Instant::now();
            let active = |&(id, until): &(u64, Instant)| id == tenant && until > now;
            self.backoff_until.iter().any(active)
        }
    }
}
