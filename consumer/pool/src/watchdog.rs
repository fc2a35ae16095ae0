//! Call-timeout watchdog: a call that stays on one record for longer than its timeout is cancelled, then abandoned
//! together with its thread (G14). One thread per process; it checks at a tenth of the shortest timeout, clamped to
//! 10 ms..1 s.
//!
//! ```text
//!  current record changes ─► time restarts
//!  timeout ─► cancel flag set ─► grace: a tenth of the timeout, at most 1 s ─► still the same record ─► abandon:
//!               CallTimedOut to the pump, with the outcomes so far · another thread for the slot · quarantined + 1
//!  4 × workers of one handler hang at once ─► tripped: each hung call costs a thread until the process exits
//! ```
//!
//! The timeout is measured per record and not per call, because the number of records per call is chosen at run time;
//! for a handler that takes batches the call is the unit. Progress is read from memory that the plugin writes through
//! atomics (ADR 0011), and read again just before a thread is abandoned: a call that has progressed or returned in
//! between is not to blame, and its worker reports the outcomes.
//!
//! `CallTimedOut` is sent under the lock of the thread pool. The call can return at any moment, and its thread learns
//! under that lock that it was abandoned. Its late `Finished`, whose outcomes are void, must not arrive first: records
//! that the call had completed would run again.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_runtime::RawOutcome;

use crate::crew::Crew;
use crate::error::ProbeError;
use crate::pool::relock;
use crate::seats::{Call, Errand, Notices, Phase, State};

/// Hung calls of one handler, per worker, at which it is tripped; each of them blocks a thread for good.
const MAX_HUNG_CALLS_PER_WORKER: u32 = 4;
/// Upper bound of the grace period between cancelling a call and abandoning it.
const MAX_CANCEL_GRACE: Duration = Duration::from_secs(1);

/// Handle of the watchdog thread, which exits when the handle is dropped.
pub struct CallWatchdog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    crews: Vec<Weak<Crew>>,
    stop: bool,
}

impl CallWatchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's error if the thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("handler/watch".to_owned())
            .spawn(move || run(&for_thread))?;
        Ok(Self { shared })
    }

    /// Watches the calls of a crew for as long as it lives.
    pub(super) fn watch(&self, crew: &Arc<Crew>) {
        relock(&self.shared.watched)
            .crews
            .push(Arc::downgrade(crew));
        self.shared.changed.notify_all();
    }
}

impl Drop for CallWatchdog {
    fn drop(&mut self) {
        relock(&self.shared.watched).stop = true;
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared) {
    let mut crews: Vec<Arc<Crew>> = Vec::new();
    loop {
        let tick = crews.iter().map(|crew| crew.tick_ms()).min();
        // Clones must not outlive the check: a crew ends with its last user.
        crews.clear();
        let watched = relock(&shared.watched);
        if watched.stop {
            return;
        }
        let tick = Duration::from_millis(tick.unwrap_or(1_000));
        let (mut watched, _) = shared
            .changed
            .wait_timeout(watched, tick)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        watched.crews.retain(|crew| crew.strong_count() > 0);
        crews.extend(watched.crews.iter().filter_map(Weak::upgrade));
        drop(watched);
        let now = Instant::now();
        for crew in &crews {
            crew.check(now);
        }
    }
}

impl Call {
    /// Updates the call's progress; returns whether it must be abandoned.
    fn has_timed_out(&mut self, now: Instant) -> bool {
        let at = self.monitor.current().map(|at| (at.serial, at.index));
        if at.is_some() && at != self.seen {
            // The first check does not know when the record was reached: the time counts from the start of the batch.
            if self.seen.is_some() {
                self.since = now;
                self.cancelled = None;
            }
            self.seen = at;
        }
        if at.is_none() && self.seen.is_some() {
            // The call has just returned; its worker reports that.
            return false;
        }
        let timeout = self.tenant.setup.timeout;
        if now.saturating_duration_since(self.since) < timeout {
            return false;
        }
        match self.cancelled {
            None => {
                self.cancel.set();
                self.cancelled = Some(now);
                false
            }
            Some(since) => {
                let grace = (timeout / 10).min(MAX_CANCEL_GRACE);
                now.saturating_duration_since(since) >= grace
            }
        }
    }

