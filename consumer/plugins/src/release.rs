//! Releases retired generations: waits until none of their instances is left, then shuts down their code. One thread, asleep
//! while there is nothing to release.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sluicegate_pool::Release;
use sluicegate_pool::pool::relock;

use super::generation::{GenerationState, Retired};

/// Interval at which retired generations are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Handle of the releasing thread.
pub struct Releaser {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<ReleaseQueue>,
    changed: Condvar,
    shutdown_timeout: Duration,
}

#[derive(Default)]
struct ReleaseQueue {
    retired: Vec<Retired>,
    /// Number of generations that the thread is checking.
    in_progress: usize,
    stop: bool,
}

impl Releaser {
    /// Starts the thread; a plugin gets `shutdown_timeout` to stop its own threads.
    ///
    /// # Errors
    /// The operating system's error if the thread cannot be started.
    pub fn start(shutdown_timeout: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            shutdown_timeout,
        });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("handler/release".to_owned())
            .spawn(move || for_thread.run())?;
        Ok(Self { shared })
    }

    /// Adds a retired generation.
    pub fn follow(&self, retired: Retired) {
        relock(&self.shared.queue).retired.push(retired);
        self.shared.changed.notify_all();
    }

    /// Blocks until all added generations are released or quarantined; `false` at the deadline.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut queue = relock(&self.shared.queue);
        while !queue.retired.is_empty() || queue.in_progress > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self
                .shared
                .changed
                .wait_timeout(queue, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for Releaser {
    fn drop(&mut self) {
        relock(&self.shared.queue).stop = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut queue = relock(&self.queue);
            while queue.retired.is_empty() && !queue.stop {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            if queue.stop {
                return;
            }
            let batch = std::mem::take(&mut queue.retired);
            queue.in_progress = batch.len();
            drop(queue);
            let staying: Vec<Retired> = batch.into_iter().filter_map(|r| self.poll(r)).collect();
            let waits = !staying.is_empty();
            let mut queue = relock(&self.queue);
            queue.in_progress = 0;
            queue.retired.extend(staying);
            drop(queue);
            self.changed.notify_all();
            if waits {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// Advances the release of a generation; returns it while it is unfinished.
    fn poll(&self, retired: Retired) -> Option<Retired> {
        // A generation that never served stays `Rejected`.
        let served = retired.status.state() != GenerationState::Rejected;
        match retired.watch.wait(Instant::now()) {
            Release::Unfinished => return Some(retired),
            Release::Clean if served => {
                retired.status.advance(GenerationState::Quiesced);
                retired.status.advance(GenerationState::Released);
            }
            Release::Clean => {}
            Release::Quarantined => {
                if served {
                    retired.status.advance(GenerationState::Quarantined);
                }
                let (handler, generation) = (&*retired.name, retired.number);
                tracing::error!(
                    handler,
                    generation,
                    "generation quarantined: some of its code hangs; its thread and memory stay until that returns"
                );
                // Its code is still running. It is shut down with its last instance.
                return None;
            }
        }
        let deadline_ms = self.shutdown_timeout.as_millis() as u64;
        retired.plugin.shutdown(deadline_ms);
        None
    }
}
