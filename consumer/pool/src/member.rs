//! A handler registered with a thread pool: what its workers need, and what others may read of it at any time.
//!
//! The roster decides about a member and the shell publishes the results here, so that a pump or a status report reads
//! them without the lock of the thread pool, which workers and pumps contend for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_engine::emit::Emitter;
use sluicegate_runtime::{HandlerInfo, HostServices, LoadedPlugin, LogLevel, LogLine};

use crate::clock::now_ms;
use crate::lock::relock;
use crate::restart::RestartPolicy;
use crate::stats::HandlerStats;

/// Number of a member within its thread pool; never reused.
pub(crate) type MemberId = u64;

/// What a worker needs to build and call instances of one handler generation.
pub struct HandlerSetup {
    /// The handler's name in its spec.
    pub name: Arc<str>,
    /// What the plugin says about it, and the name under which it exports it.
    pub info: Arc<HandlerInfo>,
    /// Number of the handler's generation: what its instances share is told apart by it.
    pub generation: u64,
    /// The loaded code.
    pub plugin: Arc<dyn LoadedPlugin>,
    /// The first config of its instances, as JSON text; [`reconfigure`](crate::HandlerPool::reconfigure) replaces it.
    pub config: Arc<str>,
    /// `name@version` for the provenance headers of emitted records; `None` if they are disabled.
    pub provenance: Option<Arc<str>>,
    /// Timeout per record, or per call of a handler that takes batches.
    pub timeout: Duration,
    /// When failing instances trip the handler.
    pub restart: RestartPolicy,
    /// Host services for its instances.
    pub services: Arc<dyn HostServices>,
    /// Where its emitted records go.
    pub emitter: Arc<dyn Emitter>,
    /// Where its calls are counted.
    pub stats: Arc<HandlerStats>,
}

impl HandlerSetup {
    /// Whether its instances handle one record after the other.
    pub(crate) fn runs_one_by_one(&self) -> bool {
        !self.info.takes_batches && self.info.concurrency <= 1
    }

    /// Logs what has happened to an instance. It can happen for each record, and its text is mostly the plugin's: it is bounded and
    /// redacted as the plugin's own lines are.
    pub(crate) fn warn(&self, message: &str) {
        self.services.log(&LogLine::new(LogLevel::Warn, message));
    }

    /// As [`Self::warn`], of a worker thread that was abandoned.
    pub(crate) fn abandoned(&self, slot: usize, why: &str) {
        self.services.log(&LogLine {
            fields: &format!("{{\"worker\":{slot}}}"),
            ..LogLine::new(LogLevel::Error, &format!("{why}; worker thread abandoned"))
        });
    }
}

/// A config for instances.
#[derive(Clone)]
pub(crate) struct Config {
    /// Tells the configs of one member apart.
    pub(crate) serial: u64,
    /// JSON text.
    pub(crate) json: Arc<str>,
}

impl Config {
    /// The config that a handler starts with.
    pub(crate) fn first(setup: &HandlerSetup) -> Self {
        Self {
            serial: 0,
            json: Arc::clone(&setup.config),
        }
    }
}

/// State of a handler's instances after its pool was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// All were dropped, each on its own thread.
    Clean,
    /// Some are on abandoned threads; their memory is never freed.
    Quarantined,
    /// Some worker has not dropped its instance yet.
    Unfinished,
}

/// A handler registered with a thread pool. The locks in here are taken after the thread pool's.
pub(crate) struct PoolMember {
    pub(crate) id: MemberId,
    pub(crate) setup: HandlerSetup,
    tripped: AtomicBool,
    failing: Mutex<Failing>,
    release: Mutex<Option<Release>>,
    released: Condvar,
}

/// Why a member does not work as it should.
#[derive(Default)]
struct Failing {
    tripped: Option<Since>,
    /// By worker slot.
    unhealthy: BTreeMap<usize, Since>,
}

/// The reason of a state, and its start in milliseconds since the Unix epoch.
struct Since {
    why: Arc<str>,
    since_ms: i64,
}

impl Since {
    fn now(why: &str) -> Self {
        Self {
            why: why.into(),
            since_ms: now_ms(),
        }
    }
}

impl PoolMember {
    pub(crate) fn new(id: MemberId, setup: HandlerSetup) -> Self {
        Self {
            id,
            setup,
            tripped: AtomicBool::new(false),
            failing: Mutex::default(),
            release: Mutex::default(),
            released: Condvar::new(),
        }
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::Acquire)
    }

    /// Publishes that the handler is tripped, or not any more.
    pub(crate) fn set_tripped(&self, why: Option<&str>) {
        relock(&self.failing).tripped = why.map(Since::now);
        self.tripped.store(why.is_some(), Ordering::Release);
    }

    /// Publishes the health of a slot's instance; `None`: it is healthy. The start of the state is that of its first reason.
    pub(crate) fn set_unhealthy(&self, slot: usize, why: Option<&str>) {
        let unhealthy = &mut relock(&self.failing).unhealthy;
        match why {
            Some(why) => {
                let known = unhealthy.entry(slot).or_insert_with(|| Since::now(why));
                known.why = why.into();
            }
            None => {
                unhealthy.remove(&slot);
            }
        }
    }

    pub(crate) fn why_tripped(&self) -> Option<Arc<str>> {
        let failing = relock(&self.failing);
        failing.tripped.as_ref().map(|since| since.why.clone())
    }

    pub(crate) fn unhealthy_reason(&self) -> Option<Arc<str>> {
        let failing = relock(&self.failing);
        let first = failing.unhealthy.values().next();
        first.map(|since| since.why.clone())
    }

    pub(crate) fn failing_since_ms(&self) -> Option<i64> {
        let failing = relock(&self.failing);
        let unhealthy = failing.unhealthy.values().map(|since| since.since_ms);
        let tripped = failing.tripped.as_ref().map(|since| since.since_ms);
        tripped.or_else(|| unhealthy.min())
    }

    /// Publishes the end of the release.
    pub(crate) fn set_released(&self, release: Release) {
        *relock(&self.release) = Some(release);
        self.released.notify_all();
    }

    /// Blocks until the release has ended; [`Release::Unfinished`] at the deadline.
    pub(crate) fn wait_released(&self, deadline: Instant) -> Release {
        let mut release = relock(&self.release);
        loop {
            if let Some(ended) = *release {
                return ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Release::Unfinished;
            }
            release = self
                .released
                .wait_timeout(release, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
