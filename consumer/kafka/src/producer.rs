//! The production emitter: librdkafka's idempotent producers with `acks=all`.
//!
//! The regular producer sends batches. Another one, created on first use, sends every record in a batch of its own: it
//! is for records whose batch was refused, so that one bad record does not fail its neighbours.

mod answers;
mod client;
mod error_log;
mod refusal;
mod slot;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_config::secret::Redaction;
use sluicegate_engine::dispatch::Inbox;
use sluicegate_engine::emit::{EmitToken, Emitter, ProducerRecord, Sent, Way};

use crate::settings::ClientSettings;
use answers::Pumps;
use refusal::Refused;
use slot::Slot;

/// Produces emitted records and dead letters. Shared by workers and pumps.
pub struct KafkaEmitter {
    batched: Arc<Slot>,
    alone: Arc<Slot>,
    pumps: Arc<Pumps>,
    /// Those that librdkafka's messages are shown without.
    secrets: Arc<Redaction>,
}

impl KafkaEmitter {
    /// Creates a producer; it connects in the background. librdkafka's messages, some of which name topics, are shown without `secrets`.
    ///
    /// # Errors
    /// If librdkafka rejects the config, with its error.
    pub fn new(settings: &ClientSettings, secrets: &Arc<Redaction>) -> Result<Self, KafkaError> {
        let pumps = Arc::new(Pumps::default());
        let slot = |config, way| Slot::new(config, way, Arc::clone(&pumps), Arc::clone(secrets));
        let batched = slot(settings.producer(), Way::Batched);
        batched.prepare()?;
        Ok(Self {
            batched,
            alone: slot(settings.lone_producer(), Way::Alone),
            pumps,
            secrets: Arc::clone(secrets),
        })
    }

    /// Waits until everything is answered. Records that are unanswered at the deadline are abandoned, and answered as
    /// failed.
    pub fn flush(&self, deadline: Duration) {
        self.batched.flush(deadline);
        self.alone.flush(deadline);
    }
}

impl Emitter for KafkaEmitter {
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        way: Way,
        reply_to: &Arc<Inbox>,
        token: EmitToken,
    ) -> Sent {
        let slot = match way {
            Way::Batched => &self.batched,
            Way::Alone => &self.alone,
        };
        let present = slot.present();
        let client = match present.as_ref() {
            Some(client) => client,
            None => match slot.get() {
                Ok(client) => &client.clone(),
                Err(why) => {
                    return Sent::Refused(Box::new(refusal::no_producer(record.topic, &why)));
                }
            },
        };
        let Some(opaque) = self.pumps.opaque(reply_to, token) else {
            let why = "the producer serves 256 Kafka clients already";
            return Sent::Refused(Box::new(refusal::no_producer(record.topic, why)));
        };
        let limits = slot.limits();
        let Err(code) = client.produce(record, opaque) else {
            return Sent::Queued;
        };
        let value = record.value.map_or(0, <[u8]>::len) as u64;
        if code == RDKafkaErrorCode::QueueFull && value <= limits.queue {
            return Sent::NoRoom;
        }
        let fatal = client.native().fatal_error();
        Sent::Refused(Box::new(match fatal {
            Some((_, reason)) => {
                let reason = self.secrets.redact(&reason);
                let failure = refusal::no_producer(record.topic, &reason);
                slot.retire(Arc::clone(client), &reason);
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
        }))
    }
}

#[cfg(test)]
#[path = "producer_tests.rs"]
mod tests;
