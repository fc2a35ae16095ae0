//! What a worker thread asks of its crew: the next task, and to take note of what came of the last one.
//!
//! Each call names the thread's incarnation: one that was given up meanwhile is told so and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_runtime::CallMonitor;

use super::crew::Crew;
use super::pool::Tenant;
use super::seats::{Call, Errand, Job, Notices, Phase, Probe, State, Task};

/// A thread's right to its seat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) seat: usize,
    pub(super) incarnation: u64,
}

/// What became of the job that waited for an instance.
pub(super) enum Created {
    /// It is to be run.
    Call(Job),
    /// It went back where it came from; the instance stays for the next one.
    Recalled,
    /// It belongs to somebody else, as does the seat.
    GivenUp,
}

/// What a call came to, as far as the crew must know.
pub(super) struct CallReport<'a> {
    /// Why the instance cannot be used again, if so.
    pub(super) spent: Option<&'a str>,
    /// A record was acknowledged or dropped on purpose.
    pub(super) worked: bool,
}

impl Crew {
    /// Blocks until there is something to do. `monitor_of` finds the monitor of the thread's instance of a handler.
    pub(super) fn next(
        &self,
        ticket: Ticket,
        monitor_of: &dyn Fn(u64) -> Option<Arc<dyn CallMonitor>>,
    ) -> Task {
        let mut state = self.lock();
        // Only a task that is over makes room; a thread that has just started does not.
        let mut came_free = state.seats[ticket.seat].busy() > 0;
        loop {
            if state.seats[ticket.seat].incarnation != ticket.incarnation {
                return Task::Exit;
            }
            state.seats[ticket.seat].phase = Phase::Idle;
            if came_free && !state.waiting.is_empty() {
                let mut notices = Notices::default();
                state.tell_waiting(&mut notices);
                drop(state);
                notices.deliver();
                state = self.lock();
                came_free = false;
                continue;
            }
            if let Some(task) = take_task(&mut state, ticket.seat, monitor_of) {
                return task;
            }
            if state.closing {
                self.thread_ended(&mut state, ticket.seat);
                return Task::Exit;
            }
            (state, came_free) = park(state, ticket.seat);
        }
    }

    /// The instance that a job waits for is built; gives the job, unless it was recalled or the thread given up.
    pub(super) fn created(&self, ticket: Ticket, monitor: Arc<dyn CallMonitor>) -> Created {
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return Created::GivenUp;
        }
        match std::mem::replace(&mut seat.phase, Phase::Finishing) {
            Phase::Creating { job: Some(job), .. } => {
                seat.phase = Phase::Calling(Call::of(&job, monitor));
                Created::Call(job)
            }
            _ => Created::Recalled,
        }
    }

    /// The instance could not be built: the job goes back, its handler rests here. `false` when the thread was given
    /// up meanwhile.
    pub(super) fn not_created(&self, ticket: Ticket, tenant: &Arc<Tenant>, why: &str) -> bool {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        if let Phase::Creating { job: Some(job), .. } =
            std::mem::replace(&mut seat.phase, Phase::Finishing)
        {
            notices.not_run(job);
        }
        tenant.setup.stats.failed(why);
        state.instance_died(ticket.seat, tenant, why, &mut notices);
        drop(state);
        notices.deliver();
        true
    }

    /// A call is over. `false` when it was given up meanwhile: its records belong to somebody else by now.
    pub(super) fn call_ended(
        &self,
        ticket: Ticket,
        tenant: &Arc<Tenant>,
        report: &CallReport<'_>,
    ) -> bool {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        seat.phase = Phase::Finishing;
        if report.worked
            && let Some(standing) = state.tenants.get_mut(&tenant.id)
            && standing.restarts.any()
        {
            standing.restarts.worked();
        }
        if let Some(why) = report.spent {
            state.instance_died(ticket.seat, tenant, why, &mut notices);
        }
        drop(state);
        notices.deliver();
        true
    }

    /// An instance is about to be called beside its records, which may hang. `false` when the thread was given up.
    pub(super) fn aside(&self, ticket: Ticket, tenant: &Arc<Tenant>) -> bool {
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        seat.phase = Phase::Aside {
            since: Instant::now(),
            tenant: Arc::clone(tenant),
            leaving: false,
        };
        true
    }

    /// The probed instance is well or not; if it is, its config is everybody's from now on. `false` when the thread was given
    /// up meanwhile, and whoever asked was told so.
    pub(super) fn probed(&self, ticket: Ticket, probe: &Probe, result: Result<(), String>) -> bool {
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        if let Phase::Creating {
            reply: Some(reply), ..
        } = std::mem::replace(&mut seat.phase, Phase::Finishing)
        {
            if let (Ok(()), Some(config)) = (&result, &probe.config) {
                probe.tenant.set_config(Arc::clone(config));
            }
            // Whoever asked may have stopped waiting.
            let _ = reply.try_send(result);
        }
        true
    }

    /// The handler's instance here is gone. `false` when the thread was given up meanwhile (and the supervisor let go).
    pub(super) fn let_go(&self, ticket: Ticket, tenant: &Arc<Tenant>) -> bool {
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        seat.phase = Phase::Finishing;
        drop(state);
        tenant.let_go(false);
        true
    }

    /// The call for which a thread was given up has returned after all.
    pub(super) fn hung_call_returned(&self, tenant: &Arc<Tenant>) {
        if let Some(standing) = self.lock().tenants.get_mut(&tenant.id) {
            standing.hung = standing.hung.saturating_sub(1);
        }
    }
}

