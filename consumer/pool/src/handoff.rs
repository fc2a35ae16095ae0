//! The crew's interface to worker threads: get the next task, report the result of the last one.
//!
//! Each call carries the thread's incarnation: a thread abandoned in the meantime gets a refusal and exits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_runtime::CallMonitor;

use crate::crew::Crew;
use crate::error::ProbeError;
use crate::pool::Tenant;
use crate::seats::{Call, Errand, Job, Notices, Phase, Probe, Seat, State, Task};

/// A thread's right to its seat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) seat: usize,
    pub(super) incarnation: u64,
}

/// State of the job that was waiting for an instance.
pub(super) enum Created {
    /// Run it now.
    Call(Job),
    /// It was recalled; the instance is kept for the next job.
    Recalled,
    /// The thread was abandoned: job and seat belong to another thread.
    Abandoned,
}

/// Result of a call, as far as it concerns the crew.
pub(super) struct CallReport<'a> {
    /// Why the instance is unusable, if so.
    pub(super) spent: Option<&'a str>,
    /// A record was acknowledged, or dropped by its handler.
    pub(super) made_progress: bool,
}

impl Crew {
    /// Blocks until there is a task. `monitor_of` returns the monitor of the thread's instance of a handler.
    pub(super) fn next(
        &self,
        ticket: Ticket,
        monitor_of: &dyn Fn(u64) -> Option<Arc<dyn CallMonitor>>,
    ) -> Task {
        let mut state = self.lock();
        // Only a finished task makes room; a thread that has just started does not.
        let mut came_free = state.seats[ticket.seat].busy() > 0;
        loop {
            let Some(seat) = state.seat_of(ticket) else {
                return Task::Exit;
            };
            seat.phase = Phase::Idle;
            if came_free && !state.waiting.is_empty() {
                let mut notices = Notices::default();
                state.notify_waiting(&mut notices);
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

    /// Reports that the instance for a job is built; returns the job, unless it was recalled or the thread abandoned.
    pub(super) fn created(&self, ticket: Ticket, monitor: Arc<dyn CallMonitor>) -> Created {
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return Created::Abandoned;
        };
        match std::mem::replace(&mut seat.phase, Phase::Finishing) {
            Phase::Creating { job: Some(job), .. } => {
                seat.phase = Phase::Calling(Call::of(&job, monitor));
                Created::Call(job)
            }
            _ => Created::Recalled,
        }
    }

    /// Reports that the instance could not be built: returns the job to its inbox, and the handler backs off at this seat.
    /// `false` if the thread was abandoned.
    pub(super) fn not_created(
        &self,
        ticket: Ticket,
        tenant: &Arc<Tenant>,
        error: &ProbeError,
    ) -> bool {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return false;
        };
        if let Phase::Creating { job: Some(job), .. } =
            std::mem::replace(&mut seat.phase, Phase::Finishing)
        {
            notices.not_run(job);
        }
        let why = error.to_string();
        tenant.setup.stats.failed(&why);
        state.instance_failed(ticket.seat, tenant, &why, &mut notices);
        drop(state);
        notices.deliver();
        true
    }

    /// Reports the end of a call. `false` if the thread was abandoned: the pump has already taken its records back.
    pub(super) fn call_ended(
        &self,
        ticket: Ticket,
        tenant: &Arc<Tenant>,
        report: &CallReport<'_>,
    ) -> bool {
        let mut notices = Notices::default();
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return false;
        };
        seat.phase = Phase::Finishing;
        if report.made_progress
            && let Some(tenant_state) = state.tenants.get_mut(&tenant.id)
            && tenant_state.backoff.has_failures()
        {
            tenant_state.backoff.clear();
        }
        if let Some(why) = report.spent {
            state.instance_failed(ticket.seat, tenant, why, &mut notices);
        }
        drop(state);
        notices.deliver();
        true
    }

