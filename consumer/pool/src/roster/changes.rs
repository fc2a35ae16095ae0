//! Changes that running instances are told of: probes, configs, partitions.
//!
//! A config is tried on one instance by a probe. Once that one has accepted it, it becomes the member's config, and all
//! other threads are commanded to apply it between two batches. A probe that no worker has started can be cancelled; one
//! that a worker has started ends with an answer, so that a config is not applied after its caller was told that it is
//! not.

use std::sync::Arc;

use sluicegate_engine::dispatch::{Inbox, OwnedPartition};

use super::{Effects, Probe, ProbeId, ProbeReply, Roster};
use crate::member::{Config, PoolMember};
use crate::roster::slot::{Phase, ProbeCommand, WorkerCommand, WorkerSlot};

impl Roster {
    /// Commands a worker to check an instance, which it builds first if it has none. With `keep` it keeps an instance that
    /// it has built. `new_config` is applied before the check.
    pub(crate) fn probe(
        &mut self,
        member: &Arc<PoolMember>,
        keep: bool,
        new_config: Option<Arc<str>>,
        reply: ProbeReply,
        effects: &mut Effects,
    ) -> ProbeId {
        self.last_probe += 1;
        let id = ProbeId(self.last_probe);
        let new_config = new_config.map(|json| {
            self.last_config += 1;
            Config {
                serial: self.last_config,
                json,
            }
        });
        let idle = |slot: &WorkerSlot| matches!(slot.phase, Phase::Idle) && slot.bound.is_empty();
        // A worker that only delivers outcomes is free soon; one in a call may hang.
        let soon =
            |slot: &WorkerSlot| matches!(slot.phase, Phase::Finishing) && slot.bound.is_empty();
        let at = self.slots.iter().position(idle);
        let at = at.or_else(|| self.slots.iter().position(soon)).unwrap_or(0);
        let command = WorkerCommand::Probe(ProbeCommand {
            id,
            member: Arc::clone(member),
            keep,
            new_config,
            reply,
        });
        self.slots[at].commands.push_back(command);
        self.wake_or_spawn(at, effects);
        id
    }

    /// Cancels a probe; `false` if a worker has started or answered it.
    pub(crate) fn cancel_probe(&mut self, id: ProbeId) -> bool {
        let is_it = |command: &WorkerCommand| match command {
            WorkerCommand::Probe(probe) => probe.id == id,
            _ => false,
        };
        for slot in &mut self.slots {
            if let Some(at) = slot.commands.iter().position(is_it) {
                slot.commands.remove(at);
                return true;
            }
        }
        false
    }

    /// The probe of a slot was passed: its config, if it had one, becomes the member's, and the other threads apply it.
    pub(super) fn config_accepted(&mut self, at: usize, probe: &Probe, effects: &mut Effects) {
        if let Some(config) = &probe.new_config
            && let Some(state) = self.members.get_mut(&probe.member.id)
        {
            state.config = config.clone();
            self.notify_change(&probe.member, Some(at), effects);
        }
    }

    pub(super) fn owned_changed(
        &mut self,
        member: &Arc<PoolMember>,
        reply_to: &Arc<Inbox>,
        partitions: &[OwnedPartition],
        effects: &mut Effects,
    ) {
        let Some(state) = self.members.get_mut(&member.id) else {
            return;
        };
        if state.set_owned(reply_to, partitions) {
            self.notify_change(member, None, effects);
        }
    }

    /// Commands every thread, except that of one slot, to apply the member's partitions and config to its instance before
    /// the next batch. An instance built later gets them when it is built.
    fn notify_change(
        &mut self,
        member: &Arc<PoolMember>,
        except: Option<usize>,
        effects: &mut Effects,
    ) {
        for at in 0..self.slots.len() {
            if self.slots[at].alive && Some(at) != except {
                let command = WorkerCommand::NotifyChange(Arc::clone(member));
                self.slots[at].commands.push_back(command);
                self.wake_or_spawn(at, effects);
            }
        }
    }
}
