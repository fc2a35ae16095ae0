//! The threads of a pool: the shell around the [`Roster`], which decides what they do.
//!
//! A thread pool has a fixed number of worker slots. A slot's thread starts on first use, is replaced after a timed-out
//! call, and exits with the last handler. A batch that any worker may take waits in the shared queue, so that none waits
//! behind a slow call while another worker is idle; a batch bound to a worker waits at that worker's slot.
//!
//! ```text
//!  event ─► lock ─► roster ─► effects ─► carried out in order ─► unlock ─► the first thread to wake is woken
//! ```
//!
//! Messages are delivered under the lock, so that a pump receives them in the order of the decisions. Without that, the
//! report of a timed-out call could arrive after the late batch of the same call, whose outcomes are void. Only a thread
//! is woken after the lock is released, since it would block on it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, Inbox, PumpMessage};
use sluicegate_runtime::CallMonitor;

use crate::lock::relock;
use crate::member::{HandlerSetup, MemberId, PoolMember};
use crate::roster::{
    Created, Effect, Effects, Event, HungIn, Next, ProbeId, ProbeReply, Rebuild, Report, Roster,
    Task, TimedOutCall, WorkItem, WorkerId,
};
use crate::settings::ThreadPoolSettings;
use crate::watchdog::Watched;

/// Shortest wait for the end of a backoff.
const MIN_BACKOFF_WAIT: Duration = Duration::from_millis(1);

/// Starts the thread of a slot.
pub(crate) type Spawn = dyn Fn(Arc<ThreadPool>, WorkerId) -> io::Result<()> + Send + Sync;

/// The threads of one pool, used by one handler generation or by several that share them.
pub struct ThreadPool {
    pub(crate) settings: ThreadPoolSettings,
    locked: Mutex<Locked>,
    /// One per slot; its thread waits here for work.
    wakers: Box<[Condvar]>,
    ended: Condvar,
    tick_ms: AtomicU64,
    spawn: Box<Spawn>,
    this: Weak<Self>,
}

/// What the lock guards.
pub(crate) struct Locked {
    pub(crate) roster: Roster,
    /// Empty whenever the lock is free.
    effects: Effects,
}

