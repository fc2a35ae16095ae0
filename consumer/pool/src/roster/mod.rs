//! The roster of a thread pool: which thread does what next. Pure: it starts no thread, reads no clock and sends nothing;
//! the count of hung threads, which the pools of a process share, is the only lock that it takes.
//!
//! ```text
//!  pump, registry ── submit, Event ─────────► ┌────────┐
//!  watchdog ──────── Event::Tick ───────────► │ Roster │ ──► Effect ──► the shell: threads, inboxes, counters
//!  worker ────────── next, created, Report ─► └────────┘
//! ```
//!
//! Whatever happens enters through one of these calls together with the time, and what is to be done comes out as
//! [`Effect`]s; calls that ask something (what a worker does next, whether a batch is accepted) are also answered. The
//! shell ([`crate::thread_pool`]) holds the roster under a lock and carries out the effects before it releases the lock.
//!
//! ```text
//!  a slot:  Idle ─┬─► Creating ─► Calling ─► Finishing ─► Idle
//!                 └─► LifecycleCall ────────────┘
//!  Creating, Calling, LifecycleCall past their timeout ─► abandoned: another thread takes the slot
//! ```
//!
//! The thread epoch is the number of the thread that holds a slot, and every report of a thread is checked against it.
//! An abandoned thread finds another number, discards its results and exits; without the check it would deliver outcomes
//! of records that the pump has given to another worker since (G14).
//!
//! The shared queue and the workers' own queues have room for one batch per slot in addition to the running ones: more
//! would wait behind slow calls, fewer would let workers idle between batches (ADR 0010). A refused submission registers
//! its inbox, and every event that makes room notifies it.

mod admission;
mod backoffs;
mod call;
mod changes;
mod effect;
mod failures;
mod health;
mod items;
mod release;
mod slot;
mod state;
mod watch;
mod work;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use sluicegate_engine::dispatch::{Inbox, OwnedPartition};

use crate::error::ProbeError;
use crate::fair_queue::FairQueue;
use crate::member::{Config, HandlerSetup, MemberId, PoolMember};
use crate::restart::Failure;
use crate::settings::ThreadPoolSettings;

use backoffs::Backoffs;
pub(crate) use call::TimedOutCall;
pub(crate) use effect::{Effect, Effects, HungIn};
pub(crate) use items::{ProbeReply, WorkItem, WorkerId};
#[cfg(test)]
pub(crate) use slot::Phase;
use slot::WorkerSlot;
pub(crate) use slot::{Created, Next, Probe, ProbeId, Rebuild, Task};
use state::{AbandonedThread, MemberState, ReleaseProgress};

/// State of a thread pool.
pub(crate) struct Roster {
    settings: ThreadPoolSettings,
    slots: Vec<WorkerSlot>,
    /// Batches that any worker may run.
    queue: VecDeque<WorkItem>,
    members: BTreeMap<MemberId, MemberState>,
    /// Members that have left, until no worker has an instance of them.
    leaving: BTreeMap<MemberId, (MemberState, ReleaseProgress)>,
    fair: FairQueue,
    backoffs: Backoffs,
    /// Inboxes whose submission was refused; notified once there is room.
    waiting: Vec<Arc<Inbox>>,
    /// The last member has left: threads exit once idle.
    closing: bool,
    /// Threads that hold a slot; abandoned ones do not count.
    threads: usize,
    /// Abandoned threads that still hang.
    abandoned: BTreeMap<WorkerId, AbandonedThread>,
    last_member: MemberId,
    last_thread_epoch: u64,
    last_probe: u64,
    last_config: u64,
    /// Time of the next health check.
    health_due: Instant,
}

