//! The way of a worker: what it does next, and what it reports of the last task.
//!
//! Each call carries the thread's epoch: a thread abandoned in the meantime gets a refusal and exits.

use std::sync::Arc;
use std::time::Instant;

use sluicegate_runtime::CallMonitor;

use super::{Created, Effect, Effects, Next, Probe, Report, Roster, Task, WorkItem, WorkerId};
use crate::member::MemberId;
use crate::restart::Failure;
use crate::roster::call::Call;
use crate::roster::slot::{Lifecycle, Phase, ProbeCommand, WorkerCommand};

/// The monitor of a thread's instance of a member, if it has one.
pub(crate) type MonitorOf<'a> = &'a dyn Fn(MemberId) -> Option<Arc<dyn CallMonitor>>;

impl Roster {
    /// The thread has ended its last task, or has just started, or was woken: what it does next.
    pub(crate) fn next(
        &mut self,
        worker: WorkerId,
        monitor_of: MonitorOf<'_>,
        now: Instant,
        effects: &mut Effects,
    ) -> Next {
        let Some(slot) = self.slot_of(worker) else {
            return Next::Task(Task::Exit);
        };
        slot.parked = false;
        slot.started();
        // Only a finished task makes room; a thread that has just started does not.
        let came_free = slot.busy() > 0;
        slot.phase = Phase::Idle;
        if self.backoffs.expire(now) || came_free {
            self.notify_waiting(effects);
        }
        if let Some(task) = self.take_task(worker.slot, monitor_of, now) {
            return Next::Task(task);
        }
        let slot = &mut self.slots[worker.slot];
        if self.closing {
            slot.alive = false;
            self.threads -= 1;
            effects.push(Effect::ThreadEnded);
            return Next::Task(Task::Exit);
        }
        slot.parked = true;
        Next::Park(self.backoffs.first_end(worker.slot))
    }

    fn take_task(&mut self, at: usize, monitor_of: MonitorOf<'_>, now: Instant) -> Option<Task> {
        if let Some(command) = self.slots[at].commands.pop_front() {
            return Some(self.begin(at, command, monitor_of, now));
        }
        let item = self.next_item(at)?;
        let (phase, task) = match monitor_of(item.member.id) {
            Some(monitor) => (
                Phase::Calling(Call::of(&item, monitor, now)),
                Task::Call(item),
            ),
            None => {
                let member = Arc::clone(&item.member);
                let config = self.config(&member);
                let phase = Phase::Creating {
                    since: now,
                    member: Arc::clone(&member),
                    item: Some(item),
                    reply: None,
                };
                (phase, Task::Create(member, config))
            }
        };
        self.slots[at].phase = phase;
        Some(task)
    }

    fn begin(
        &mut self,
        at: usize,
        command: WorkerCommand,
        monitor_of: MonitorOf<'_>,
        now: Instant,
    ) -> Task {
        let (phase, task) = match command {
            WorkerCommand::Leave(member) => (
                Phase::lifecycle_call(&member, Lifecycle::Leave, now),
                Task::Leave(member),
            ),
            WorkerCommand::NotifyChange(member) => (
                Phase::lifecycle_call(&member, Lifecycle::Other, now),
                Task::NotifyChange(member),
            ),
            WorkerCommand::CheckHealth => {
                let mut missing = self.unhealthy_at(at);
                missing.retain(|member| monitor_of(member.id).is_none());
                // The worker announces each instance itself.
                (Phase::Finishing, Task::CheckHealth(missing))
            }
            WorkerCommand::Probe(ProbeCommand {
                member,
                keep,
                new_config,
                reply,
                ..
            }) => {
                let phase = Phase::Creating {
                    since: now,
                    member: Arc::clone(&member),
                    item: None,
                    reply: Some(reply),
                };
                let probe = Probe {
                    keep,
                    config: self.config(&member),
                    new_config,
                    member,
                };
                (phase, Task::Probe(probe))
            }
        };
        self.slots[at].phase = phase;
        task
    }

    /// The next batch that the thread of a slot can run; bound and shared ones alternate.
    fn next_item(&mut self, at: usize) -> Option<WorkItem> {
        let able = |item: &WorkItem| !self.backoffs.at(at, item.member.id);
        let shared = self.queue.iter().position(able);
        let slot = &mut self.slots[at];
        if !slot.bound.is_empty() && (shared.is_none() || !slot.bound_was_last) {
            slot.bound_was_last = true;
            return slot.bound.pop_front();
        }
        slot.bound_was_last = false;
        self.queue.remove(shared?)
    }

    /// The instance for a batch is built; returns the batch, unless it was recalled or the thread abandoned.
    pub(crate) fn created(
        &mut self,
        worker: WorkerId,
        monitor: Arc<dyn CallMonitor>,
        now: Instant,
    ) -> Created {
        let Some(slot) = self.slot_of(worker) else {
            return Created::Abandoned;
        };
        match std::mem::replace(&mut slot.phase, Phase::Finishing) {
            Phase::Creating {
                item: Some(item), ..
            } => {
                slot.phase = Phase::Calling(Call::of(&item, monitor, now));
                Created::Call(item)
            }
            _ => Created::Recalled,
        }
    }

    /// Applies a worker's report; `false` if its thread was abandoned, so that the report does not count.
    #[must_use]
    pub(crate) fn report(
        &mut self,
        worker: WorkerId,
        report: Report<'_>,
        now: Instant,
        effects: &mut Effects,
    ) -> bool {
        let Some(slot) = self.slot_of(worker) else {
            return false;
        };
        match report {
            Report::LifecycleCall(member) => {
                slot.phase = Phase::lifecycle_call(member, Lifecycle::Other, now);
            }
            Report::HealthCheck(member) => {
                slot.phase = Phase::lifecycle_call(member, Lifecycle::Health, now);
            }
            Report::HealthChecked(member, why) => {
                self.health_checked(worker.slot, member, why, now, effects);
            }
            Report::NotCreated(member, error) => {
                if let Phase::Creating {
                    item: Some(item), ..
                } = std::mem::replace(&mut slot.phase, Phase::Finishing)
                {
                    effects.push(Effect::NotRun(item));
                }
                let why = error.to_string();
                effects.push(Effect::Failed(Arc::clone(member), why.clone()));
                self.unavailable(worker.slot, member, why, now, effects);
            }
            Report::CallEnded {
                member,
                failed,
                made_progress,
            } => {
                slot.phase = Phase::Finishing;
                if made_progress && let Some(state) = self.members.get_mut(&member.id) {
                    state.backoff.clear();
                }
                match failed {
                    None => {}
                    Some((Failure::Unavailable, why)) => {
                        self.unavailable(worker.slot, member, why.to_owned(), now, effects);
                    }
                    Some((failure, why)) => {
                        self.instance_failed((worker.slot, member), failure, why, now, effects);
                    }
                }
            }
            Report::Probed(probe, result) => {
                if let Phase::Creating {
                    reply: Some(reply), ..
                } = std::mem::replace(&mut slot.phase, Phase::Finishing)
                {
                    if result.is_ok() {
                        self.config_accepted(worker.slot, probe, effects);
                    }
                    effects.push(Effect::Answer(reply, result));
                }
            }
            Report::Released(member) => {
                slot.phase = Phase::Finishing;
                self.worker_released(member, false, effects);
            }
        }
        true
    }
}
