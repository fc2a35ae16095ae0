//! Settings of a thread pool.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lock::relock;

/// Settings of a thread pool.
#[derive(Clone, Debug)]
pub struct ThreadPoolSettings {
    /// Name for the threads' names: the handler's, or the shared pool's.
    pub name: String,
    /// Generation for the threads' names.
    pub generation: u64,
    /// Maximum number of live threads, without abandoned ones.
    pub workers: u32,
    /// Timeout for building and checking an instance; its thread is abandoned afterwards.
    pub create_timeout: Duration,
    /// Timeout of a health check; its thread is abandoned afterwards.
    pub health_timeout: Duration,
    /// Timeout of any other lifecycle call (drain, drop, partition or config change); the thread is abandoned
    /// afterwards.
    pub drain_timeout: Duration,
    /// Interval of the health checks.
    pub health_interval: Duration,
    /// The abandoned threads of all thread pools that share this.
    pub hung: HungThreads,
}

/// Number of abandoned threads of several thread pools: those of a process.
#[derive(Clone, Debug)]
pub struct HungThreads {
    max: usize,
    /// By handler, over all of its generations.
    by_handler: Arc<Mutex<BTreeMap<Arc<str>, usize>>>,
}

impl Default for HungThreads {
    fn default() -> Self {
        Self::new(Self::MAX)
    }
}

impl HungThreads {
    /// The shipped maximum.
    pub const MAX: usize = 256;

    /// None yet. From `max` on, a handler whose thread has to be abandoned is tripped at once, and no generation is built of a
    /// handler of which a thread hangs.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            by_handler: Arc::default(),
        }
    }

    /// Whether as many hang as may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count() >= self.max
    }

    /// The threads that hang now.
    #[must_use]
    pub fn count(&self) -> usize {
        relock(&self.by_handler).values().sum()
    }

    /// The threads that hang in a handler, whatever generation of it.
    #[must_use]
    pub fn of(&self, handler: &str) -> usize {
        let by_handler = relock(&self.by_handler);
        by_handler.get(handler).copied().unwrap_or_default()
    }

    /// The handlers of which most threads hang, with their numbers, for messages: also those that have been removed.
    #[must_use]
    pub fn most(&self) -> String {
        const SHOWN: usize = 3;
        let by_handler = relock(&self.by_handler);
        let mut all: Vec<(usize, &str)> = by_handler
            .iter()
            .map(|(name, hung)| (*hung, &**name))
            .collect();
        all.sort_by_key(|(hung, _)| std::cmp::Reverse(*hung));
        let shown = all.iter().take(SHOWN);
        let shown: Vec<String> = shown
            .map(|(hung, name)| format!("{hung} of `{name}`"))
            .collect();
        shown.join(", ")
    }

    /// A thread of a handler was abandoned.
    pub(crate) fn abandoned(&self, handler: &Arc<str>) {
        *relock(&self.by_handler)
            .entry(Arc::clone(handler))
            .or_default() += 1;
    }

    /// It has returned.
    pub(crate) fn returned(&self, handler: &str) {
        let mut by_handler = relock(&self.by_handler);
        if let Some(hung) = by_handler.get_mut(handler) {
            *hung -= 1;
            if *hung == 0 {
                by_handler.remove(handler);
            }
        }
    }
}