/// What has happened.
pub(crate) enum Event<'a> {
    /// Time has passed: calls may have timed out, health checks may be due.
    Tick,
    /// A pump's partitions of a member, replacing those it announced before.
    Owned(&'a Arc<PoolMember>, &'a Arc<Inbox>, &'a [OwnedPartition]),
    /// Batches were cancelled.
    Recall,
    /// A tripped member runs again.
    Reset(&'a Arc<PoolMember>),
    /// A member leaves. The thread pool closes with its last member.
    Leave(&'a Arc<PoolMember>),
    /// The thread of [`Effect::Spawn`] could not be started.
    ThreadNotStarted(WorkerId, io::Error),
    /// An abandoned thread has returned after all, and has dropped its instances. Ignored for any other thread.
    AbandonedThreadEnded(WorkerId),
}

/// What a worker reports.
pub(crate) enum Report<'a> {
    /// The instance for a batch could not be built.
    NotCreated(&'a Arc<PoolMember>, &'a ProbeError),
    /// A call has ended.
    CallEnded {
        member: &'a Arc<PoolMember>,
        /// Why the instance is unusable, if so.
        failed: Option<(Failure, &'a str)>,
        /// A record was acknowledged, or dropped by its handler.
        made_progress: bool,
    },
    /// A lifecycle call begins, which may hang.
    LifecycleCall(&'a Arc<PoolMember>),
    /// As `LifecycleCall`, of a health check.
    HealthCheck(&'a Arc<PoolMember>),
    /// Result of a health check; `None`: the instance is healthy.
    HealthChecked(&'a Arc<PoolMember>, Option<String>),
    /// Result of a probe.
    Probed(&'a Probe, Result<(), ProbeError>),
    /// The member's instance of this thread, if any, is dropped.
    Released(&'a Arc<PoolMember>),
}

impl Roster {
    /// A roster without members and threads.
    pub(crate) fn new(settings: ThreadPoolSettings, now: Instant) -> Self {
        let workers = settings.workers.max(1);
        Self {
            slots: (0..workers).map(|_| WorkerSlot::default()).collect(),
            queue: VecDeque::new(),
            members: BTreeMap::new(),
            leaving: BTreeMap::new(),
            fair: FairQueue::default(),
            backoffs: Backoffs::default(),
            waiting: Vec::new(),
            closing: false,
            threads: 0,
            abandoned: BTreeMap::new(),
            last_member: 0,
            last_thread_epoch: 0,
            last_probe: 0,
            last_config: 0,
            health_due: now + settings.health_interval,
            settings,
        }
    }

    /// Applies an event.
    pub(crate) fn step(&mut self, event: Event<'_>, now: Instant, effects: &mut Effects) {
        match event {
            Event::Tick => self.tick(now, effects),
            Event::Owned(member, reply_to, partitions) => {
                self.owned_changed(member, reply_to, partitions, effects);
            }
            Event::Recall => {
                self.send_back_cancelled(effects);
                self.notify_waiting(effects);
            }
            Event::Reset(member) => self.reset(member, effects),
            Event::Leave(member) => self.leave(member, effects),
            Event::ThreadNotStarted(worker, error) => {
                self.thread_not_started(worker, error, now, effects);
            }
            Event::AbandonedThreadEnded(worker) => self.abandoned_ended(worker, effects),
        }
    }

    /// Adds a member. Not to one that is closing.
    pub(crate) fn add(&mut self, setup: HandlerSetup) -> Arc<PoolMember> {
        self.last_member += 1;
        let member = Arc::new(PoolMember::new(self.last_member, setup));
        self.members.insert(member.id, MemberState::new(&member));
        member
    }

    /// Whether the last member has left, so that the threads exit once they are idle.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Number of threads that are in a call of the member.
    pub(crate) fn busy(&self, member: &PoolMember) -> u32 {
        let slots = self.slots.iter();
        slots.filter(|slot| slot.is_calling(member.id)).count() as u32
    }

    /// The current config of a member.
    pub(crate) fn config(&self, member: &PoolMember) -> Config {
        self.known(member.id).map_or_else(
            || Config::first(&member.setup),
            |state| state.config.clone(),
        )
    }

    /// The partitions of a member, until no worker has an instance of it.
    pub(crate) fn owned(&self, member: &PoolMember) -> BTreeSet<OwnedPartition> {
        self.known(member.id)
            .map_or_else(BTreeSet::new, MemberState::owned)
    }

    /// Whether the thread pool is closing and still has threads.
    pub(crate) fn is_ending(&self) -> bool {
        self.closing && self.threads > 0
    }

    #[cfg(test)]
    pub(crate) fn slot(&self, at: usize) -> &WorkerSlot {
        &self.slots[at]
    }

    fn known(&self, member: MemberId) -> Option<&MemberState> {
        let leaving = || self.leaving.get(&member).map(|(state, _)| state);
        self.members.get(&member).or_else(leaving)
    }

    /// The slot of a thread; `None` if the thread was abandoned and the slot belongs to another one.
    fn slot_of(&mut self, worker: WorkerId) -> Option<&mut WorkerSlot> {
        let slot = &mut self.slots[worker.slot];
        (slot.alive && slot.thread_epoch == worker.thread_epoch).then_some(slot)
    }

    /// Wakes the slot's thread, or starts one.
    fn wake_or_spawn(&mut self, at: usize, effects: &mut Effects) {
        let slot = &mut self.slots[at];
        if slot.alive {
            slot.parked = false;
            effects.push(Effect::Wake(at));
            return;
        }
        self.last_thread_epoch += 1;
        slot.alive = true;
        slot.thread_epoch = self.last_thread_epoch;
        self.threads += 1;
        effects.push(Effect::Spawn(WorkerId {
            slot: at,
            thread_epoch: slot.thread_epoch,
        }));
    }
}
