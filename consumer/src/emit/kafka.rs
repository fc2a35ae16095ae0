//! The real emitter: librdkafka's idempotent producer with `acks=all`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Message};

use super::{EmitError, EmitGroup, Emitter, Outgoing};
use crate::source::ClientSettings;
use crate::source::callbacks::log;
use crate::source::raw::produce;

/// Keys of the producer. A record waits for its emits, so they linger for a moment only; keys go to the partitions
/// that the Java client would choose.
const PRODUCER: [(&str, &str); 6] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "1"),
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "65536"),
];

/// Produces what handlers emit, and dead letters. Shared by workers and pumps.
pub struct KafkaEmitter {
    settings: ClientSettings,
    producer: ArcSwap<ThreadedProducer<Answers>>,
    renewing: Mutex<()>,
}

impl KafkaEmitter {
    /// Makes a producer; it connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses the config, with its words.
    pub fn new(settings: ClientSettings) -> Result<Self, KafkaError> {
        let producer = ArcSwap::from_pointee(make(&settings)?);
        Ok(Self {
            settings,
            producer,
            renewing: Mutex::new(()),
        })
    }

    /// Waits until everything is answered. What is left at the deadline is given up: its groups are told so.
    pub fn flush(&self, deadline: Duration) {
        let producer = self.producer.load_full();
        if producer.flush(deadline).is_err() {
            tracing::warn!(
                records = producer.in_flight_count(),
                "emitted records were not acknowledged in time"
            );
            producer.purge(PurgeConfig::default().queue().inflight());
            let _ = producer.flush(Duration::from_secs(1));
        }
    }

    /// Puts a new producer in the place of one that a fatal error has ended.
    fn renew(&self, broken: &Arc<ThreadedProducer<Answers>>) -> Result<(), KafkaError> {
        let _one_at_a_time = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&self.producer.load(), broken) {
            let reason = broken.client().fatal_error().map(|(_, reason)| reason);
            tracing::error!(reason, "the producer failed for good; making a new one");
            self.producer.store(Arc::new(make(&self.settings)?));
        }
        Ok(())
    }
}

impl Emitter for KafkaEmitter {
    fn send(&self, record: &Outgoing<'_>, group: &Arc<EmitGroup>) -> Result<(), EmitError> {
        let producer = self.producer.load_full();
        match produce(producer.client(), record, group) {
            Ok(()) => Ok(()),
            Err(RDKafkaErrorCode::QueueFull) => Err(EmitError::QueueFull),
            Err(code) => {
                if producer.client().fatal_error().is_some()
                    && let Err(error) = self.renew(&producer)
                {
                    tracing::error!(%error, "no new producer");
                }
                Err(EmitError::Refused(format!(
                    "cannot produce to {}: {code}",
                    record.topic
                )))
            }
        }
    }
}

fn make(settings: &ClientSettings) -> Result<ThreadedProducer<Answers>, KafkaError> {
    let mut config = settings.connection();
    for (key, value) in PRODUCER {
        config.set(key, value);
    }
    ThreadedProducer::from_config_and_context(&config, Answers)
}

/// Passes the brokers' answers on.
struct Answers;

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "producer");
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Arc<EmitGroup>;

    fn delivery(&self, result: &DeliveryResult<'_>, group: Arc<EmitGroup>) {
        match result {
            Ok(record) => group.acknowledged(record.topic()),
            Err((error, _)) => group.answered(Some(&error.to_string())),
        }
    }
}

#[cfg(test)]
#[path = "kafka_tests.rs"]
mod tests;
