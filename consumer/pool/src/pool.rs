//! A handler generation's share of a thread pool ([`ThreadPool`]), which pumps use as their [`WorkerPool`].
//!
//! ```text
//!  pump ─► HandlerPool::submit ─► roster: queue ─► worker thread: instance.handle ─► emits ─► the pump's inbox
//!                                  │                      │ panicked: drop, back off, rebuild (`restart`)
//!                                  │                      │ timed out: abandoned, replaced (`roster::watch`)
//!                                  └─ full, backing off or failed: refused, PoolFree later
//! ```
//!
//! One lock per thread pool, taken twice per batch; nothing is locked, counted or timed per record (ADR 0010). A
//! refusal registers the pump's inbox, and whatever makes room notifies it: without that notice the pump keeps its
//! batches, since it does not poll. The watchdog's check notifies again, so that a notice that was not used cannot stop
//! a handler.
//!
//! A health check or a new config runs on a worker, and its caller waits with a timeout. The roster decides between the
//! two: either the worker starts it or the caller cancels it, never both, so a config is not applied after its caller
//! was told that it is not. Dropping the last `Arc` of a pool releases it: queued batches return, and each worker
//! drains and drops its instance between two tasks.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{
    Batch, BatchId, Inbox, OwnedPartition, PoolState, Published, WorkerPool,
};

use crate::error::{ConfigNotTaken, ProbeError};
pub use crate::lock::relock;
use crate::member::{HandlerSetup, PoolMember, Release};
use crate::roster::Event;
use crate::settings::ThreadPoolSettings;
use crate::thread_pool::ThreadPool;
use crate::watchdog::{CallWatchdog, Watched};
use crate::worker;

impl ThreadPool {
    /// A thread pool without threads yet; `watchdog` times out its calls.
    pub fn new(settings: ThreadPoolSettings, watchdog: &CallWatchdog) -> Arc<Self> {
        let threads = Self::with_threads(settings, Box::new(worker::spawn));
        let watched: Arc<dyn Watched> = Arc::clone(&threads) as _;
        watchdog.watch(Arc::downgrade(&watched));
        threads
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// Returns the setup if the last handler has already left and the thread pool is closing.
    #[expect(
        clippy::result_large_err,
        reason = "the setup is passed on to the next thread pool"
    )]
    pub fn join(self: &Arc<Self>, setup: HandlerSetup) -> Result<Arc<HandlerPool>, HandlerSetup> {
        let member = self.add_unless_closing(setup)?;
        Ok(self.pool_of(member))
    }

    /// Adds the first handler.
    pub fn join_first(self: &Arc<Self>, setup: HandlerSetup) -> Arc<HandlerPool> {
        self.pool_of(self.add(setup))
    }

    fn pool_of(self: &Arc<Self>, member: Arc<PoolMember>) -> Arc<HandlerPool> {
        let threads = Arc::clone(self);
        Arc::new(HandlerPool { threads, member })
    }
}

/// Waits for a handler's release without keeping its pool alive.
pub struct ReleaseWatch {
    member: Arc<PoolMember>,
    threads: Arc<ThreadPool>,
}

impl ReleaseWatch {
    /// Blocks until all instances are dropped (and the thread pool's threads have exited, if it was the last handler) or the deadline
    /// has passed. The release starts when the last `Arc` of the pool is dropped.
    pub fn wait(&self, deadline: Instant) -> Release {
        let release = self.member.wait_released(deadline);
        if release == Release::Clean && !self.threads.wait_ended(deadline) {
            return Release::Unfinished;
        }
        release
    }
}

/// The pool of one handler generation. Dropping the last `Arc` drains its instances and drops them on their threads.
pub struct HandlerPool {
    threads: Arc<ThreadPool>,
    member: Arc<PoolMember>,
}

