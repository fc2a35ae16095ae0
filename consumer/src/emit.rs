//! Records that the service produces: what handlers emit, and dead letters.
//!
//! ```text
//!  worker: EmitGroup::new ─► Emitter::send (each) ─► inbox.push(Finished) ─► EmitGroup::arm
//!  producer's thread:            └─► EmitGroup::answered (each) ─► the last one pushes Produced
//! ```
//!
//! The worker holds one share of the group until its batch is in the inbox, so `Produced` never overtakes `Finished`.

mod group;
pub mod kafka;
pub mod topics;

pub use group::{EmitCounts, EmitGroup};
pub use kafka::KafkaEmitter;

use std::sync::Arc;

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
