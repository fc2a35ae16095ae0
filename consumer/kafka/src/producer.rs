//! The production emitter: librdkafka's idempotent producers with `acks=all`.
//!
//! The regular producer sends batches. Another one, created on first use, sends every record in a batch of its own: it
//! is for records whose batch was refused, so that one bad record does not fail its neighbours.

mod refusal;
mod slot;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_config::secret::{Redaction, Redactor};
use sluicegate_engine::emit::{Emitter, ProducerRecord, Sent, Ticket, Way};

use crate::ffi::produce;
use crate::settings::ClientSettings;
use refusal::Refused;
use slot::Slot;

/// Produces emitted records and dead letters. Shared by workers and pumps.
pub struct KafkaEmitter {
    batched: Arc<Slot>,
    alone: Arc<Slot>,
    /// Secrets to redact from librdkafka's messages, some of which name topics.
    secrets: Arc<Redaction>,
}

impl KafkaEmitter {
    /// Creates a producer; it connects in the background.
    ///
    /// # Errors
    /// If librdkafka rejects the config, with its error.
    pub fn new(settings: &ClientSettings) -> Result<Self, KafkaError> {
        let secrets = Arc::new(Redaction::default());
        let slot = |config, way| Slot::new(config, way, Arc::clone(&secrets));
        let batched = slot(settings.producer(), Way::Batched);
        batched.prepare()?;
        Ok(Self {
            batched,
            alone: slot(settings.lone_producer(), Way::Alone),
            secrets,
        })
    }

    /// Waits until everything is answered. Records that are unanswered at the deadline are abandoned, and their tickets
    /// are failed.
    pub fn flush(&self, deadline: Duration) {
        self.batched.flush(deadline);
        self.alone.flush(deadline);
    }
}

impl Emitter for KafkaEmitter {
    fn send(&self, record: &ProducerRecord<'_>, way: Way, ticket: Ticket) -> Sent {
        let slot = match way {
            Way::Batched => &self.batched,
            Way::Alone => &self.alone,
        };
        let client = match slot.get() {
            Ok(client) => client,
            Err(why) => {
                ticket.failed(refusal::no_producer(record.topic, &why));
                return Sent::Refused;
            }
        };
        let limits = slot.limits();
        let (code, ticket) = match produce(client.client(), record, Box::new(ticket)) {
            Ok(()) => return Sent::Queued,
            Err(refused) => refused,
        };
        let value = record.value.map_or(0, <[u8]>::len) as u64;
        if code == RDKafkaErrorCode::QueueFull && value <= limits.queue {
            return Sent::NoRoom(*ticket);
        }
        let fatal = client.client().fatal_error();
        ticket.failed(match fatal {
            Some((_, reason)) => {
                let reason = self.secrets.redact(&reason);
                let failure = refusal::no_producer(record.topic, &reason);
                slot.retire(client, &reason);
                failure
            }
            None => {
                let key = record.key.map_or(0, <[u8]>::len) as u64;
                let refused = Refused {
                    topic: record.topic,
                    bytes: key + value + record.headers.len() as u64,
                };
                refusal::at_once(code, refused, limits)
            }
        });
        Sent::Refused
    }

    fn hide(&self, secrets: &Redactor) {
        self.secrets.add(secrets);
    }
}

#[cfg(test)]
#[path = "producer_tests.rs"]
mod tests;
