//! Members that leave: queued batches return, then every worker drains and drops its instance.

use std::sync::Arc;

use super::{Effect, Effects, Roster};
use crate::member::PoolMember;
use crate::roster::slot::WorkerCommand;
use crate::roster::state::ReleaseProgress;

impl Roster {
    /// Removes a member. The thread pool closes with its last one.
    pub(super) fn leave(&mut self, member: &Arc<PoolMember>, effects: &mut Effects) {
        let Some(state) = self.members.remove(&member.id) else {
            return;
        };
        self.fair.remove(member.id);
        self.backoffs.end(member.id);
        self.send_back(member.id, effects);
        self.closing |= self.members.is_empty();
        let mut progress = ReleaseProgress {
            workers_left: 0,
            abandoned: self
                .abandoned
                .values()
                .any(|thread| thread.member == member.id || thread.present.contains(&member.id)),
        };
        for at in 0..self.slots.len() {
            // A probe after the release would build an instance that no release drops.
            let stays = |command: &WorkerCommand| !command.is_probe_of(member.id);
            self.slots[at].commands.retain(stays);
            if self.slots[at].alive {
                let command = WorkerCommand::Leave(Arc::clone(member));
                self.slots[at].commands.push_back(command);
                self.wake_or_spawn(at, effects);
                progress.workers_left += 1;
            }
        }
        self.leaving.insert(member.id, (state, progress));
        self.end_release(member, effects);
    }

    /// One worker has dropped its instance of a leaving member, or was abandoned.
    pub(super) fn worker_released(
        &mut self,
        member: &Arc<PoolMember>,
        abandoned: bool,
        effects: &mut Effects,
    ) {
        if let Some((_, progress)) = self.leaving.get_mut(&member.id) {
            progress.workers_left = progress.workers_left.saturating_sub(1);
            progress.abandoned |= abandoned;
        }
        self.end_release(member, effects);
    }

    fn end_release(&mut self, member: &Arc<PoolMember>, effects: &mut Effects) {
        let leaving = self.leaving.get(&member.id);
        if let Some(release) = leaving.and_then(|(_, progress)| progress.result()) {
            self.leaving.remove(&member.id);
            effects.push(Effect::Released(Arc::clone(member), release));
        }
    }
}
