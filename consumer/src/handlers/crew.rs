//! The threads behind worker pools, and the lock under which they share work.
//!
//! A crew has a fixed number of seats. A thread takes a seat when there is first work for it, and gives it up when it
//! is abandoned (its successor takes the seat) or when the last handler has left. A batch that any worker may take
//! waits in the common queue, so that nothing waits behind a slow call while a neighbour is idle; a batch bound to
//! a worker waits at that seat. At most one batch a seat waits beside the one that runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::overrun::OverrunWatch;
use super::pool::{HandlerPool, HandlerSetup, Tenant, relock};
use super::seats::{Claim, Errand, Job, Notices, Phase, Place, Seat, State, TenantState};
use super::worker;
use crate::dispatch::{Batch, Inbox};

/// What a crew is made with.
#[derive(Clone, Debug)]
pub struct CrewSettings {
    /// Name in the threads' names: the handler's, or the shared pool's.
    pub name: String,
    /// Generation in the threads' names.
    pub generation: u64,
    /// Number of threads.
    pub workers: u32,
    /// Longest time to build and check an instance before its thread is given up.
    pub create_timeout: Duration,
    /// Longest time to drain and drop an instance before its thread is given up.
    pub drain_timeout: Duration,
    /// Between two questions to an instance whether it is well.
    pub health_every: Duration,
}

/// The threads of one pool, used by one handler generation or by several that share them.
pub struct Crew {
    pub(super) settings: CrewSettings,
    state: Mutex<State>,
    ended: Condvar,
    tick_ms: AtomicU64,
}

