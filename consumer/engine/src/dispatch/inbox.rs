//! The pump's inbox: one queue and one wake-up for outcomes and acknowledgements of other threads.
//!
//! A push takes the lock once per batch; the pump takes all messages in one swap. The waker is called only if the queue
//! was empty: the pump empties the queue after every wake-up, so no message is missed.

use std::sync::{Arc, OnceLock, PoisonError};

use crate::dispatch::{Batch, BatchId, HandlerIx, Published};
use crate::emit::Delivery;
use crate::source::Wake;
use crate::sync::Mutex;

/// A message to a pump.
pub enum PumpMessage {
    /// A batch is returned.
    Finished(Box<Batch>),
    /// A call exceeded its timeout; its worker is quarantined and the batch is not returned, or too late.
    CallTimedOut {
        /// The handler of the batch.
        handler: HandlerIx,
        /// The batch's key.
        batch: BatchId,
        /// What the call had published.
        published: Published,
    },
    /// Answers of the producer, for emitted records and dead letters.
    Delivered(Vec<Delivery>),
    /// A pool that had refused a batch accepts one again.
    PoolFree,
}

/// A queue of messages to one pump.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<Vec<PumpMessage>>,
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Inbox {
    /// An empty inbox without a waker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the waker. Later calls have no effect.
    pub fn set_waker(&self, waker: Arc<dyn Wake>) {
        let _ = self.waker.set(waker);
    }

    /// Adds a message and wakes the pump if the inbox was empty.
    pub fn push(&self, message: PumpMessage) {
        let was_empty = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(message);
            queue.len() == 1
        };
        if was_empty && let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    /// Takes all messages; `into` must be empty and receives them in order.
    pub fn take(&self, into: &mut Vec<PumpMessage>) {
        debug_assert!(into.is_empty(), "unhandled messages of an earlier call");
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, into);
    }
}
