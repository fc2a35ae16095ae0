//! Follows retired generations until nothing of them runs, then ends their code. One thread, asleep while none is on
//! its way out.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::generation::{GenerationState, Retired};
use super::pool::{Release, relock};

/// How often generations on their way out are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The thread that releases.
pub struct Releaser {
    shared: Arc<Shared>,
}

struct Shared {
    leaving: Mutex<Leaving>,
    changed: Condvar,
    shutdown_timeout: Duration,
}

#[derive(Default)]
struct Leaving {
    retired: Vec<Retired>,
    /// Taken by the thread for a look.
    in_hand: usize,
    stop: bool,
}

impl Releaser {
    /// Starts the thread; a plugin gets `shutdown_timeout` to end what it runs on its own.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn start(shutdown_timeout: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            leaving: Mutex::default(),
            changed: Condvar::new(),
            shutdown_timeout,
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("handler/release".to_owned())
            .spawn(move || theirs.run())?;
        Ok(Self { shared })
    }

    /// Follows one more.
    pub fn follow(&self, retired: Retired) {
        relock(&self.shared.leaving).retired.push(retired);
        self.shared.changed.notify_all();
    }

    /// Blocks until all that were given to it are gone or quarantined; `false` at the deadline.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut leaving = relock(&self.shared.leaving);
        while !leaving.retired.is_empty() || leaving.in_hand > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            leaving = self
                .shared
                .changed
                .wait_timeout(leaving, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for Releaser {
    fn drop(&mut self) {
        relock(&self.shared.leaving).stop = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut leaving = relock(&self.leaving);
            while leaving.retired.is_empty() && !leaving.stop {
                leaving = self
                    .changed
                    .wait(leaving)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            if leaving.stop {
                return;
            }
            let batch = std::mem::take(&mut leaving.retired);
            leaving.in_hand = batch.len();
            drop(leaving);
            let staying: Vec<Retired> = batch.into_iter().filter_map(|r| self.look(r)).collect();
            let waits = !staying.is_empty();
            let mut leaving = relock(&self.leaving);
            leaving.in_hand = 0;
            leaving.retired.extend(staying);
            drop(leaving);
            self.changed.notify_all();
            if waits {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// Gives the generation back while it is on its way.
    fn look(&self, retired: Retired) -> Option<Retired> {
        // One that never served is rejected and stays so.
        let served = retired.standing.state() != GenerationState::Rejected;
        match retired.watch.wait(Instant::now()) {
            Release::Unfinished => return Some(retired),
            Release::Clean if served => {
                retired.standing.advance(GenerationState::Quiesced);
                retired.standing.advance(GenerationState::Released);
            }
            Release::Clean => {}
            Release::Quarantined => {
                if served {
                    retired.standing.advance(GenerationState::Quarantined);
                }
                let (handler, generation) = (&*retired.name, retired.number);
                tracing::error!(
                    handler,
                    generation,
                    "generation quarantined: some of its code hangs, its thread and memory stay until the service ends"
                );
                // Its code still runs somewhere, so it is never asked to end.
                return None;
            }
        }
        if let Some(code) = Arc::into_inner(retired.code) {
            let deadline_ms = self.shutdown_timeout.as_millis() as u64;
            code.plugin.shutdown(deadline_ms);
        }
        None
    }
}
