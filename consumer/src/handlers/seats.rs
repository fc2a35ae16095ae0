//! What a crew's lock guards: seats, queues, who waits for room. Decides; starts no thread and calls no plugin.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use sluicegate_runtime::{CallMonitor, CancelFlag, RawOutcome};

use super::pool::Tenant;
use super::restart::{AfterDeath, Restarts};
use super::turns::Turns;
use crate::dispatch::{Batch, FlightKey, Inbox, PumpMessage};

/// What the crew's lock guards.
pub(super) struct State {
    pub(super) seats: Vec<Seat>,
    pub(super) queue: VecDeque<Job>,
    pub(super) tenants: HashMap<u64, TenantState>,
    pub(super) turns: Turns,
    pub(super) waiting: Vec<Arc<Inbox>>,
    /// The last handler has left.
    pub(super) closing: bool,
    /// Threads that hold a seat.
    pub(super) threads: u32,
    pub(super) next_tenant: u64,
    pub(super) next_incarnation: u64,
    /// When instances are asked next whether they are well.
    pub(super) health_due: Instant,
}

/// A handler's standing in the crew.
#[derive(Default)]
pub(super) struct TenantState {
    pub(super) restarts: Restarts,
    /// Its calls that hang on abandoned threads.
    pub(super) hung: u32,
}

/// A worker's place.
pub(super) struct Seat {
    /// Which thread holds it: an abandoned thread sees that its number is no longer here.
    pub(super) incarnation: u64,
    pub(super) alive: bool,
    /// Its thread waits for work and nobody has woken it yet.
    pub(super) parked: bool,
    pub(super) phase: Phase,
    pub(super) own: VecDeque<Job>,
    pub(super) errands: VecDeque<Errand>,
    /// Handlers whose instance here may not be built again before a time.
    pub(super) resting: Vec<(u64, Instant)>,
    own_was_last: bool,
    pub(super) wake: Arc<Condvar>,
}

/// What the thread of a seat is doing, as far as somebody must watch it.
pub(super) enum Phase {
    Idle,
    /// Builds an instance; `job` waits for it, `reply` wants to know.
    Creating {
        since: Instant,
        tenant: Arc<Tenant>,
        job: Option<Job>,
        reply: Option<SyncSender<Result<(), String>>>,
    },
    Calling(Call),
    /// Hands over emits and outcomes; runs no plugin code.
    Finishing,
    /// Calls an instance beside its records: drains or drops it, tells it news. `leaving` when the handler
    /// waits for that.
    Aside {
        since: Instant,
        tenant: Arc<Tenant>,
        leaving: bool,
    },
}

/// A call under way.
pub(super) struct Call {
    pub(super) tenant: Arc<Tenant>,
    pub(super) home: Arc<Inbox>,
    pub(super) flight: FlightKey,
    pub(super) records: u64,
    pub(super) monitor: Arc<dyn CallMonitor>,
    pub(super) cancel: CancelFlag,
    /// The outcomes that it had written when it was found to hang.
    pub(super) completed: Vec<RawOutcome>,
    pub(super) since: Instant,
    pub(super) seen: Option<(u64, u32)>,
    pub(super) cancelled: Option<Instant>,
}

