//! Records that the service produces: what handlers emit, and dead letters.
//!
//! ```text
//!  worker: EmitGroup::new ─► Emitter::send (each) ─► inbox.push(Finished) ─► EmitGroup::arm
//!  producer's thread:            └─► EmitGroup::answered (each) ─► the last one pushes Produced
//! ```
//!
//! The worker holds one share of the group until its batch is in the inbox, so `Produced` never overtakes `Finished`.

pub mod kafka;
pub mod topics;

pub use kafka::KafkaEmitter;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::dispatch::{EntryKey, HandlerIx, Inbox, PumpMessage};

/// A record to produce, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Target topic.
    pub topic: &'a str,
    /// Target partition; `None` lets the producer choose by key.
    pub partition: Option<i32>,
    /// Timestamp in milliseconds; `None` is now.
    pub timestamp_ms: Option<i64>,
    /// Key; `None` is null.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Header block in Kafka's format; empty is none.
    pub headers: &'a [u8],
}

/// Why a record could not be handed to the producer.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The producer's queue is full; try again when acknowledgements have come.
    #[error("the producer's queue is full")]
    QueueFull,
    /// The producer refuses this record or is broken.
    #[error("{0}")]
    Refused(String),
}

/// Hands records to a producer with `acks=all`. Called from workers and pumps.
pub trait Emitter: Send + Sync {
    /// Queues one record; its acknowledgement or failure goes to [`EmitGroup::answered`] of `group`, exactly once.
    ///
    /// # Errors
    /// [`EmitError`]; then `group` is not told anything for this record.
    fn send(&self, record: &Outgoing<'_>, group: &Arc<EmitGroup>) -> Result<(), EmitError>;
}

/// Everything that is produced for one record of one handler; the pump hears once, when all is answered.
pub struct EmitGroup {
    inbox: Arc<Inbox>,
    handler: HandlerIx,
    entry: EntryKey,
    unanswered: AtomicU32,
    error: OnceLock<Arc<str>>,
}

impl EmitGroup {
    /// A group whose maker holds one share, to be given up with [`EmitGroup::arm`].
    pub fn new(inbox: Arc<Inbox>, handler: HandlerIx, entry: EntryKey) -> Arc<Self> {
        Arc::new(Self {
            inbox,
            handler,
            entry,
            unanswered: AtomicU32::new(1),
            error: OnceLock::new(),
        })
    }

    /// Counts one more record to wait for. Call it before [`Emitter::send`]; if that fails, call
    /// [`EmitGroup::answered`] with the error.
    pub fn expect_one(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// One record is acknowledged (`None`) or has failed for good.
    pub fn answered(&self, error: Option<&str>) {
        if let Some(error) = error {
            let _ = self.error.set(error.into());
        }
        if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inbox.push(PumpMessage::Produced {
                handler: self.handler,
                entry: self.entry,
                error: self.error.get().cloned(),
            });
        }
    }

    /// Gives up the maker's share: from now on the last answer is reported.
    pub fn arm(&self) {
        self.answered(None);
    }
}
