//! Failures of instances and threads: who backs off, who is tripped, which batches return.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Effect, Effects, Roster, WorkItem, WorkerId};
use crate::error::ProbeError;
use crate::member::{MemberId, PoolMember};
use crate::restart::{AfterFailure, Failure};
use crate::roster::slot::{Phase, WorkerCommand};
use crate::roster::state::TrippedBy;

impl Roster {
    /// An instance at a slot failed or could not be built: its member backs off there, or is tripped.
    pub(super) fn instance_failed(
        &mut self,
        (at, member): (usize, &Arc<PoolMember>),
        failure: Failure,
        why: &str,
        now: Instant,
        effects: &mut Effects,
    ) {
        let Some(state) = self.members.get_mut(&member.id) else {
            return;
        };
        let policy = &member.setup.restart;
        match state.backoff.record_failure(failure, now, policy) {
            AfterFailure::Rebuild(wait) => self.back_off(at, member.id, now + wait, now, effects),
            AfterFailure::Trip => {
                let failures = u64::from(policy.max_restarts) + 1;
                let why = format!(
                    "instances failed {failures} times within {:?} without an acknowledged record in between; last failure: {why}",
                    policy.restart_window
                );
                self.trip(member, TrippedBy::Failures, why, effects);
            }
        }
    }

    /// The instance of a member at a slot could not be built, or is of no use because what it needs is away: the member is unhealthy there
    /// until one is built, and backs off.
    pub(super) fn unavailable(
        &mut self,
        at: usize,
        member: &Arc<PoolMember>,
        why: String,
        now: Instant,
        effects: &mut Effects,
    ) {
        self.instance_failed((at, member), Failure::Unavailable, &why, now, effects);
        self.health_checked(at, member, Some(why), now, effects);
    }

    fn back_off(
        &mut self,
        at: usize,
        member: MemberId,
        until: Instant,
        now: Instant,
        effects: &mut Effects,
    ) {
        if until <= now {
            return;
        }
        self.backoffs.start(at, member, until);
        send_back_from(&mut self.slots[at].bound, member, effects);
        if self.backoffs.at_all(self.slots.len(), member) {
            self.fair.withdraw(member);
            send_back_from(&mut self.queue, member, effects);
        }
    }

    /// Trips the member: it takes no batch until it is reset.
    pub(super) fn trip(
        &mut self,
        member: &Arc<PoolMember>,
        by: TrippedBy,
        why: String,
        effects: &mut Effects,
    ) {
        if let Some(state) = self.members.get_mut(&member.id) {
            state.tripped = Some(by);
            effects.push(Effect::Tripped(Arc::clone(member), why));
        }
        self.fair.withdraw(member.id);
        self.send_back(member.id, effects);
        // A later submission reads the state; inboxes refused before must be made to read it too.
        self.notify_waiting(effects);
    }

    /// The thread could not be started: the slot's own queue returns, and the shared queue too if no thread remains. The
    /// handlers of these batches are unhealthy and back off there: what the operating system lacks may be there again later.
    pub(super) fn thread_not_started(
        &mut self,
        worker: WorkerId,
        error: io::Error,
        now: Instant,
        effects: &mut Effects,
    ) {
        if self.slot_of(worker).is_none() {
            return;
        }
        let slot = &mut self.slots[worker.slot];
        slot.alive = false;
        slot.phase = Phase::Idle;
        slot.not_started(self.settings.health_interval, now);
        self.threads -= 1;
        let error = ProbeError::NoThread(Arc::new(error));
        let why = error.to_string();
        for command in std::mem::take(&mut slot.commands) {
            match command {
                WorkerCommand::Probe(probe) => {
                    effects.push(Effect::Answer(probe.reply, Err(error.clone())));
                }
                WorkerCommand::Leave(member) => self.worker_released(&member, false, effects),
                WorkerCommand::NotifyChange(_) | WorkerCommand::CheckHealth => {}
            }
        }
        let mut items = std::mem::take(&mut self.slots[worker.slot].bound);
        if self.threads == 0 {
            items.append(&mut self.queue);
        }
        for item in items {
            let member = Arc::clone(&item.member);
            effects.push(Effect::NotRun(item));
            let until = self.slots[worker.slot].start_due().unwrap_or(now);
            self.back_off(worker.slot, member.id, until, now, effects);
            self.health_checked(worker.slot, &member, Some(why.clone()), now, effects);
        }
        if self.closing {
            effects.push(Effect::ThreadEnded);
        }
    }

    /// Returns the queued batches of a member to their inboxes.
    pub(super) fn send_back(&mut self, member: MemberId, effects: &mut Effects) {
        let bound = self.slots.iter_mut().map(|slot| &mut slot.bound);
        for queue in bound.chain([&mut self.queue]) {
            send_back_from(queue, member, effects);
        }
    }

    /// Returns cancelled batches that have not started: queued ones, and those whose instance is still being built.
    pub(super) fn send_back_cancelled(&mut self, effects: &mut Effects) {
        let bound = self.slots.iter_mut().map(|slot| &mut slot.bound);
        for queue in bound.chain([&mut self.queue]) {
            send_back_where(queue, |item| item.batch.cancel.is_set(), effects);
        }
        for slot in &mut self.slots {
            if let Phase::Creating { item, .. } = &mut slot.phase
                && let Some(item) = item.take_if(|item| item.batch.cancel.is_set())
            {
                effects.push(Effect::NotRun(item));
            }
        }
    }
}

fn send_back_from(queue: &mut VecDeque<WorkItem>, member: MemberId, effects: &mut Effects) {
    send_back_where(queue, |item| item.member.id == member, effects);
}

fn send_back_where(
    queue: &mut VecDeque<WorkItem>,
    wanted: impl Fn(&WorkItem) -> bool,
    effects: &mut Effects,
) {
    for item in std::mem::take(queue) {
        match wanted(&item) {
            true => effects.push(Effect::NotRun(item)),
            false => queue.push_back(item),
        }
    }
}
