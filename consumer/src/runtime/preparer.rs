//! Threads that prepare generations whenever some are wanted: one slow handler keeps nobody else's waiting.
//!
//! ```text
//!  wake ─► a thread, if there are fewer than the most ─► prepares one after the other ─► nothing is wanted: it ends
//!                                                            └─ takes one while more are wanted: wakes another
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::handlers::Registry;

/// Most generations that are prepared at the same time: plugins that hang in their creation hold a thread each until
/// `plugins.create_timeout`.
const AT_ONCE: usize = 8;
/// How often the pumps get what is ready while more is being prepared.
const SHARE_READY: Duration = Duration::from_millis(200);

/// Wakes the threads; clones wake the same ones.
#[derive(Clone)]
pub(super) struct Preparer {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<Registry>,
    /// Called when some are ready or refused.
    ready: Box<dyn Fn() + Send + Sync>,
    /// Threads that are there.
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

    /// Something is wanted. Does not wait.
    pub(super) fn wake(&self) {
        let mut running = self.running();
        if *running >= AT_ONCE {
            // Each of them looks again before it ends.
            return;
        }
        let threads = self.clone();
        let spawned = std::thread::Builder::new()
            .name("prepare".to_owned())
            .spawn(move || threads.run());
        match spawned {
            Ok(_) => *running += 1,
            Err(error) => {
                tracing::error!(%error, "no thread to prepare handlers on; they are tried again with the next change");
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
        let mut told = Instant::now();
        loop {
            if registry.has_waiting(2) {
                self.wake();
            }
            if !registry.prepare_next() {
                break;
            }
            if told.elapsed() >= SHARE_READY {
                told = Instant::now();
                ready();
            }
        }
        ready();
    }
}

/// A thread that is there, also when it panics.
struct RunningThread<'p>(&'p Preparer);

impl Drop for RunningThread<'_> {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        // What was wanted in between may have found no room for a thread.
        if !std::thread::panicking() && self.0.shared.registry.has_waiting(1) {
            self.0.wake();
        }
    }
}
