//! An idempotent producer for rows: every record is acknowledged, or the first rejection ends the job.

use std::error::Error;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use sluicegate_kafka::reach::{NoBroker, wait_for_broker};
use sluicegate_kafka::{NewTopic, create_topics};

/// How long the cluster may take to answer at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a record in bytes: the client's default, which is below a broker's.
const MAX_RECORD_BYTES: u32 = 1_000_000;
/// How long a record may wait for its acknowledgement.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// Why records are not written.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The client rejects its configuration.
    #[error("the Kafka client cannot be set up: {0}")]
    Client(String),
    /// No broker answers.
    #[error(transparent)]
    NoBroker(#[from] NoBroker),
    /// The topic does not exist.
    #[error("topic `{topic}` is not usable: {source}; create it first, or with --create-topic")]
    NoTopic {
        /// The topic.
        topic: String,
        /// The cluster's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A record was rejected.
    #[error("a record for `{topic}` was not written: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// The line of its row, from 1; 0 if unknown.
        line: u64,
        /// The cluster's error.
        reason: String,
    },
}

/// Keeps the first rejection.
#[derive(Default)]
struct Refusals {
    any: AtomicBool,
    /// The line and the reason.
    first: OnceLock<(u64, String)>,
    acknowledged: AtomicU64,
}

impl ClientContext for Refusals {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ProducerContext for Refusals {
    /// The line of the record's row.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        match result {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, record)) => {
                let reason = format!("{error} (partition {})", record.partition());
                let _ = self.first.set((line as u64, reason));
                self.any.store(true, Ordering::Release);
            }
        }
    }
}

/// Writes records to one topic.
pub struct Sender {
    producer: ThreadedProducer<Refusals>,
    topic: String,
}

impl Sender {
    /// A sender to `topic`, once the cluster has confirmed that the topic exists; `create` creates a missing one with
    /// this number of partitions. `tell` gets a message if no broker answers for a while.
    ///
    /// # Errors
    /// [`SendError`] if no broker answers or the topic is not usable.
    pub fn connect(
        brokers: &str,
        topic: &str,
        create: Option<i32>,
        tell: fn(&str),
    ) -> Result<Self, SendError> {
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
            .set("message.max.bytes", MAX_RECORD_BYTES.to_string())
            .set("queue.buffering.max.messages", "200000")
            .set("queue.buffering.max.kbytes", "131072")
            // The Java clients' default, so that a key maps to the same partition whichever client writes it.
            .set("partitioner", "murmur2_random");
        if let Some(partitions) = create {
            wait_for_broker(&config, None, tell)?;
            create_topic(brokers, topic, partitions)?;
        } else {
            wait_for_broker(&config, Some(topic), tell)?;
        }
        let created = config.create_with_context(Refusals::default());
        let producer: ThreadedProducer<Refusals> =
            created.map_err(|error| SendError::Client(error.to_string()))?;
        wait_for_topic(&producer, brokers, topic)?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
        })
    }

    /// Queues the record of the row at `line`, waiting for room in the queue.
    ///
    /// # Errors
    /// [`SendError::Refused`], also for an earlier record.
    pub fn send<'a>(
        &self,
        key: Option<&str>,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
        value: &[u8],
        line: u64,
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
        let opaque = usize::try_from(line).unwrap_or(0);
        let mut record =
            BaseRecord::<str, [u8], usize>::with_opaque_to(&self.topic, opaque).payload(value);
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
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {
                    let reason = format!(
                        "the record, a value of {} bytes with its key and headers, exceeds the limit of {MAX_RECORD_BYTES} bytes",
                        value.len()
                    );
                    return Err(self.refused(line, reason));
                }
                Err((error, _)) => return Err(self.refused(line, error.to_string())),
            }
        }
    }

    /// Waits until everything is acknowledged.
    ///
    /// # Errors
    /// [`SendError::Refused`].
    pub fn finish(&self) -> Result<(), SendError> {
        // Every record is answered within its own timeout; the margin covers the delivery of the answer.
        let flushed = self
            .producer
            .flush(DELIVERY_TIMEOUT + Duration::from_secs(5));
        self.check()?;
        flushed.map_err(|error| self.refused(0, error.to_string()))
    }

    /// Number of records that the cluster has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.producer.context().acknowledged.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), SendError> {
        if !self.producer.context().any.load(Ordering::Acquire) {
            return Ok(());
        }
        let first = self.producer.context().first.get();
        let (line, reason) = first.cloned().unwrap_or_default();
        Err(self.refused(line, reason))
    }

    fn refused(&self, line: u64, reason: String) -> SendError {
        SendError::Refused {
            topic: self.topic.clone(),
            line,
            reason,
        }
    }
}

/// Creates the topic, unless it exists.
fn create_topic(brokers: &str, topic: &str, partitions: i32) -> Result<(), SendError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "sluicegate-produce");
    let admin: AdminClient<DefaultClientContext> = config
        .create()
        .map_err(|error| SendError::Client(error.to_string()))?;
    let wanted = [NewTopic {
        name: topic.to_owned(),
        partitions,
    }];
    let not_made = |source| SendError::NoTopic {
        topic: topic.to_owned(),
        source,
    };
    let answers = create_topics(admin.inner(), &wanted, CONNECT_TIMEOUT)
        .map_err(|error| not_made(error.into()))?;
    let answer = answers.into_iter().next().unwrap_or(Ok(false));
    answer.map(drop).map_err(|error| not_made(error.into()))
}

/// Polls the topic's metadata until it has a leader: a cluster may create the topic on request.
fn wait_for_topic(
    producer: &ThreadedProducer<Refusals>,
    brokers: &str,
    topic: &str,
) -> Result<(), SendError> {
    let start = Instant::now();
    let deadline = start + CONNECT_TIMEOUT;
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(100));
        let metadata = producer.client().fetch_metadata(Some(topic), left);
        let metadata = metadata.map_err(|error| NoBroker {
            brokers: brokers.to_owned(),
            within_s: start.elapsed().as_secs().max(1),
            reason: error.to_string(),
            login_rejected: false,
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
            let source = error.map_or_else(|| "it has no partition".into(), Into::into);
            return Err(SendError::NoTopic {
                topic: topic.to_owned(),
                source,
            });
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