impl Call {
    pub(super) fn of(job: &Job, monitor: Arc<dyn CallMonitor>) -> Self {
        Self {
            tenant: Arc::clone(&job.tenant),
            home: Arc::clone(&job.home),
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

/// A batch and where it goes back to.
pub(super) struct Job {
    pub(super) tenant: Arc<Tenant>,
    pub(super) batch: Box<Batch>,
    pub(super) home: Arc<Inbox>,
}

/// Work for one seat that is not a batch.
pub(super) enum Errand {
    Probe {
        tenant: Arc<Tenant>,
        keep: bool,
        /// To be taken in the place of the one that it has.
        config: Option<Arc<str>>,
        claim: Arc<Claim>,
        reply: SyncSender<Result<(), String>>,
    },
    Leave(Arc<Tenant>),
    /// Its partitions or its config have changed.
    TellNews(Arc<Tenant>),
    AskHealth,
}

/// What a worker does next.
pub(super) enum Task {
    Call(Job),
    /// Build an instance; the job waits in the seat's phase.
    Create(Arc<Tenant>),
    Probe(Probe),
    Leave(Arc<Tenant>),
    TellNews(Arc<Tenant>),
    AskHealth,
    /// The seat is somebody else's, or the crew is done.
    Exit,
}

/// An instance to be built, if there is none, and asked whether it is well.
pub(super) struct Probe {
    pub(super) tenant: Arc<Tenant>,
    /// The instance stays, otherwise it is dropped again.
    pub(super) keep: bool,
    /// To be taken in the place of the one that it has.
    pub(super) config: Option<Arc<str>>,
    pub(super) claim: Arc<Claim>,
}

/// Settles once whether a probe takes place: its worker comes to it in time, or whoever asked no longer wants it.
#[derive(Default)]
pub(super) struct Claim(AtomicBool);

impl Claim {
    /// `true` for the first of the two.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// What is said once the lock is free.
#[derive(Default)]
pub(super) struct Notices {
    messages: Vec<(Arc<Inbox>, PumpMessage)>,
    /// A thread to wake. Woken under the lock it would only wait for it.
    wake: Option<Arc<Condvar>>,
}

impl Notices {
    pub(super) fn push(&mut self, home: Arc<Inbox>, message: PumpMessage) {
        self.messages.push((home, message));
    }

    /// The job goes back untouched.
    pub(super) fn not_run(&mut self, mut job: Job) {
        let records = job.batch.records.len();
        job.tenant.setup.stats.gave_back(records as u64);
        job.batch.not_run();
        self.push(job.home, PumpMessage::Finished(job.batch));
    }

    /// Wakes a thread: the first one when the lock is free, others at once.
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

/// Where a batch waits.
pub(super) enum Place {
    Any,
    Seat(usize),
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

    /// Where a batch of `tenant` can wait now; `None` is a refusal.
    pub(super) fn place_for(&mut self, tenant: &Tenant, worker: Option<u32>) -> Option<Place> {
        if tenant.is_tripped() || !self.tenants.contains_key(&tenant.id) {
            return None;
        }
        if let Some(worker) = worker {
            let at = worker as usize % self.seats.len();
            let seat = &self.seats[at];
            let room = !seat.rests(tenant.id) && seat.own.len() + seat.busy() < 2;
            return room.then_some(Place::Seat(at));
        }
        if self.seats.iter().all(|seat| seat.rests(tenant.id)) {
            return None;
        }
        let load = self.queue.len() + self.seats.iter().map(Seat::busy).sum::<usize>();
        let free = (2 * self.seats.len()).saturating_sub(load);
        let shared = self.tenants.len() > 1;
        if free > 0 && (!shared || self.turns.may_go(tenant.id, free)) {
            if shared {
                self.turns.served(tenant.id);
            }
            return Some(Place::Any);
        }
        if shared {
            self.turns.wait(tenant.id);
        }
        None
    }

    /// The seat to rouse for a batch in the common queue: one that idles before one without a thread; `None` when
    /// all are busy and will come to it.
    pub(super) fn seat_to_wake(&self, tenant: u64) -> Option<usize> {
        let able = |seat: &&Seat| !seat.rests(tenant);
        let find = |wanted: fn(&Seat) -> bool| {
            let fits = |seat: &Seat| wanted(seat) && able(&seat);
            self.seats.iter().position(fits)
        };
        find(|seat| seat.parked).or_else(|| find(|seat| !seat.alive))
    }

    /// `home` was refused and is to be told of room.
    pub(super) fn remember(&mut self, home: &Arc<Inbox>) {
        if !self.waiting.iter().any(|known| Arc::ptr_eq(known, home)) {
            self.waiting.push(Arc::clone(home));
        }
    }

    /// There may be room: everybody who was refused is told.
    pub(super) fn tell_waiting(&mut self, notices: &mut Notices) {
        for home in self.waiting.drain(..) {
            notices.push(home, PumpMessage::PoolFree);
        }
    }

    /// Whether a batch that any worker may take would find room.
    pub(super) fn has_room(&self) -> bool {
        let load = self.queue.len() + self.seats.iter().map(Seat::busy).sum::<usize>();
        load < 2 * self.seats.len()
    }

    /// The next batch that the thread at `seat` can run; its own and common ones alternate.
    pub(super) fn next_job(&mut self, seat: usize) -> Option<Job> {
        let place = &self.seats[seat];
        let common = match place.resting.is_empty() {
            true => (!self.queue.is_empty()).then_some(0),
            false => {
                let able = |job: &Job| !place.rests(job.tenant.id);
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

    /// The queued batches of a handler go back.
    pub(super) fn send_back(&mut self, tenant: u64, notices: &mut Notices) {
        let own = self.seats.iter_mut().map(|seat| &mut seat.own);
        for queue in own.chain([&mut self.queue]) {
            send_back_from(queue, tenant, notices);
        }
    }

    /// The batches that are cancelled and that no instance has begun go back: queued ones, and those that wait for
    /// their instance to be built.
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

    /// An instance died (or was not built) at `seat`: its handler rests there, or is tripped.
    pub(super) fn instance_died(
        &mut self,
        seat: usize,
        tenant: &Arc<Tenant>,
        why: &str,
        notices: &mut Notices,
    ) {
        let Some(standing) = self.tenants.get_mut(&tenant.id) else {
            return;
        };
        let policy = &tenant.setup.restart;
        match standing.restarts.died(Instant::now(), policy) {
            AfterDeath::Rebuild(Duration::ZERO) => {}
            AfterDeath::Rebuild(wait) => {
                let place = &mut self.seats[seat];
                place.resting.retain(|&(id, _)| id != tenant.id);
                place.resting.push((tenant.id, Instant::now() + wait));
                send_back_from(&mut place.own, tenant.id, notices);
                if self.seats.iter().all(|seat| seat.rests(tenant.id)) {
                    self.turns.gives_up(tenant.id);
                    send_back_from(&mut self.queue, tenant.id, notices);
                }
            }
            AfterDeath::Trip => {
                let deaths = u64::from(policy.max_restarts) + 1;
                self.trip(
                    tenant,
                    &format!(
                        "its instances died {deaths} times within {:?} with no record acknowledged in between; the last: {why}",
                        policy.restart_window
                    ),
                    notices,
                );
            }
        }
    }

    /// The handler takes nothing more until somebody resets it.
    pub(super) fn trip(&mut self, tenant: &Arc<Tenant>, why: &str, notices: &mut Notices) {
        tracing::error!(handler = %tenant.setup.name, reason = why, "handler tripped");
        tenant.set_tripped(Some(why));
        tenant.setup.stats.failed(why);
        self.turns.gives_up(tenant.id);
        self.send_back(tenant.id, notices);
        // Whoever is refused next reads the state; whoever was refused before has to look at it too.
        self.tell_waiting(notices);
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
            resting: Vec::new(),
            own_was_last: false,
            wake: Arc::new(Condvar::new()),
        }
    }

    pub(super) fn busy(&self) -> usize {
        usize::from(!matches!(self.phase, Phase::Idle))
    }

    pub(super) fn rests(&self, tenant: u64) -> bool {
        !self.resting.is_empty() && {
            let now = Instant::now();
            let resting = |&(id, until): &(u64, Instant)| id == tenant && until > now;
            self.resting.iter().any(resting)
        }
    }
}
