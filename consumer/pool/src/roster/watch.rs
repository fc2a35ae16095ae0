//! What time brings: calls that have timed out, health checks that are due.
//!
//! ```text
//!  current record changes ─► time restarts
//!  timeout ─► cancel flag set ─► grace: a tenth of the timeout, at most 1 s ─► still the same record ─┐
//!    ┌──────────────────────────────────────────────────────────────────────────────────────────────────┘
//!    ├─► a kind that can: killed, so that the call returns as failed ─► 2 s later still there ─┐
//!    └─► abandon: TimedOut to the pump, with the outcomes so far · another thread for the slot ◄─┘
//!  4 × workers of one handler hang at once, in calls or anything else ─► tripped: each costs a thread until it returns
//! ```
//!
//! The timeout is measured per record and not per call, because the number of records per call is chosen at run time;
//! for a handler that takes batches the call is the unit. Progress is read again just before a thread is abandoned: a
//! call that has progressed or returned in between is not to blame, and its worker reports the outcomes.

use std::sync::Arc;
use std::time::Instant;

use sluicegate_engine::dispatch::{BatchId, Inbox, Published};

use super::{Effect, Effects, HungIn, Roster, WorkerId};
use crate::error::ProbeError;
use crate::member::{MemberId, PoolMember};
use crate::restart::Failure;
use crate::roster::call::{Call, CallCheck};
use crate::roster::slot::{Lifecycle, Phase, WorkerCommand};
use crate::roster::state::{AbandonedThread, MemberState, TrippedBy};

/// Hung threads of one handler, per worker, at which it is tripped.
const MAX_HUNG_PER_WORKER: usize = 4;
/// As above, for a handler with many workers: it leaves threads of the process to others.
const MAX_HUNG_PER_HANDLER: usize = 64;