    /// Copies the outcomes that the call has written, one for each record before the one that hangs. `false` if the call has
    /// made progress or returned since the check: then no record is to blame, and its worker has the outcomes.
    fn record_completed(&mut self) -> bool {
        self.completed.clear();
        let at = self.monitor.current().map(|at| (at.serial, at.index));
        if at != self.seen {
            return false;
        }
        let Some((serial, index)) = at else {
            // The call never started: no record is done.
            return true;
        };
        let still = self.monitor.completed(serial, &mut self.completed);
        // Outcomes after the record that hangs do not count.
        self.completed.resize(index as usize, RawOutcome::default());
        still
    }
}

impl Crew {
    /// Checks every seat once.
    pub(super) fn check(self: &Arc<Self>, now: Instant) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        for seat in 0..state.seats.len() {
            let abandoned = match &mut state.seats[seat].phase {
                Phase::Idle | Phase::Finishing => false,
                Phase::Calling(call) => call.has_timed_out(now) && call.record_completed(),
                Phase::Creating { since, .. } => {
                    now.saturating_duration_since(*since) >= self.settings.create_timeout
                }
                Phase::LifecycleCall { since, .. } => {
                    now.saturating_duration_since(*since) >= self.settings.drain_timeout
                }
            };
            if abandoned {
                self.abandon_worker(&mut state, seat, &mut notices);
            }
        }
        if now >= state.health_due {
            state.health_due = now + self.settings.health_interval;
            self.request_health_checks(&mut state, &mut notices);
        }
        if !state.waiting.is_empty() && state.has_room() {
            // The handlers whose turn it was did not submit; their records may be gone.
            state.turns.clear_waiting();
            state.notify_waiting(&mut notices);
        }
        drop(state);
        notices.deliver();
    }

    /// Abandons the thread of a seat and starts another one.
    fn abandon_worker(self: &Arc<Self>, state: &mut State, seat: usize, notices: &mut Notices) {
        let place = &mut state.seats[seat];
        place.incarnation = 0;
        place.alive = false;
        place.parked = false;
        let phase = std::mem::replace(&mut place.phase, Phase::Idle);
        let errands: Vec<Errand> = place.errands.drain(..).collect();
        state.threads -= 1;
        for errand in errands {
            match errand {
                // The handler's instance, if any, is on the abandoned thread.
                Errand::Leave(tenant) => tenant.worker_released(true),
                Errand::NotifyChange(_) | Errand::CheckHealth => {}
                probe @ Errand::Probe { .. } => state.seats[seat].errands.push_back(probe),
            }
        }
        self.abandon_work(state, seat, phase, notices);
        state.notify_waiting(notices);
        if state.closing {
            self.seat_abandoned();
        } else {
            self.wake_or_spawn(state, seat, notices);
        }
    }

    fn abandon_work(&self, state: &mut State, seat: usize, phase: Phase, notices: &mut Notices) {
        match phase {
            Phase::Idle | Phase::Finishing => {}
            Phase::Calling(call) => {
                let (tenant, timeout) = (&call.tenant, call.tenant.setup.timeout);
                let why = format!("call timed out after {timeout:?} on one record");
                tracing::error!(handler = %tenant.setup.name, worker = seat, "{why}; worker thread abandoned");
                tenant.setup.stats.quarantined();
                tenant.setup.stats.failed(&why);
                tenant.setup.stats.returned(call.records);
                let bound = MAX_HUNG_CALLS_PER_WORKER * self.workers();
                if let Some(tenant_state) = state.tenants.get_mut(&tenant.id) {
                    tenant_state.hung += 1;
                    if tenant_state.hung >= bound {
                        let why = format!(
                            "too many hung calls: {bound} threads are stuck in this handler until the process exits; fix what they wait for, \
                             then run `sluicegate handlers restart {}`",
                            tenant.setup.name
                        );
                        state.trip(tenant, &why, notices);
                    }
                }
                // Sent under the lock: the call may return at any moment, and its thread, which learns of this under the
                // lock, must not send its own message first.
                call.home.push(PumpMessage::CallTimedOut {
                    handler: call.handler,
                    flight: call.flight,
                    completed: call.completed,
                });
            }
            Phase::Creating {
                tenant, job, reply, ..
            } => {
                let limit = self.settings.create_timeout;
                let error = ProbeError::Abandoned(limit);
                let why = error.to_string();
                tenant.setup.stats.quarantined();
                match (reply, job) {
                    // The caller may have stopped waiting.
                    (Some(reply), _) => drop(reply.try_send(Err(error))),
                    (None, Some(job)) => notices.not_run(job),
                    // Built by a health check, or for a job that was recalled.
                    (None, None) if tenant.is_unhealthy_at(seat) => {
                        tenant.set_unhealthy(seat, Some(why.clone()));
                    }
                    (None, None) => {}
                }
                state.instance_failed(seat, &tenant, &why, notices);
            }
            Phase::LifecycleCall {
                tenant, leaving, ..
            } => {
                tracing::error!(handler = %tenant.setup.name, worker = seat, "lifecycle call timed out (health, partition or config change, drain or drop); worker thread abandoned");
                tenant.setup.stats.quarantined();
                if leaving {
                    tenant.worker_released(true);
                }
            }
        }
    }
}