impl HandlerPool {
    /// Builds an instance on a worker and health-checks it; blocks until the check is done. With `keep` the worker keeps the
    /// instance, otherwise it is dropped.
    ///
    /// # Errors
    /// [`ProbeError`]; a creation that hangs is abandoned after `timeout`.
    pub fn probe(&self, keep: bool, timeout: Duration) -> Result<(), ProbeError> {
        self.try_out(keep, None, timeout)
            .map_err(|failed| match failed {
                ConfigNotTaken::Refused(error) => error,
                ConfigNotTaken::Busy => ProbeError::NoAnswer(timeout),
            })
    }

    /// Reconfigures running instances in place. One instance takes the new config and is health-checked; the others follow
    /// between batches. Blocks until the first has answered.
    ///
    /// # Errors
    /// [`ConfigNotTaken`]; all instances then keep the previous config.
    pub fn reconfigure(&self, config_json: &str, timeout: Duration) -> Result<(), ConfigNotTaken> {
        let taken = self.try_out(true, Some(config_json.into()), timeout);
        taken.map_err(|error| match error {
            // No instance has seen the config.
            ConfigNotTaken::Refused(ProbeError::NoThread(_)) => ConfigNotTaken::Busy,
            error => error,
        })
    }

    fn try_out(
        &self,
        keep: bool,
        config: Option<Arc<str>>,
        timeout: Duration,
    ) -> Result<(), ConfigNotTaken> {
        let (reply, answer) = sync_channel(1);
        let probe = self.threads.probe(&self.member, keep, config, reply);
        let mut answered = answer.recv_timeout(timeout);
        if matches!(answered, Err(RecvTimeoutError::Timeout)) {
            if self.threads.cancel_probe(probe) {
                return Err(ConfigNotTaken::Busy);
            }
            // The worker has started the probe; the watchdog bounds its duration.
            answered = answer.recv_timeout(timeout);
        }
        let result = answered.unwrap_or_else(|no_answer| {
            Err(match no_answer {
                RecvTimeoutError::Timeout => ProbeError::NoAnswer(timeout),
                RecvTimeoutError::Disconnected => ProbeError::ThreadEnded,
            })
        });
        Ok(result?)
    }

    /// Lets a tripped handler run again.
    pub fn reset(&self) {
        self.threads.tell(Event::Reset(&self.member));
    }

    /// Why the handler was tripped, if it was.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.member.why_tripped()
    }

    /// The reason of one unhealthy instance, if there is one. An instance that was dropped while it was unhealthy counts
    /// until the one in its place has passed a health check.
    pub fn unhealthy_reason(&self) -> Option<Arc<str>> {
        self.member.unhealthy_reason()
    }

    /// Time since which the handler is tripped, or else unhealthy; in milliseconds since the Unix epoch.
    pub fn failing_since_ms(&self) -> Option<i64> {
        self.member.failing_since_ms()
    }

    /// Number of threads currently in a call of the handler.
    pub fn busy(&self) -> u32 {
        self.threads.lock().roster.busy(&self.member)
    }

    /// A watch for the pool's release.
    pub fn release_watch(&self) -> ReleaseWatch {
        ReleaseWatch {
            member: Arc::clone(&self.member),
            threads: Arc::clone(&self.threads),
        }
    }
}

impl WorkerPool for HandlerPool {
    fn submit(&self, batch: Box<Batch>, reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        self.threads.submit(&self.member, batch, reply_to)
    }

    fn recall(&self) {
        self.threads.tell(Event::Recall);
    }

    fn own(&self, reply_to: &Arc<Inbox>, partitions: &[OwnedPartition]) {
        self.threads
            .tell(Event::Owned(&self.member, reply_to, partitions));
    }

    fn published(&self, reply_to: &Arc<Inbox>, batch: BatchId) -> Option<Published> {
        self.threads.lock().roster.published(reply_to, batch)
    }

    fn workers(&self) -> u32 {
        self.threads.workers()
    }

    fn unhealthy_reason(&self) -> Option<Arc<str>> {
        self.member.unhealthy_reason()
    }

    fn state(&self) -> PoolState {
        match self.member.is_tripped() {
            true => PoolState::Failed,
            false => PoolState::Active,
        }
    }
}

impl Drop for HandlerPool {
    fn drop(&mut self) {
        self.threads.tell(Event::Leave(&self.member));
    }
}
