//! A worker's slot: the thread that holds it, what that thread is doing, and its own queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::member::{Config, MemberId, PoolMember};
use crate::roster::call::Call;
use crate::roster::items::{ProbeReply, WorkItem};

/// Maximum number of doublings of the delay between two attempts of health checks to start a thread.
const MAX_START_DOUBLINGS: u32 = 6;

/// A worker's slot.
#[derive(Default)]
pub(crate) struct WorkerSlot {
    /// Number of the thread that holds the slot, or of the last one.
    pub(super) thread_epoch: u64,
    /// A thread holds it, or is being started.
    pub(super) alive: bool,
    /// Its thread waits for work and has not been woken yet.
    pub(super) parked: bool,
    pub(crate) phase: Phase,
    /// Batches bound to this worker.
    pub(super) bound: VecDeque<WorkItem>,
    pub(crate) commands: VecDeque<WorkerCommand>,
    /// The last batch was a bound one: bound and shared batches alternate.
    pub(super) bound_was_last: bool,
    /// Consecutive failures to start a thread, and when a health check may try again.
    start_failures: u32,
    start_due: Option<Instant>,
}

impl WorkerSlot {
    /// Its thread runs.
    pub(super) fn started(&mut self) {
        self.start_failures = 0;
        self.start_due = None;
    }

    /// Its thread could not be started. The delay until the next try doubles, from `interval`: what the operating system
    /// lacks is not there again a moment later.
    pub(super) fn not_started(&mut self, interval: Duration, now: Instant) {
        let doublings = self.start_failures.min(MAX_START_DOUBLINGS);
        self.start_failures = self.start_failures.saturating_add(1);
        self.start_due = Some(now + interval * (1 << doublings));
    }

    /// When its thread may be started again, if it could not be.
    pub(super) fn start_due(&self) -> Option<Instant> {
        self.start_due
    }

    /// Whether a health check may start its thread.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.start_due.is_none_or(|due| due <= now)
    }

    /// Number of batches that its thread has.
    pub(super) fn busy(&self) -> usize {
        usize::from(!matches!(self.phase, Phase::Idle))
    }

    /// Whether its thread is in a call of the member.
    pub(super) fn is_calling(&self, member: MemberId) -> bool {
        matches!(&self.phase, Phase::Calling(call) if call.member.id == member)
    }
}

/// What a slot's thread is doing, as far as the watchdog must know.
#[derive(Default)]
pub(crate) enum Phase {
    #[default]
    Idle,
    /// Builds an instance: for `item`, for a probe that `reply` answers, or in a health check.
    Creating {
        since: Instant,
        member: Arc<PoolMember>,
        item: Option<WorkItem>,
        reply: Option<ProbeReply>,
    },
    Calling(Call),
    /// Delivers emits and outcomes; runs no plugin code.
    Finishing,
    /// Runs a lifecycle call on an instance (health check, drain, drop, partition or config change).
    LifecycleCall {
        since: Instant,
        member: Arc<PoolMember>,
        call: Lifecycle,
    },
}

/// A lifecycle call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// A health check.
    Health,
    /// The handler's release waits for it.
    Leave,
    /// Another one.
    Other,
}

impl Phase {
    /// The member whose code the thread runs.
    pub(super) fn member(&self) -> Option<&Arc<PoolMember>> {
        match self {
            Self::Idle | Self::Finishing => None,
            Self::Calling(call) => Some(&call.member),
            Self::Creating { member, .. } | Self::LifecycleCall { member, .. } => Some(member),
        }
    }

    pub(super) fn lifecycle_call(member: &Arc<PoolMember>, call: Lifecycle, now: Instant) -> Self {
        Self::LifecycleCall {
            since: now,
            member: Arc::clone(member),
            call,
        }
    }
}

/// A command to one worker; takes precedence over batches.
pub(crate) enum WorkerCommand {
    Probe(ProbeCommand),
    Leave(Arc<PoolMember>),
    /// The handler's partitions or config have changed.
    NotifyChange(Arc<PoolMember>),
    CheckHealth,
}

impl WorkerCommand {
    pub(super) fn is_probe_of(&self, member: MemberId) -> bool {
        matches!(self, Self::Probe(probe) if probe.member.id == member)
    }
}

/// Number of a probe within its thread pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeId(pub(super) u64);

/// A health check that a caller waits for.
pub(crate) struct ProbeCommand {
    pub(super) id: ProbeId,
    pub(super) member: Arc<PoolMember>,
    /// Keep an instance that the probe has built; otherwise it is dropped.
    pub(super) keep: bool,
    /// New config to apply, if any.
    pub(super) new_config: Option<Config>,
    pub(super) reply: ProbeReply,
}

/// A worker's next step.
pub(crate) enum Task {
    Call(WorkItem),
    /// Build an instance with this config; the batch waits in the slot's phase.
    Create(Arc<PoolMember>, Config),
    Probe(Probe),
    Leave(Arc<PoolMember>),
    NotifyChange(Arc<PoolMember>),
    /// Check the health of all instances, then build those that are missing for these members.
    CheckHealth(Vec<Arc<PoolMember>>),
    /// The slot belongs to another thread, or the thread pool is closing.
    Exit,
}

/// Health check of an instance, which is built first if there is none.
pub(crate) struct Probe {
    pub(crate) member: Arc<PoolMember>,
    /// Keep an instance that the probe has built; otherwise it is dropped.
    pub(crate) keep: bool,
    /// The current config, for an instance that is built.
    pub(crate) config: Config,
    /// New config to apply, if any.
    pub(crate) new_config: Option<Config>,
}

/// What a worker's thread does next.
pub(crate) enum Next {
    Task(Task),
    /// Wait until it is woken, or until a backoff ends.
    Park(Option<Instant>),
}

/// Answer to a worker that has built the instance for a batch.
pub(crate) enum Created {
    /// Run it now.
    Call(WorkItem),
    /// It was recalled; the instance is kept for the next batch.
    Recalled,
    /// The thread was abandoned: batch and slot belong to another thread.
    Abandoned,
}

/// Answer to a worker that would build an instance in place of an unhealthy one.
pub(crate) enum Rebuild {
    /// Build it with this config.
    Build(Config),
    /// It is too early, or the handler has left.
    NotNow,
    /// The thread was abandoned.
    Abandoned,
}
