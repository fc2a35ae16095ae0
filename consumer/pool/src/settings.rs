//! Settings of a thread pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
#[derive(Clone, Debug, Default)]
pub struct HungThreads(Arc<AtomicUsize>);

impl HungThreads {
    /// Maximum number: from then on, a handler whose thread has to be abandoned is tripped at once.
    pub const MAX: usize = 256;

    /// The threads that hang now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, threads: usize) {
        self.0.fetch_sub(threads, Ordering::Relaxed);
    }
}