fn take_task(
    state: &mut State,
    seat: usize,
    monitor_of: &dyn Fn(u64) -> Option<Arc<dyn CallMonitor>>,
) -> Option<Task> {
    match state.seats[seat].errands.pop_front() {
        Some(Errand::Leave(tenant)) => {
            state.seats[seat].phase = Phase::Aside {
                since: Instant::now(),
                tenant: Arc::clone(&tenant),
                leaving: true,
            };
            return Some(Task::Leave(tenant));
        }
        Some(Errand::TellNews(tenant)) => {
            state.seats[seat].phase = Phase::Aside {
                since: Instant::now(),
                tenant: Arc::clone(&tenant),
                leaving: false,
            };
            return Some(Task::TellNews(tenant));
        }
        Some(Errand::AskHealth) => {
            // The worker says itself which instance it is at.
            state.seats[seat].phase = Phase::Finishing;
            return Some(Task::AskHealth);
        }
        Some(Errand::Probe {
            tenant,
            keep,
            config,
            claim,
            reply,
        }) => {
            state.seats[seat].phase = Phase::Creating {
                since: Instant::now(),
                tenant: Arc::clone(&tenant),
                job: None,
                reply: Some(reply),
            };
            return Some(Task::Probe(Probe {
                tenant,
                keep,
                config,
                claim,
            }));
        }
        None => {}
    }
    let job = state.next_job(seat)?;
    match monitor_of(job.tenant.id) {
        Some(monitor) => {
            state.seats[seat].phase = Phase::Calling(Call::of(&job, monitor));
            Some(Task::Call(job))
        }
        None => {
            let tenant = Arc::clone(&job.tenant);
            state.seats[seat].phase = Phase::Creating {
                since: Instant::now(),
                tenant: Arc::clone(&tenant),
                job: Some(job),
                reply: None,
            };
            Some(Task::Create(tenant))
        }
    }
}

/// Waits for work. `true` with the lock when a handler's rest at this seat is over, which is room for it.
fn park(
    mut state: std::sync::MutexGuard<'_, State>,
    seat: usize,
) -> (std::sync::MutexGuard<'_, State>, bool) {
    let now = Instant::now();
    let place = &mut state.seats[seat];
    let before = place.resting.len();
    place.resting.retain(|&(_, until)| until > now);
    if place.resting.len() < before {
        return (state, true);
    }
    place.parked = true;
    let wake = Arc::clone(&place.wake);
    let first = place.resting.iter().map(|&(_, until)| until).min();
    state = match first {
        None => wake
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner),
        Some(until) => {
            let left = until.saturating_duration_since(now);
            wake.wait_timeout(state, left.max(Duration::from_millis(1)))
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0
        }
    };
    state.seats[seat].parked = false;
    (state, false)
}
