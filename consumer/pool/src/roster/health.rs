//! Health checks, and instances that are built in place of unhealthy ones.
//!
//! With a closed gate no batch builds an instance, and the gate opens only to healthy ones. So a health check builds an
//! instance in place of an unhealthy one that was dropped.

use std::sync::Arc;
use std::time::Instant;

use super::{Effect, Effects, Rebuild, Roster, WorkerId};
use crate::member::PoolMember;
use crate::roster::slot::{Phase, WorkerCommand};

impl Roster {
    /// The members that are unhealthy at a slot and do not back off there.
    pub(crate) fn unhealthy_at(&self, at: usize) -> Vec<Arc<PoolMember>> {
        let unhealthy = self.members.values().filter(|state| {
            let backs_off = self.backoffs.at(at, state.member.id);
            state.unhealthy.contains_key(&at) && state.tripped.is_none() && !backs_off
        });
        unhealthy.map(|state| Arc::clone(&state.member)).collect()
    }

    /// A health check is about to build an instance, which may hang.
    pub(crate) fn begin_rebuild(
        &mut self,
        worker: WorkerId,
        member: &Arc<PoolMember>,
        now: Instant,
    ) -> Rebuild {
        if self.slot_of(worker).is_none() {
            return Rebuild::Abandoned;
        }
        let interval = self.settings.health_interval;
        let Some(state) = self.members.get_mut(&member.id) else {
            return Rebuild::NotNow;
        };
        if !state.begin_rebuild(worker.slot, interval, now) {
            return Rebuild::NotNow;
        }
        self.slots[worker.slot].phase = Phase::Creating {
            since: now,
            member: Arc::clone(member),
            item: None,
            reply: None,
        };
        Rebuild::Build(state.config.clone())
    }

    /// Records the result of a health check at a slot; `None`: the instance is healthy.
    pub(super) fn health_checked(
        &mut self,
        at: usize,
        member: &Arc<PoolMember>,
        why: Option<String>,
        now: Instant,
        effects: &mut Effects,
    ) {
        let Some(state) = self.members.get_mut(&member.id) else {
            return;
        };
        match &why {
            Some(_) => state.set_unhealthy(at, now),
            None if state.unhealthy.remove(&at).is_none() => return,
            None => {}
        }
        effects.push(Effect::Health(Arc::clone(member), at, why));
    }

    /// Commands every thread to check the health of its instances, unless its last command is still pending. A slot without
    /// a thread gets one if an instance there was unhealthy: nothing else might start it, and the state would never end.
    pub(super) fn request_health_checks(&mut self, now: Instant, effects: &mut Effects) {
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            let pending = |command: &WorkerCommand| matches!(command, WorkerCommand::CheckHealth);
            let is_due = match slot.alive {
                true => !slot.commands.iter().any(pending),
                false => slot.may_start(now) && self.is_unhealthy_at(at),
            };
            if is_due {
                let commands = &mut self.slots[at].commands;
                commands.push_back(WorkerCommand::CheckHealth);
                self.wake_or_spawn(at, effects);
            }
        }
    }

    fn is_unhealthy_at(&self, at: usize) -> bool {
        let mut members = self.members.values();
        members.any(|state| state.unhealthy.contains_key(&at) && state.tripped.is_none())
    }
}
