//! Watches running calls: one that stands on a record for longer than the timeout is cancelled, then given up with its
//! thread (G14). One thread a process; it looks every tenth of the shortest timeout, between 10 ms and 1 s.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use sluicegate_runtime::RawOutcome;

use super::crew::Crew;
use super::pool::relock;
use super::seats::{Call, Errand, Notices, Phase, State};
use crate::dispatch::PumpMessage;

/// Threads that calls of one handler may hang on, for each of its workers, before it is tripped.
const HUNG_PER_WORKER: u32 = 4;
/// Longest time between asking a call to stop and giving it up.
const LONGEST_GRACE: Duration = Duration::from_secs(1);

/// The watching thread. It ends when the last clone of the handle is gone.
pub struct OverrunWatch {
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

impl OverrunWatch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("handler/watch".to_owned())
            .spawn(move || watch(&theirs))?;
        Ok(Self { shared })
    }

    /// Looks after a crew for as long as it lives.
    pub(super) fn look_after(&self, crew: &Arc<Crew>) {
        relock(&self.shared.watched)
            .crews
            .push(Arc::downgrade(crew));
        self.shared.changed.notify_all();
    }
}

impl Drop for OverrunWatch {
    fn drop(&mut self) {
        relock(&self.shared.watched).stop = true;
        self.shared.changed.notify_all();
    }
}

fn watch(shared: &Shared) {
    let mut crews: Vec<Arc<Crew>> = Vec::new();
    loop {
        let tick = crews.iter().map(|crew| crew.tick_ms()).min();
        // Clones must not outlive the look: a crew ends when its users are gone.
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
    /// Takes note of progress; `true` when the call is to be given up.
    fn is_overrun(&mut self, now: Instant) -> bool {
        let at = self.monitor.current().map(|at| (at.serial, at.index));
        if at.is_some() && at != self.seen {
            // The first look tells nothing of when the record was reached: the batch's start stands.
            if self.seen.is_some() {
                self.since = now;
                self.cancelled = None;
            }
            self.seen = at;
        }
        if at.is_none() && self.seen.is_some() {
            // The call has just returned; its worker will say so.
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
                let grace = (timeout / 10).min(LONGEST_GRACE);
                now.saturating_duration_since(since) >= grace
            }
        }
    }

    /// Notes the outcomes that the call had written, one for each record before the one that hangs. `false` when it has
    /// gone on or returned since it was looked at: then no record is to blame, and its worker has the outcomes.
    fn note_completed(&mut self) -> bool {
        self.completed.clear();
        let at = self.monitor.current().map(|at| (at.serial, at.index));
        if at != self.seen {
            return false;
        }
        let Some((serial, index)) = at else {
            // It never opened: nothing of it is done.
            return true;
        };
        let still = self.monitor.completed(serial, &mut self.completed);
        // Outcomes behind the record that hangs do not count.
        self.completed.resize(index as usize, RawOutcome::default());
        still
    }
}

impl Crew {
    /// Looks at every seat once.
    pub(super) fn check(self: &Arc<Self>, now: Instant) {
        let mut notices = Notices::default();
        let mut state = self.lock();
        for seat in 0..state.seats.len() {
            let given_up = match &mut state.seats[seat].phase {
                Phase::Idle | Phase::Finishing => false,
                Phase::Calling(call) => call.is_overrun(now) && call.note_completed(),
                Phase::Creating { since, .. } => {
                    now.saturating_duration_since(*since) >= self.settings.create_timeout
                }
                Phase::Aside { since, .. } => {
                    now.saturating_duration_since(*since) >= self.settings.drain_timeout
                }
            };
            if given_up {
                self.give_up(&mut state, seat, &mut notices);
            }
        }
        if now >= state.health_due {
            state.health_due = now + self.settings.health_every;
            self.ask_health(&mut state, &mut notices);
        }
        if !state.waiting.is_empty() && state.has_room() {
            // Those whose turn it was have not come: their records may be gone.
            state.turns.forget();
            state.tell_waiting(&mut notices);
        }
        drop(state);
        notices.deliver();
    }

    /// Abandons the thread of a seat and seats another.
    fn give_up(self: &Arc<Self>, state: &mut State, seat: usize, notices: &mut Notices) {
        let place = &mut state.seats[seat];
        place.incarnation = 0;
        place.alive = false;
        place.parked = false;
        let phase = std::mem::replace(&mut place.phase, Phase::Idle);
        let errands: Vec<Errand> = place.errands.drain(..).collect();
        state.threads -= 1;
        for errand in errands {
            match errand {
                // Its instance, if it has one, is on the abandoned thread.
                Errand::Leave(tenant) => tenant.let_go(true),
                Errand::TellNews(_) | Errand::AskHealth => {}
                probe @ Errand::Probe { .. } => state.seats[seat].errands.push_back(probe),
            }
        }
        self.give_up_work(state, seat, phase, notices);
        state.tell_waiting(notices);
        if state.closing {
            self.seat_given_up();
        } else {
            self.rouse(state, seat, notices);
        }
    }

    fn give_up_work(&self, state: &mut State, seat: usize, phase: Phase, notices: &mut Notices) {
        match phase {
            Phase::Idle | Phase::Finishing => {}
            Phase::Calling(call) => {
                let (tenant, timeout) = (&call.tenant, call.tenant.setup.timeout);
                let why = format!("a call hangs on one record for longer than {timeout:?}");
                tracing::error!(handler = %tenant.setup.name, worker = seat, "{why}; its thread is given up");
                tenant.setup.stats.quarantined();
                tenant.setup.stats.failed(&why);
                tenant.set_ill(seat, None);
                tenant.setup.stats.gave_back(call.records);
                let bound = HUNG_PER_WORKER * self.workers();
                if let Some(standing) = state.tenants.get_mut(&tenant.id) {
                    standing.hung += 1;
                    if standing.hung >= bound {
                        let why = format!(
                            "too many hung calls: {bound} threads are stuck in it, until the service ends; fix what they wait for, \
                             then run `sluicegate handlers restart {}`",
                            tenant.setup.name
                        );
                        state.trip(tenant, &why, notices);
                    }
                }
                // Said under the lock: the call may return at any moment, and its thread, which learns of this from the
                // lock, must not be heard first.
                call.home.push(PumpMessage::Overrun {
                    flight: call.flight,
                    completed: call.completed,
                });
            }
            Phase::Creating {
                tenant, job, reply, ..
            } => {
                let limit = self.settings.create_timeout;
                let why = format!("building an instance did not end within {limit:?}");
                tenant.setup.stats.quarantined();
                if let Some(reply) = reply {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.try_send(Err(why.clone()));
                }
                if let Some(job) = job {
                    notices.not_run(job);
                }
                state.instance_died(seat, &tenant, &why, notices);
            }
            Phase::Aside {
                tenant, leaving, ..
            } => {
                tracing::error!(handler = %tenant.setup.name, worker = seat, "an instance hangs beside its records (health, partitions, drain or drop); its thread is given up");
                tenant.setup.stats.quarantined();
                tenant.set_ill(seat, None);
                if leaving {
                    tenant.let_go(true);
                }
            }
        }
    }
}