impl ThreadPool {
    /// A thread pool without threads yet, which `spawn` starts.
    pub(crate) fn with_threads(settings: ThreadPoolSettings, spawn: Box<Spawn>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            locked: Mutex::new(Locked {
                roster: Roster::new(settings.clone(), Instant::now()),
                effects: Effects::default(),
            }),
            wakers: (0..settings.workers.max(1))
                .map(|_| Condvar::new())
                .collect(),
            settings,
            ended: Condvar::new(),
            tick_ms: AtomicU64::new(1_000),
            spawn,
            this: Weak::clone(this),
        })
    }

    /// Number of worker slots.
    pub fn workers(&self) -> u32 {
        self.settings.workers.max(1)
    }

    /// Adds a member.
    pub(crate) fn add(&self, setup: HandlerSetup) -> Arc<PoolMember> {
        self.add_to(&mut self.lock().roster, setup)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// Returns the setup if the last member has already left.
    #[expect(
        clippy::result_large_err,
        reason = "the setup is passed on to the next thread pool"
    )]
    pub(crate) fn add_unless_closing(
        &self,
        setup: HandlerSetup,
    ) -> Result<Arc<PoolMember>, HandlerSetup> {
        let mut locked = self.lock();
        match locked.roster.is_closing() {
            true => Err(setup),
            false => Ok(self.add_to(&mut locked.roster, setup)),
        }
    }

    fn add_to(&self, roster: &mut Roster, setup: HandlerSetup) -> Arc<PoolMember> {
        let tick = (setup.timeout.as_millis() as u64 / 10).clamp(10, 250);
        self.tick_ms.fetch_min(tick, Ordering::Relaxed);
        roster.add(setup)
    }

    pub(crate) fn submit(
        &self,
        member: &Arc<PoolMember>,
        batch: Box<Batch>,
        reply_to: &Arc<Inbox>,
    ) -> Result<(), Box<Batch>> {
        self.decide(|roster, effects| {
            let records = batch.records.len() as u64;
            roster.submit(member, batch, reply_to, effects)?;
            member.setup.stats.accepted(records);
            Ok(())
        })
    }

    pub(crate) fn probe(
        &self,
        member: &Arc<PoolMember>,
        keep: bool,
        new_config: Option<Arc<str>>,
        reply: ProbeReply,
    ) -> ProbeId {
        self.decide(|roster, effects| roster.probe(member, keep, new_config, reply, effects))
    }

    /// Cancels a probe; `false` if a worker has started or answered it.
    pub(crate) fn cancel_probe(&self, probe: ProbeId) -> bool {
        self.lock().roster.cancel_probe(probe)
    }

    /// Tells the roster of an event.
    pub(crate) fn tell(&self, event: Event<'_>) {
        self.step(event, Instant::now());
    }

    fn step(&self, event: Event<'_>, now: Instant) {
        self.decide(|roster, effects| roster.step(event, now, effects));
    }

    /// Checks every slot once.
    pub(crate) fn check(&self, now: Instant) {
        self.step(Event::Tick, now);
    }

    /// Blocks until there is a task. `monitor_of` returns the monitor of the thread's instance of a handler.
    pub(crate) fn next(
        &self,
        worker: WorkerId,
        monitor_of: &dyn Fn(MemberId) -> Option<Arc<dyn CallMonitor>>,
    ) -> Task {
        let waker = &self.wakers[worker.slot];
        let mut locked = self.lock();
        loop {
            let Locked { roster, effects } = &mut *locked;
            let next = roster.next(worker, monitor_of, Instant::now(), effects);
            let wake = self.carry_out(&mut locked);
            debug_assert!(wake.is_none(), "a thread that asks for work wakes no other");
            let until = match next {
                Next::Task(task) => return task,
                Next::Park(until) => until,
            };
            locked = match until {
                None => waker.wait(locked).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let waited = waker.wait_timeout(locked, left.max(MIN_BACKOFF_WAIT));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Reports that the instance for a batch is built.
    pub(crate) fn created(&self, worker: WorkerId, monitor: Arc<dyn CallMonitor>) -> Created {
        self.decide(|roster, _| roster.created(worker, monitor, Instant::now()))
    }

    /// Asks whether a health check may build an instance now.
    pub(crate) fn begin_rebuild(&self, worker: WorkerId, member: &Arc<PoolMember>) -> Rebuild {
        self.decide(|roster, _| roster.begin_rebuild(worker, member, Instant::now()))
    }

    /// Reports what a worker has done at `now`; `false` if its thread was abandoned.
    pub(crate) fn report(&self, worker: WorkerId, report: Report<'_>, now: Instant) -> bool {
        self.decide(|roster, effects| roster.report(worker, report, now, effects))
    }

    /// Blocks until a closing pool has no threads left; `false` at the deadline. Returns at once if it is still in use.
    pub(crate) fn wait_ended(&self, deadline: Instant) -> bool {
        let mut locked = self.lock();
        while locked.roster.is_ending() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(locked, left);
            locked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Locked> {
        relock(&self.locked)
    }

    /// Lets the roster decide, and carries out the effects.
    fn decide<T>(&self, decision: impl FnOnce(&mut Roster, &mut Effects) -> T) -> T {
        let mut locked = self.lock();
        let Locked { roster, effects } = &mut *locked;
        let answer = decision(roster, effects);
        let wake = self.carry_out(&mut locked);
        drop(locked);
        if let Some(slot) = wake {
            self.wakers[slot].notify_one();
        }
        answer
    }

    /// Carries out all effects, also those of threads that cannot be started. Returns the first slot whose thread is to be
    /// woken; others are woken at once.
    fn carry_out(&self, locked: &mut Locked) -> Option<usize> {
        let mut wake = None;
        while let Some(effect) = locked.effects.pop() {
            match effect {
                Effect::Wake(slot) if wake.is_none() => wake = Some(slot),
                Effect::Wake(slot) => self.wakers[slot].notify_one(),
                Effect::Spawn(worker) => {
                    if let Err(error) = self.start_thread(worker) {
                        tracing::error!(pool = %self.settings.name, %error, "cannot start a worker thread");
                        let event = Event::ThreadNotStarted(worker, error);
                        let Locked { roster, effects } = locked;
                        roster.step(event, Instant::now(), effects);
                    }
                }
                Effect::ThreadEnded => self.ended.notify_all(),
                effect => publish(effect),
            }
        }
        wake
    }

    fn start_thread(&self, worker: WorkerId) -> io::Result<()> {
        let Some(this) = self.this.upgrade() else {
            return Err(io::Error::other("the thread pool is being dropped"));
        };
        (self.spawn)(this, worker)
    }
}

impl Watched for ThreadPool {
    fn tick_ms(&self) -> u64 {
        self.tick_ms.load(Ordering::Relaxed)
    }

    fn check(&self, now: Instant) {
        Self::check(self, now);
    }
}

/// Carries out an effect that concerns a handler or a pump.
fn publish(effect: Effect) {
    match effect {
        Effect::Wake(_) | Effect::Spawn(_) | Effect::ThreadEnded => {}
        Effect::Cancel(flag) => flag.set(),
        Effect::Stop(flag) => flag.stop(),
        Effect::Kill(monitor, serial) => monitor.kill(serial),
        Effect::NotRun(item) => return_unprocessed(item),
        Effect::TimedOut(call) => report_timed_out(call),
        Effect::Room(inbox) => inbox.push(PumpMessage::PoolFree),
        // The caller may have stopped waiting.
        Effect::Answer(reply, result) => drop(reply.try_send(result)),
        Effect::Failed(member, why) => member.setup.stats.failed(&why),
        Effect::Tripped(member, why) => {
            tracing::error!(handler = %member.setup.name, reason = %why, "handler tripped");
            member.set_tripped(Some(&why));
            member.setup.stats.failed(&why);
        }
        Effect::Abandoned(member, slot, hung_in) => record_abandoned(&member, slot, hung_in),
        Effect::Untripped(member) => member.set_tripped(None),
        Effect::Health(member, slot, why) => {
            if let Some(why) = &why {
                member.setup.stats.failed(&format!("unhealthy: {why}"));
            }
            member.set_unhealthy(slot, why.as_deref());
        }
        Effect::Released(member, release) => member.set_released(release),
    }
}

fn return_unprocessed(mut item: WorkItem) {
    let records = item.batch.records.len();
    item.member.setup.stats.returned(records as u64);
    item.batch.not_run();
    item.reply_to.push(PumpMessage::Finished(item.batch));
}

fn report_timed_out(call: TimedOutCall) {
    call.member.setup.stats.returned(call.records);
    call.reply_to.push(PumpMessage::CallTimedOut {
        handler: call.handler,
        batch: call.batch_id,
        published: call.published,
    });
}

fn record_abandoned(member: &PoolMember, slot: usize, hung_in: HungIn) {
    let setup = &member.setup;
    setup.stats.quarantined();
    match hung_in {
        HungIn::Call(timeout) => {
            let why = format!("call timed out after {timeout:?} on one record");
            setup.abandoned(slot, &why);
            setup.stats.failed(&why);
        }
        HungIn::Creation => {
            setup.abandoned(slot, "instance creation timed out");
        }
        HungIn::LifecycleCall => {
            let what =
                "lifecycle call timed out (health, partition or config change, drain or drop)";
            setup.abandoned(slot, what);
        }
    }
}
