//! Records that the service produces: emitted records of handlers, and dead letters.
//!
//! ```text
//!  worker: AckGroup::new ─► Emitter::send (each) ─► inbox.push(Finished) ─► AckGroup::seal
//!  producer's thread:            └─► Ticket::acknowledged | failed (each) ─► the last one pushes Produced
//!  pump: Produced ─► all acknowledged: settle
//!           └─► refused: hold the lane, explain, back off ─► AckGroup::reopen, send_from the first refused one
//! ```
//!
//! A record settles only after everything that it emitted is acknowledged by all in-sync replicas (G1). The worker
//! holds one share of the group until its batch is in the inbox, so `Produced` never overtakes `Finished`: it would
//! find no record that waits for it, and the record would wait forever. For the same reason a [`Ticket`] is answered
//! exactly once, by its drop if by nothing else.
//!
//! A group keeps its records until all of them are acknowledged: a refusal comes from the cluster and costs the record
//! no attempt (ADR 0020). Records after the first refused one are sent again too, so that the last copies are in order.
//! The memory is bounded by the producer's queue, and beyond it by the pump's byte budget.

pub mod failure;
mod group;

pub use failure::{EmitFailure, FailureKind};
pub use group::{AckGroup, Answers, EmitCounts, RefusedEmits, ShownTopic, Ticket};

use std::sync::Arc;

use sluicegate_config::secret::Redactor;
use sluicegate_runtime::Emit;

/// A record to produce, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct ProducerRecord<'a> {
    /// Target topic.
    pub topic: &'a str,
    /// Target partition; `None` lets the producer choose by key.
    pub partition: Option<i32>,
    /// Timestamp in milliseconds; `None` means now.
    pub timestamp_ms: Option<i64>,
    /// Key; `None` means null.
    pub key: Option<&'a [u8]>,
    /// Value; `None` means a tombstone.
    pub value: Option<&'a [u8]>,
    /// Header block in Kafka's format; empty means none.
    pub headers: &'a [u8],
}

impl<'a> From<&'a Emit> for ProducerRecord<'a> {
    fn from(emit: &'a Emit) -> Self {
        Self {
            topic: &emit.topic,
            partition: emit.partition,
            timestamp_ms: emit.timestamp_ms,
            key: emit.key.as_deref(),
            value: emit.value.as_deref(),
            headers: &emit.headers,
        }
    }
}

/// How a record is batched on its way to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a batch with other records. A refusal of the batch says little about one of its records.
    Batched,
    /// In a batch of its own, so that the broker's response applies to this record.
    Alone,
}

/// Result of sending a record.
pub enum Sent {
    /// It is queued; its ticket will be answered.
    Queued,
    /// It was refused at once; its ticket is answered.
    Refused,
    /// The queue is full; retry when acknowledgements have arrived.
    NoRoom(Ticket),
}

/// Sends records to a producer with `acks=all`. Called by workers and pumps; never blocks.
pub trait Emitter: Send + Sync {
    /// Queues one record and answers its ticket exactly once, sooner or later.
    fn send(&self, record: &ProducerRecord<'_>, way: Way, ticket: Ticket) -> Sent;

    /// Redacts these secrets, which topic names may contain, from the client's own messages from now on.
    fn hide(&self, _secrets: &Redactor) {}
}

/// Sends the records of a group from `first` on, in order, up to the first one that is refused at once: those after it
/// would have to be sent twice.
pub fn send_from(group: &Arc<AckGroup>, first: u32, way: Way, emitter: &dyn Emitter) {
    for (index, emit) in group.records().iter().enumerate().skip(first as usize) {
        let record = ProducerRecord::from(emit);
        match emitter.send(&record, way, group.ticket(index as u32)) {
            Sent::Queued => {}
            Sent::Refused => return,
            Sent::NoRoom(ticket) => {
                ticket.failed(EmitFailure::no_room(&emit.topic));
                return;
            }
        }
    }
}
