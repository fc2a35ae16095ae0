//! Threads that prepare pending generations, so that a slow handler does not delay the others.
//!
//! ```text
//!  wake ─► a thread, below the maximum ─► prepares one after the other ─► none pending: it exits
//!                                             └─ takes one while more are pending: wakes another
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_plugins::Registry;

/// Maximum generations prepared concurrently: each plugin that hangs during creation occupies a thread until
/// the creation timeout.
const MAX_THREADS: usize = 8;
/// Interval at which finished generations are passed to the pumps while others are still being prepared.
const READY_INTERVAL: Duration = Duration::from_millis(200);

/// Handle of the threads; clones share them.
#[derive(Clone)]
pub(super) struct Preparer {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<Registry>,
    /// Called when generations are ready or rejected.
    ready: Box<dyn Fn() + Send + Sync>,
    /// Number of running threads.
    running: Mutex<usize>,
}

impl Preparer {
    pub(super) fn new(registry: Arc<Registry>, ready: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                registry,
                ready: Box::new(ready),
                running: Mutex::new(0),
            }),
        }
    }

    /// Starts a thread for a pending generation, up to the maximum. Does not block.
    pub(super) fn wake(&self) {
        let mut running = self.running();
        if *running >= MAX_THREADS {
            // Each running thread checks for pending generations before it exits.
            return;
        }
        let threads = self.clone();
        let spawned = std::thread::Builder::new()
            .name("prepare".to_owned())
            .spawn(move || threads.run());
        match spawned {
            Ok(_) => *running += 1,
            Err(error) => {
                tracing::error!(%error, "cannot start a thread to prepare handlers; retrying on the next change");
            }
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, usize> {
        let running = self.shared.running.lock();
        running.unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let _thread = RunningThread(self);
        let Shared {
            registry, ready, ..
        } = &*self.shared;
        let mut last_ready = Instant::now();
        loop {
            if registry.has_waiting(2) {
                self.wake();
            }
            if !registry.prepare_next() {
                break;
            }
            if last_ready.elapsed() >= READY_INTERVAL {
                last_ready = Instant::now();
                ready();
            }
        }
        ready();
    }
}

/// Counts a running thread down when it exits, also on a panic.
struct RunningThread<'p>(&'p Preparer);

impl Drop for RunningThread<'_> {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        // A `wake` between the last check and this point may have found the maximum in use.
        if !std::thread::panicking() && self.0.shared.registry.has_waiting(1) {
            self.0.wake();
        }
    }
}
