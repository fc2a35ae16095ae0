//! What time brings: calls that have timed out, health checks that are due.
//!
//! ```text
//!  current record changes ─► time restarts
//!  timeout ─► cancel flag set ─► grace: a tenth of the timeout, at most 1 s ─► still the same record ─► abandon:
//!               TimedOut to the pump, with the outcomes so far · another thread for the slot · quarantined + 1
//!  4 × workers of one handler hang at once ─► tripped: each hung call costs a thread until the process exits
//! ```
//!
//! The timeout is measured per record and not per call, because the number of records per call is chosen at run time;
//! for a handler that takes batches the call is the unit. Progress is read again just before a thread is abandoned: a
//! call that has progressed or returned in between is not to blame, and its worker reports the outcomes.

use std::sync::Arc;
use std::time::Instant;

use sluicegate_engine::dispatch::{BatchId, Inbox};
use sluicegate_runtime::RawOutcome;

use super::{Effect, Effects, HungIn, Roster, WorkerId};
use crate::error::ProbeError;
use crate::roster::call::{Call, CallCheck};
use crate::roster::slot::{Phase, WorkerCommand};
use crate::roster::state::{AbandonedThread, MemberState};

/// Hung calls of one handler, per worker, at which it is tripped; each of them blocks a thread for good.
const MAX_HUNG_CALLS_PER_WORKER: usize = 4;

impl Roster {
    /// Checks every slot once.
    pub(super) fn tick(&mut self, now: Instant, effects: &mut Effects) {
        for at in 0..self.slots.len() {
            match &mut self.slots[at].phase {
                Phase::Idle | Phase::Finishing => {}
                Phase::Calling(call) => match call.check(now) {
                    CallCheck::InTime => {}
                    CallCheck::Cancel(flag) => effects.push(Effect::Cancel(flag)),
                    CallCheck::Abandon(completed) => self.abandon(at, completed, now, effects),
                },
                Phase::Creating { since, .. } => {
                    if now.saturating_duration_since(*since) >= self.settings.create_timeout {
                        self.abandon(at, Vec::new(), now, effects);
                    }
                }
                Phase::LifecycleCall { since, .. } => {
                    if now.saturating_duration_since(*since) >= self.settings.drain_timeout {
                        self.abandon(at, Vec::new(), now, effects);
                    }
                }
            }
        }
        if self.backoffs.expire(now) {
            self.notify_waiting(effects);
        }
        if now >= self.health_due {
            self.health_due = now + self.settings.health_interval;
            self.request_health_checks(now, effects);
        }
        self.offer_unused_room(effects);
    }

    /// Abandons the thread of a slot and starts another one.
    fn abandon(
        &mut self,
        at: usize,
        completed: Vec<RawOutcome>,
        now: Instant,
        effects: &mut Effects,
    ) {
        let slot = &mut self.slots[at];
        slot.alive = false;
        slot.parked = false;
        let thread = WorkerId {
            slot: at,
            thread_epoch: slot.thread_epoch,
        };
        self.threads -= 1;
        let phase = std::mem::take(&mut slot.phase);
        for command in std::mem::take(&mut slot.commands) {
            match command {
                // The member's instance, if any, is on the abandoned thread.
                WorkerCommand::Leave(member) => self.worker_released(&member, true, effects),
                WorkerCommand::NotifyChange(_) | WorkerCommand::CheckHealth => {}
                probe @ WorkerCommand::Probe(_) => self.slots[at].commands.push_back(probe),
            }
        }
        if let Some(member) = phase.member() {
            let abandoned = AbandonedThread {
                member: member.id,
                present: self.members.keys().copied().collect(),
                in_call: matches!(phase, Phase::Calling(_)),
            };
            self.abandoned.insert(thread, abandoned);
        }
        match phase {
            Phase::Idle | Phase::Finishing => {}
            Phase::Calling(call) => self.call_abandoned(at, call, completed, effects),
            creating @ Phase::Creating { .. } => {
                self.creation_abandoned(at, creating, now, effects);
            }
            Phase::LifecycleCall {
                member, leaving, ..
            } => {
                let hung_in = HungIn::LifecycleCall;
                effects.push(Effect::Abandoned(Arc::clone(&member), at, hung_in));
                if leaving {
                    self.worker_released(&member, true, effects);
                }
            }
        }
        self.notify_waiting(effects);
        match self.closing {
            true => effects.push(Effect::ThreadEnded),
            false => self.wake_or_spawn(at, effects),
        }
    }

    /// What the running call of a batch has published so far; `None` if the batch is not in a call.
    pub(crate) fn published(
        &self,
        reply_to: &Arc<Inbox>,
        batch: BatchId,
    ) -> Option<Vec<RawOutcome>> {
        self.slots.iter().find_map(|slot| match &slot.phase {
            Phase::Calling(call) if call.is_of(reply_to, batch) => call.published(),
            _ => None,
        })
    }

    fn call_abandoned(
        &mut self,
        at: usize,
        call: Call,
        completed: Vec<RawOutcome>,
        effects: &mut Effects,
    ) {
        let member = Arc::clone(&call.member);
        let timeout = member.setup.timeout;
        effects.push(Effect::Abandoned(
            Arc::clone(&member),
            at,
            HungIn::Call(timeout),
        ));
        effects.push(Effect::TimedOut(call.timed_out(completed)));
        let bound = MAX_HUNG_CALLS_PER_WORKER * self.slots.len();
        let hangs_in_it = |thread: &&AbandonedThread| thread.in_call && thread.member == member.id;
        let hung = self.abandoned.values().filter(hangs_in_it).count();
        if hung >= bound {
            let why = format!(
                "too many hung calls: {bound} threads are stuck in this handler until the process exits; fix what they wait for, \
                 then run `sluicegate handlers restart {}`",
                member.setup.name
            );
            self.trip(&member, why, effects);
        }
    }

    fn creation_abandoned(&mut self, at: usize, phase: Phase, now: Instant, effects: &mut Effects) {
        let Phase::Creating {
            member,
            item,
            reply,
            ..
        } = phase
        else {
            return;
        };
        let error = ProbeError::Abandoned(self.settings.create_timeout);
        let why = error.to_string();
        effects.push(Effect::Abandoned(Arc::clone(&member), at, HungIn::Creation));
        let unhealthy = |state: &MemberState| state.unhealthy.contains_key(&at);
        match (reply, item) {
            (Some(reply), _) => effects.push(Effect::Answer(reply, Err(error))),
            (None, Some(item)) => effects.push(Effect::NotRun(item)),
            // Built by a health check, or for a batch that was recalled.
            (None, None) if self.members.get(&member.id).is_some_and(unhealthy) => {
                self.health_checked(at, &member, Some(why.clone()), now, effects);
            }
            (None, None) => {}
        }
        self.instance_failed(at, &member, &why, now, effects);
    }
}
