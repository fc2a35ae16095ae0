//! Queues of leaked clients: those that a record is still borrowed from, and those that could not leave their group in
//! time. Such a client continues to emit statistics and errors, which would fill its queues for as long as the process runs.

use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka_sys as sys;

/// Interval at which the queues are emptied; the client emits statistics every 10 s.
const INTERVAL: Duration = Duration::from_secs(1);

static LEAKED: Mutex<Leaked> = Mutex::new(Leaked {
    queues: Vec::new(),
    is_drained: false,
});

/// The queues, kept here and not by the thread: if it cannot be started, the next leak tries again for all of them.
struct Leaked {
    queues: Vec<Queue>,
    /// The thread that empties them runs. It never ends.
    is_drained: bool,
}

#[derive(Clone, Copy)]
struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be polled from any thread, and nothing else uses this one any more.
unsafe impl Send for Queue {}

/// Discards what arrives at a queue from now on, on a thread that serves all of them. The queue must belong to a leaked
/// client: it is never destroyed.
pub(super) fn drain(queue: NonNull<sys::rd_kafka_queue_t>) {
    leaked().add(Queue(queue), || {
        let thread = std::thread::Builder::new().name("leaked-clients".to_owned());
        thread.spawn(run).map(drop)
    });
}

fn leaked() -> MutexGuard<'static, Leaked> {
    LEAKED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leaked {
    /// Adds a queue, and starts the thread with `start` if it does not run.
    fn add(&mut self, queue: Queue, start: impl FnOnce() -> io::Result<()>) {
        self.queues.push(queue);
        if self.is_drained {
            return;
        }
        match start() {
            Ok(()) => self.is_drained = true,
            Err(error) => tracing::warn!(
                %error,
                "cannot start the thread that empties queues of leaked clients; the next leaked client tries again"
            ),
        }
    }
}

fn run() {
    loop {
        // Emptied without the lock: a pump that leaks its client must not wait for it.
        let queues = leaked().queues.clone();
        for queue in &queues {
            empty(queue);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn empty(queue: &Queue) {
    loop {
        // SAFETY: the queue lives as long as its leaked client, that is forever; an event is ours and destroyed once.
        unsafe {
            let event = sys::rd_kafka_queue_poll(queue.0.as_ptr(), 0);
            if event.is_null() {
                return;
            }
            sys::rd_kafka_event_destroy(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_whose_thread_could_not_be_started_waits_for_the_next_one() {
        let mut leaked = Leaked {
            queues: Vec::new(),
            is_drained: false,
        };
        let queue = Queue(NonNull::dangling());
        leaked.add(queue, || Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!((leaked.queues.len(), leaked.is_drained), (1, false));
        leaked.add(queue, || Ok(()));
        assert_eq!((leaked.queues.len(), leaked.is_drained), (2, true));
        leaked.add(queue, || unreachable!("one thread serves all"));
        assert_eq!(leaked.queues.len(), 3);
    }
}
