//! Settings of a thread pool.

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
    /// Timeout of any other lifecycle call (drain, drop, health check, partition or config change); the thread is abandoned
    /// afterwards.
    pub drain_timeout: Duration,
    /// Interval of the health checks.
    pub health_interval: Duration,
}
