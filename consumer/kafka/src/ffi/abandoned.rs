//! Queues of clients that are leaked because a record of theirs is still borrowed: such a client continues to emit
//! statistics and errors, which would fill its queues for as long as the process runs.

use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka_sys as sys;

/// Interval at which the queues are emptied; the client emits statistics every 10 s.
const INTERVAL: Duration = Duration::from_secs(1);

struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be polled from any thread, and nothing else uses this one any more.
unsafe impl Send for Queue {}

/// Discards what arrives at a queue from now on, on a thread that serves all of them. The queue must belong to a leaked
/// client: it is never destroyed.
pub(super) fn drain(queue: NonNull<sys::rd_kafka_queue_t>) {
    static THREAD: Mutex<Option<Sender<Queue>>> = Mutex::new(None);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if thread.is_none() {
        let (send, queues) = channel();
        let started = std::thread::Builder::new()
            .name("leaked-clients".to_owned())
            .spawn(move || run(&queues));
        match started {
            Ok(_) => *thread = Some(send),
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that empties queues of leaked clients");
            }
        }
    }
    if let Some(thread) = &*thread {
        // The thread never ends.
        let _ = thread.send(Queue(queue));
    }
}

fn run(new: &Receiver<Queue>) {
    let mut queues = Vec::new();
    loop {
        match new.recv_timeout(INTERVAL) {
            Ok(queue) => queues.push(queue),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for queue in &queues {
            empty(queue);
        }
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
