//! An idempotent producer for rows: every record is acknowledged, or the first refusal ends the job.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};

/// How long the cluster has to answer at first.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a record may wait for its acknowledgement.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// Why records are not written.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The client refuses its configuration.
    #[error("the Kafka client cannot be set up: {0}")]
    Client(String),
    /// Nobody answers.
    #[error("no broker answers at `{brokers}` within {} s ({reason}); check the address and that the cluster runs", CONNECT_TIMEOUT.as_secs())]
    NoBroker {
        /// Bootstrap servers.
        brokers: String,
        /// The client's words.
        reason: String,
    },
    /// The topic is not there.
    #[error("topic `{topic}` is not usable: {reason}; create it first")]
    NoTopic {
        /// The topic.
        topic: String,
        /// The cluster's words.
        reason: String,
    },
    /// The cluster refused a record.
    #[error("a record for `{topic}` was not written: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// The cluster's words.
        reason: String,
    },
}

/// Keeps the first refusal.
#[derive(Default)]
struct Refusals {
    any: AtomicBool,
    first: OnceLock<String>,
}

impl ClientContext for Refusals {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ProducerContext for Refusals {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            let _ = self
                .first
                .set(format!("{error} (partition {})", record.partition()));
            self.any.store(true, Ordering::Release);
        }
    }
}

/// Writes records to one topic.
pub struct Sender {
    producer: ThreadedProducer<Refusals>,
    topic: String,
}

impl Sender {
    /// A sender to `topic`, once the cluster has said that the topic is there.
    ///
    /// # Errors
    /// [`SendError`] when no broker answers or the topic is not usable.
    pub fn connect(brokers: &str, topic: &str) -> Result<Self, SendError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "sluicegate-produce")
            .set("enable.idempotence", "true")
            .set(
                "message.timeout.ms",
                DELIVERY_TIMEOUT.as_millis().to_string(),
            )
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("compression.type", "lz4")
            .set("queue.buffering.max.messages", "200000")
            .set("queue.buffering.max.kbytes", "131072")
            // The Java clients' default, so that a key has one partition whoever writes it.
            .set("partitioner", "murmur2_random");
        let created = config.create_with_context(Refusals::default());
        let producer: ThreadedProducer<Refusals> =
            created.map_err(|error| SendError::Client(error.to_string()))?;
        wait_for_topic(&producer, brokers, topic)?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
        })
    }

    /// Queues a record, waiting for room.
    ///
    /// # Errors
    /// [`SendError::Refused`], also for an earlier record.
    pub fn send<'a>(
        &self,
        key: Option<&str>,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
        value: &[u8],
    ) -> Result<(), SendError> {
        let mut all: Option<OwnedHeaders> = None;
        for (name, value) in headers {
            let header = Header {
                key: name,
                value: Some(value),
            };
            all = Some(
                all.unwrap_or_else(|| OwnedHeaders::new_with_capacity(4))
                    .insert(header),
            );
        }
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic).payload(value);
        record.key = key;
        record.headers = all;
        loop {
            self.check()?;
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err((error, _)) => return Err(self.refused(error.to_string())),
            }
        }
    }

    /// Waits until everything is acknowledged.
    ///
    /// # Errors
    /// [`SendError::Refused`].
    pub fn finish(&self) -> Result<(), SendError> {
        // Every record is answered within its own timeout; the margin is for the answer's way.
        let flushed = self
            .producer
            .flush(DELIVERY_TIMEOUT + Duration::from_secs(5));
        self.check()?;
        flushed.map_err(|error| self.refused(error.to_string()))
    }

    fn check(&self) -> Result<(), SendError> {
        if !self.producer.context().any.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.producer.context().first.get();
        Err(self.refused(reason.cloned().unwrap_or_default()))
    }

    fn refused(&self, reason: String) -> SendError {
        SendError::Refused {
            topic: self.topic.clone(),
            reason,
        }
    }
}

/// Asks for the topic until it has a leader: a cluster may make it on being asked.
fn wait_for_topic(
    producer: &ThreadedProducer<Refusals>,
    brokers: &str,
    topic: &str,
) -> Result<(), SendError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(100));
        let metadata = producer.client().fetch_metadata(Some(topic), left);
        let metadata = metadata.map_err(|error| SendError::NoBroker {
            brokers: brokers.to_owned(),
            reason: error.to_string(),
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = found
            .and_then(|found| found.error())
            .map(RDKafkaErrorCode::from);
        let partitions = found.map_or(0, |found| found.partitions().len());
        if error.is_none() && partitions > 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let reason = error.map_or_else(|| "it has no partition".to_owned(), |e| e.to_string());
            return Err(SendError::NoTopic {
                topic: topic.to_owned(),
                reason,
            });
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