    /// Announces a lifecycle call, which may hang. `false` if the thread was abandoned.
    pub(super) fn begin_lifecycle_call(&self, ticket: Ticket, tenant: &Arc<Tenant>) -> bool {
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return false;
        };
        seat.phase = Phase::lifecycle_call(tenant, false);
        true
    }

    /// The handlers in whose place at this seat a health check may build an instance. `None` if the thread was abandoned.
    pub(super) fn unhealthy_here(&self, ticket: Ticket) -> Option<Vec<Arc<Tenant>>> {
        let state = self.lock();
        let is_ours = state.seats[ticket.seat].incarnation == ticket.incarnation;
        is_ours.then(|| state.unhealthy_at(ticket.seat))
    }

    /// Announces that a health check builds an instance, which may hang. `false` if the thread was abandoned.
    pub(super) fn begin_rebuild(&self, ticket: Ticket, tenant: &Arc<Tenant>) -> bool {
        let mut state = self.lock();
        let seat = &mut state.seats[ticket.seat];
        if seat.incarnation != ticket.incarnation {
            return false;
        }
        seat.phase = Phase::Creating {
            since: Instant::now(),
            tenant: Arc::clone(tenant),
            job: None,
            reply: None,
        };
        true
    }

    /// Reports the result of a health check. `false` if the thread was abandoned: the seat's health is then that of another
    /// instance.
    pub(super) fn health_checked(
        &self,
        ticket: Ticket,
        tenant: &Arc<Tenant>,
        why: Option<String>,
    ) -> bool {
        // Under the lock, so that the thread is not abandoned in between.
        let state = self.lock();
        if state.seats[ticket.seat].incarnation != ticket.incarnation {
            return false;
        }
        tenant.set_unhealthy(ticket.seat, why);
        true
    }

    /// Reports the probe's result; on success its config becomes the handler's current config. `false` if the thread was
    /// abandoned; the caller was then informed by the watchdog.
    pub(super) fn probed(
        &self,
        ticket: Ticket,
        probe: &Probe,
        result: Result<(), ProbeError>,
    ) -> bool {
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return false;
        };
        if let Phase::Creating {
            reply: Some(reply), ..
        } = std::mem::replace(&mut seat.phase, Phase::Finishing)
        {
            if let (Ok(()), Some(config)) = (&result, &probe.config) {
                probe.tenant.set_config(Arc::clone(config));
            }
            // The caller may have stopped waiting.
            let _ = reply.try_send(result);
        }
        true
    }

    /// Reports that the handler's instance here is dropped. `false` if the thread was abandoned; the watchdog then did that.
    pub(super) fn released(&self, ticket: Ticket, tenant: &Arc<Tenant>) -> bool {
        let mut state = self.lock();
        let Some(seat) = state.seat_of(ticket) else {
            return false;
        };
        seat.phase = Phase::Finishing;
        drop(state);
        tenant.worker_released(false);
        true
    }

    /// Reports that the call for which a thread was abandoned has returned.
    pub(super) fn hung_call_returned(&self, tenant: &Arc<Tenant>) {
        if let Some(tenant_state) = self.lock().tenants.get_mut(&tenant.id) {
            tenant_state.hung = tenant_state.hung.saturating_sub(1);
        }
    }
}

impl State {
    /// The seat of a thread; `None` if the thread was abandoned and the seat belongs to another one.
    fn seat_of(&mut self, ticket: Ticket) -> Option<&mut Seat> {
        let seat = &mut self.seats[ticket.seat];
        (seat.incarnation == ticket.incarnation).then_some(seat)
    }
}

impl Phase {
    /// A lifecycle call of `tenant` that starts now.
    fn lifecycle_call(tenant: &Arc<Tenant>, leaving: bool) -> Self {
        Self::LifecycleCall {
            since: Instant::now(),
            tenant: Arc::clone(tenant),
            leaving,
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
            state.seats[seat].phase = Phase::lifecycle_call(&tenant, true);
            return Some(Task::Leave(tenant));
        }
        Some(Errand::NotifyChange(tenant)) => {
            state.seats[seat].phase = Phase::lifecycle_call(&tenant, false);
            return Some(Task::NotifyChange(tenant));
        }
        Some(Errand::CheckHealth) => {
            // The worker announces each instance itself.
            state.seats[seat].phase = Phase::Finishing;
            return Some(Task::CheckHealth);
        }
        Some(Errand::Probe {
            tenant,
            keep,
            config,
            token,
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
                token,
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

/// Waits for work. Returns the lock, and whether a handler's backoff at this seat has ended, which makes room.
fn park(
    mut state: std::sync::MutexGuard<'_, State>,
    seat: usize,
) -> (std::sync::MutexGuard<'_, State>, bool) {
    let now = Instant::now();
    let place = &mut state.seats[seat];
    let before = place.backoff_until.len();
    place.backoff_until.retain(|&(_, until)| until > now);
    if place.backoff_until.len() < before {
        return (state, true);
    }
    place.parked = true;
    let wake = Arc::clone(&place.wake);
    let first = place.backoff_until.iter().map(|&(_, until)| until).min();
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
