//! The watchdog's thread: checks the calls of all thread pools at a tenth of the shortest timeout, clamped to 10 ms..1 s.
//! One thread per process. What a check does is the thread pool's matter.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::lock::relock;

/// What the watchdog knows of a thread pool.
pub(crate) trait Watched: Send + Sync {
    /// Interval in milliseconds at which its calls must be checked.
    fn tick_ms(&self) -> u64;

    /// Checks its calls once.
    fn check(&self, now: Instant);
}

/// Handle of the watchdog thread, which exits when the handle is dropped.
pub struct CallWatchdog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pools: Mutex<Pools>,
    changed: Condvar,
}

#[derive(Default)]
struct Pools {
    watched: Vec<Weak<dyn Watched>>,
    stop: bool,
}

impl CallWatchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's error if the thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("handler/watch".to_owned())
            .spawn(move || run(&for_thread))?;
        Ok(Self { shared })
    }

    /// Watches the calls of a thread pool for as long as it lives.
    pub(crate) fn watch(&self, pool: Weak<dyn Watched>) {
        relock(&self.shared.pools).watched.push(pool);
        self.shared.changed.notify_all();
    }
}

impl Drop for CallWatchdog {
    fn drop(&mut self) {
        relock(&self.shared.pools).stop = true;
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared) {
    let mut pools: Vec<Arc<dyn Watched>> = Vec::new();
    loop {
        let tick = pools.iter().map(|pool| pool.tick_ms()).min();
        // Clones must not outlive the check: a thread pool ends with its last user.
        pools.clear();
        let watched = relock(&shared.pools);
        if watched.stop {
            return;
        }
        let tick = Duration::from_millis(tick.unwrap_or(1_000));
        let (mut watched, _) = shared
            .changed
            .wait_timeout(watched, tick)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        watched.watched.retain(|pool| pool.strong_count() > 0);
        pools.extend(watched.watched.iter().filter_map(Weak::upgrade));
        drop(watched);
        let now = Instant::now();
        for pool in &pools {
            pool.check(now);
        }
    }
}
