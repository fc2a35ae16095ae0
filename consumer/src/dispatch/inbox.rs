//! What other threads tell a pump: one queue, one wake-up for outcomes, acknowledgements and control.
//!
//! A push takes the lock once for a whole batch; the pump takes everything in one swap. The waker is called only when
//! the queue was empty: the pump empties it after every wake-up, so nothing is left lying.

use std::sync::{Arc, OnceLock, PoisonError};

use sluicegate_runtime::RawOutcome;

use crate::dispatch::{Batch, EntryKey, FlightKey, HandlerIx};
use crate::emit::RefusedEmits;
use crate::source::Wake;
use crate::sync::Mutex;

/// What a pump is told.
pub enum PumpMessage {
    /// A batch is back.
    Finished(Box<Batch>),
    /// A call overran its timeout; its worker is quarantined and the batch will not come back (or too late).
    Overrun {
        /// Which flight.
        flight: FlightKey,
        /// The outcomes that the call had written; the record after them is the one that hangs.
        completed: Vec<RawOutcome>,
    },
    /// The producer has answered everything that one record emitted, or its dead letter.
    Produced {
        /// Whose.
        handler: HandlerIx,
        /// For which record.
        entry: EntryKey,
        /// What became of it if not everything was acknowledged.
        refused: Option<Box<RefusedEmits>>,
    },
    /// A pool that had refused a batch can take one again.
    PoolFree,
    /// A request of the control side, run between two polls.
    Control(Box<dyn ControlRequest>),
}

/// A request of the control side; `pump` is downcast by whoever made it.
pub trait ControlRequest: Send {
    /// Runs on the pump's thread.
    fn run(self: Box<Self>, pump: &mut dyn std::any::Any);
}

/// The queue.
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

    /// Sets whom to wake. Later calls change nothing.
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

    /// Takes everything; `into` must be empty and gets the messages in order.
    pub fn take(&self, into: &mut Vec<PumpMessage>) {
        debug_assert!(into.is_empty(), "messages taken earlier are still there");
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, into);
    }
}
