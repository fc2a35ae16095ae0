//! The interface to the producer.

use std::sync::Arc;

pub use sluicegate_abi::record::ProducerRecord;

use super::failure::EmitFailure;
use super::token::EmitToken;
use crate::dispatch::Inbox;

/// How a record is batched on its way to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a batch with other records. A refusal of the batch says little about one of its records.
    Batched,
    /// In a batch of its own, so that the broker's response applies to this record.
    Alone,
}

/// Result of sending a record.
#[derive(Debug)]
pub enum Sent {
    /// It is queued: its token is answered once, sooner or later.
    Queued,
    /// It was refused at once; its token is not answered.
    Refused(Box<EmitFailure>),
    /// The queue is full; retry when answers have arrived. Its token is not answered.
    NoRoom,
}

/// Sends records to a producer with `acks=all`. Called by workers and pumps; never blocks.
pub trait Emitter: Send + Sync {
    /// Queues one record. Its answer arrives at `reply_to`: exactly one, if [`Sent::Queued`] is returned.
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        way: Way,
        reply_to: &Arc<Inbox>,
        token: EmitToken,
    ) -> Sent;
}