impl Crew {
    /// A crew without threads yet; `watch` looks after its calls.
    pub fn new(settings: CrewSettings, watch: &OverrunWatch) -> Arc<Self> {
        let crew = Arc::new(Self {
            state: Mutex::new(State::new(
                settings.workers.max(1),
                Instant::now() + settings.health_every,
            )),
            settings,
            ended: Condvar::new(),
            tick_ms: AtomicU64::new(1_000),
        });
        watch.look_after(&crew);
        crew
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// Gives the setup back when the last handler has left already and the crew is at its end.
    #[expect(
        clippy::result_large_err,
        reason = "the setup goes on to the next crew"
    )]
    pub fn join(self: &Arc<Self>, setup: HandlerSetup) -> Result<Arc<HandlerPool>, HandlerSetup> {
        let mut state = self.lock();
        if state.closing {
            return Err(setup);
        }
        Ok(self.admit(&mut state, setup))
    }

    /// Adds the first handler of a crew.
    pub(super) fn found(self: &Arc<Self>, setup: HandlerSetup) -> Arc<HandlerPool> {
        self.admit(&mut self.lock(), setup)
    }

    fn admit(self: &Arc<Self>, state: &mut State, setup: HandlerSetup) -> Arc<HandlerPool> {
        let tick = (setup.timeout.as_millis() as u64 / 10).clamp(10, 1_000);
        self.tick_ms.fetch_min(tick, Ordering::Relaxed);
        let id = state.next_tenant;
        state.next_tenant += 1;
        state.tenants.insert(id, TenantState::default());
        let tenant = Arc::new(Tenant::new(id, setup));
        Arc::new(HandlerPool::new(Arc::clone(self), tenant))
    }

    /// Number of threads in a call of the handler.
    pub(super) fn busy(&self, tenant: &Tenant) -> u32 {
        let state = self.lock();
        let calls = |seat: &&Seat| matches!(&seat.phase, Phase::Calling(call) if call.tenant.id == tenant.id);
        state.seats.iter().filter(calls).count() as u32
    }

    /// Number of seats.
    pub fn workers(&self) -> u32 {
        self.settings.workers.max(1)
    }

    /// How often its calls are to be looked at, in milliseconds.
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
        let Some(place) = state.place_for(tenant, batch.worker) else {
            match tenant.is_tripped() {
                // It has no room before somebody resets it: asking again and again would tell nothing else.
                true => tenant.shut_out(home),
                false => state.remember(home),
            }
            return Err(batch);
        };
        tenant.setup.stats.took(batch.records.len() as u64);
        let job = Job {
            tenant: Arc::clone(tenant),
            batch,
            home: Arc::clone(home),
        };
        let seat = match place {
            Place::Any => {
                state.queue.push_back(job);
                state.seat_to_wake(tenant.id)
            }
            Place::Seat(seat) => {
                state.seats[seat].own.push_back(job);
                Some(seat)
            }
        };
        let mut notices = Notices::default();
        if let Some(seat) = seat {
            self.rouse(&mut state, seat, &mut notices);
        }
        drop(state);
        notices.deliver();
        Ok(())
    }

    /// Wakes the seat's thread, or starts one.
    pub(super) fn rouse(self: &Arc<Self>, state: &mut State, seat: usize, notices: &mut Notices) {
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
                self.without_thread(
                    state,
                    seat,
                    &format!("cannot start a worker thread: {error}"),
                    notices,
                );
            }
        }
    }

    /// No thread for the seat: what only it could do goes back, and if nobody is left, everything.
    fn without_thread(&self, state: &mut State, seat: usize, why: &str, notices: &mut Notices) {
        let alone = state.threads == 0;
        let place = &mut state.seats[seat];
        let mut jobs: Vec<Job> = place.own.drain(..).collect();
        for errand in place.errands.drain(..) {
            match errand {
                Errand::Probe { reply, .. } => drop(reply.try_send(Err(why.to_owned()))),
                Errand::Leave(tenant) => tenant.let_go(false),
                Errand::TellNews(_) | Errand::AskHealth => {}
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
        claim: Arc<Claim>,
        reply: SyncSender<Result<(), String>>,
    ) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let idle = |seat: &Seat| matches!(seat.phase, Phase::Idle) && seat.own.is_empty();
        // One that only hands over its outcomes comes to it soon; one in a call may hang.
        let soon = |seat: &Seat| matches!(seat.phase, Phase::Finishing) && seat.own.is_empty();
        let seats = &state.seats;
        let seat = seats.iter().position(idle);
        let seat = seat.or_else(|| seats.iter().position(soon)).unwrap_or(0);
        state.seats[seat].errands.push_back(Errand::Probe {
            tenant: Arc::clone(tenant),
            keep,
            config,
            claim,
            reply,
        });
        self.rouse(&mut state, seat, &mut notices);
        drop(state);
        notices.deliver();
    }

    /// Every thread is to tell its instance of the handler's partitions and config, before it runs another batch. An
    /// instance that is built later is told by its builder.
    pub(super) fn tell_news(self: &Arc<Self>, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        for seat in 0..state.seats.len() {
            if state.seats[seat].alive {
                let errand = Errand::TellNews(Arc::clone(tenant));
                state.seats[seat].errands.push_back(errand);
                self.rouse(&mut state, seat, &mut notices);
            }
        }
        drop(state);
        notices.deliver();
    }

    /// Every thread is to ask its instances whether they are well; one that has not come to it since the last time is
    /// not asked twice.
    pub(super) fn ask_health(self: &Arc<Self>, state: &mut State, notices: &mut Notices) {
        for seat in 0..state.seats.len() {
            let place = &mut state.seats[seat];
            let asked = |errand: &Errand| matches!(errand, Errand::AskHealth);
            if place.alive && !place.errands.iter().any(asked) {
                place.errands.push_back(Errand::AskHealth);
                self.rouse(state, seat, notices);
            }
        }
    }

    /// Sends back what is cancelled and not begun; there is room then.
    pub(super) fn recall(&self) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        state.send_back_cancelled(&mut notices);
        state.tell_waiting(&mut notices);
        drop(state);
        notices.deliver();
    }

    pub(super) fn reset(&self, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        tenant.set_tripped(None);
        if let Some(standing) = state.tenants.get_mut(&tenant.id) {
            standing.restarts.worked();
        }
        for seat in &mut state.seats {
            seat.resting.retain(|&(id, _)| id != tenant.id);
        }
        for home in tenant.let_in() {
            state.remember(&home);
        }
        state.tell_waiting(&mut notices);
        drop(state);
        notices.deliver();
    }

    /// Takes a handler out: its queued batches go back, each worker drains and drops its instance. With the last
    /// handler the crew ends.
    pub(super) fn leave(self: &Arc<Self>, tenant: &Arc<Tenant>) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let standing = state.tenants.remove(&tenant.id).unwrap_or_default();
        state.turns.leaves(tenant.id);
        state.send_back(tenant.id, &mut notices);
        let alive: Vec<usize> = (0..state.seats.len())
            .filter(|&seat| state.seats[seat].alive)
            .collect();
        tenant.departs(alive.len() as u32, standing.hung > 0);
        state.closing |= state.tenants.is_empty();
        for seat in alive {
            let errand = Errand::Leave(Arc::clone(tenant));
            state.seats[seat].errands.push_back(errand);
            self.rouse(&mut state, seat, &mut notices);
        }
        drop(state);
        notices.deliver();
    }

    /// Blocks until a crew that nobody uses has no threads left; `false` at the deadline. One in use is not waited for.
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

    /// A seat was given up for good.
    pub(super) fn seat_given_up(&self) {
        self.ended.notify_all();
    }

    /// The thread of a seat has ended.
    pub(super) fn thread_ended(&self, state: &mut State, seat: usize) {
        state.seats[seat].alive = false;
        state.threads -= 1;
        self.ended.notify_all();
    }
}