impl Roster {
    /// Checks every slot once.
    pub(super) fn tick(&mut self, now: Instant, effects: &mut Effects) {
        for at in 0..self.slots.len() {
            match &mut self.slots[at].phase {
                Phase::Idle | Phase::Finishing => {}
                Phase::Calling(call) => match call.check(now) {
                    CallCheck::InTime => {}
                    CallCheck::Cancel(flag) => effects.push(Effect::Cancel(flag)),
                    CallCheck::Stop(flag) => effects.push(Effect::Stop(flag)),
                    CallCheck::Kill(monitor, serial) => {
                        effects.push(Effect::Kill(monitor, serial));
                    }
                    CallCheck::Abandon(published) => self.abandon(at, published, now, effects),
                },
                Phase::Creating { since, .. } => {
                    if now.saturating_duration_since(*since) >= self.settings.create_timeout {
                        self.abandon(at, Published::default(), now, effects);
                    }
                }
                Phase::LifecycleCall { since, call, .. } => {
                    let timeout = match call {
                        Lifecycle::Health => self.settings.health_timeout,
                        Lifecycle::Leave | Lifecycle::Other => self.settings.drain_timeout,
                    };
                    if now.saturating_duration_since(*since) >= timeout {
                        self.abandon(at, Published::default(), now, effects);
                    }
                }
            }
        }
        self.untrip_returned(effects);
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
    fn abandon(&mut self, at: usize, published: Published, now: Instant, effects: &mut Effects) {
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
                handler: Arc::clone(&member.setup.name),
                present: self.members.keys().copied().collect(),
            };
            self.abandoned.insert(thread, abandoned);
            self.settings.hung.abandoned(&member.setup.name);
        }
        let member = phase.member().cloned();
        match phase {
            Phase::Idle | Phase::Finishing => {}
            Phase::Calling(call) => self.call_abandoned(at, call, published, effects),
            creating @ Phase::Creating { .. } => {
                self.creation_abandoned(at, creating, now, effects);
            }
            Phase::LifecycleCall { member, call, .. } => {
                let hung_in = HungIn::LifecycleCall;
                effects.push(Effect::Abandoned(Arc::clone(&member), at, hung_in));
                match call {
                    Lifecycle::Leave => self.worker_released(&member, true, effects),
                    Lifecycle::Health => {
                        let timeout = self.settings.health_timeout;
                        let why = format!("the health check timed out after {timeout:?}");
                        self.health_checked(at, &member, Some(why), now, effects);
                        self.hung_at(at, member.id);
                    }
                    Lifecycle::Other => {}
                }
            }
        }
        if let Some(member) = member {
            self.trip_if_hung(&member, effects);
        }
        self.notify_waiting(effects);
        match self.closing {
            true => effects.push(Effect::ThreadEnded),
            false => self.wake_or_spawn(at, effects),
        }
    }

    fn hung_at(&mut self, at: usize, member: MemberId) {
        if let Some(state) = self.members.get_mut(&member) {
            state.hung_at(at);
        }
    }

    /// What the running call of a batch has published so far; `None` if the batch is not in a call.
    pub(crate) fn published(&self, reply_to: &Arc<Inbox>, batch: BatchId) -> Option<Published> {
        self.slots.iter().find_map(|slot| match &slot.phase {
            Phase::Calling(call) if call.is_of(reply_to, batch) => call.published(),
            _ => None,
        })
    }

    fn call_abandoned(
        &mut self,
        at: usize,
        call: Call,
        published: Published,
        effects: &mut Effects,
    ) {
        let member = Arc::clone(&call.member);
        let timeout = member.setup.timeout;
        effects.push(Effect::Abandoned(
            Arc::clone(&member),
            at,
            HungIn::Call(timeout),
        ));
        effects.push(Effect::TimedOut(call.timed_out(published)));
    }

    /// Trips a member that has hung if too many threads of its handler hang, whatever generation of it, or too many in the process.
    fn trip_if_hung(&mut self, member: &Arc<PoolMember>, effects: &mut Effects) {
        let bound = self.hung_bound();
        let hung = self.settings.hung.of(&member.setup.name);
        let is_tripped = |state: &MemberState| state.tripped.is_some();
        if self.members.get(&member.id).is_none_or(is_tripped)
            || (hung < bound && !self.settings.hung.is_full())
        {
            return;
        }
        let in_process = self.settings.hung.count();
        let most = self.settings.hung.most();
        let returned = match self.settings.hung.is_full() {
            true => "all",
            false => "half",
        };
        let why = format!(
            "too many hung threads: {hung} of this handler's and {in_process} in this process ({most}) are stuck in calls, creations, health checks \
             or other lifecycle calls of handlers; fix what they wait for: it runs again by itself once {returned} of its threads have returned, or after \
             `sluicegate handlers restart {}`",
            member.setup.name
        );
        self.trip(member, TrippedBy::Hangs, why, effects);
    }

    /// Number of hung threads of a handler from which on each further one trips it.
    fn hung_bound(&self) -> usize {
        (MAX_HUNG_PER_WORKER * self.slots.len()).min(MAX_HUNG_PER_HANDLER)
    }

    /// Members that were tripped by hung threads run again once most of those of their handler have returned; while the process has too many,
    /// once all have. Threads of other pools count too: it is checked at each tick.
    fn untrip_returned(&mut self, effects: &mut Effects) {
        let most = match self.settings.hung.is_full() {
            true => 0,
            false => self.hung_bound() / 2,
        };
        let tripped = self.members.values();
        let tripped = tripped.filter(|state| state.tripped == Some(TrippedBy::Hangs));
        let returned: Vec<_> = tripped
            .filter(|state| self.settings.hung.of(&state.member.setup.name) <= most)
            .map(|state| Arc::clone(&state.member))
            .collect();
        for member in returned {
            self.reset(&member, effects);
        }
    }

    /// An abandoned thread has returned after all: its place is free again.
    pub(super) fn abandoned_ended(&mut self, worker: WorkerId, effects: &mut Effects) {
        if let Some(thread) = self.abandoned.remove(&worker) {
            self.settings.hung.returned(&thread.handler);
            self.untrip_returned(effects);
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
        match reply {
            Some(reply) => effects.push(Effect::Answer(reply, Err(error))),
            // Without a batch it was built by a health check, or the batch was recalled.
            None => {
                effects.extend(item.map(Effect::NotRun));
                self.health_checked(at, &member, Some(why.clone()), now, effects);
                self.hung_at(at, member.id);
            }
        }
        self.instance_failed((at, &member), Failure::Unavailable, &why, now, effects);
    }
}
