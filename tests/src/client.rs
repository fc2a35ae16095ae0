//! A Kafka client independent of the service: creates topics, writes and reads records, queries committed offsets.

mod group;
mod log;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one node may take to answer before the question is asked again: it can be frozen, and another one then answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const READ_DEADLINE: Duration = Duration::from_secs(180);

/// A record to write.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// The partition; `None` chooses it by the key's hash.
    pub partition: Option<i32>,
    /// The key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in order; names may repeat.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The timestamp in milliseconds since the epoch; `None` is now.
    pub timestamp_ms: Option<i64>,
}

impl Outgoing {
    /// A record with a key and a value.
    #[must_use]
    pub fn new(key: &str, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// The same record with an additional header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The same record with this timestamp.
    #[must_use]
    pub fn at(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// The same record for this partition.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds since the epoch; -1 without one.
    pub timestamp_ms: i64,
    /// Its key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Read {
    /// The value as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The key as text.
    #[must_use]
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// The first header of this name as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }
}

/// A client of one cluster.
#[derive(Clone)]
pub struct Client {
    bootstrap: String,
}

impl Client {
    /// A client of the plain listeners at `bootstrap`.
    #[must_use]
    pub fn new(bootstrap: &str) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
        }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    /// Creates a topic with `partitions` partitions and one replica.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, 1, &[]);
    }

    /// Creates a topic with a replication factor and topic settings.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn create_topic_with(
        &self,
        topic: &str,
        partitions: i32,
        replicas: i32,
        settings: &[(&str, &str)],
    ) {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().expect("an admin client");
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let made = block_on(admin.create_topics(
            [&new],
            &AdminOptions::new().operation_timeout(Some(TIMEOUT)),
        ));
        for result in made.expect("an answer to CreateTopics") {
            result.unwrap_or_else(|(name, code)| panic!("cannot create topic {name}: {code}"));
        }
        self.wait_topic(topic, partitions);
    }

    /// Removes a topic and its records.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn delete_topic(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().expect("an admin client");
        let gone = block_on(admin.delete_topics(
            &[topic],
            &AdminOptions::new().operation_timeout(Some(TIMEOUT)),
        ));
        for result in gone.expect("an answer to DeleteTopics") {
            result.unwrap_or_else(|(name, code)| panic!("cannot remove topic {name}: {code}"));
        }
    }

    pub(crate) fn wait_topic(&self, topic: &str, partitions: i32) {
        crate::wait::wait_for(&format!("topic {topic}"), TIMEOUT, || {
            let known = self.partitions(topic);
            if known.len() == partitions as usize {
                Ok(())
            } else {
                Err(format!("{} partitions", known.len()))
            }
        });
    }

    /// What the nodes that answer know about one topic, or about all.
    pub(crate) fn metadata(&self, topic: Option<&str>) -> Metadata {
        crate::wait::wait_for("metadata of topics", TIMEOUT, || {
            let consumer: BaseConsumer = self.config().create().expect("a consumer");
            let found = consumer.fetch_metadata(topic, ANSWER_TIMEOUT);
            found.map_err(|error| error.to_string())
        })
    }

    /// The partitions of a topic that have a leader; empty if the topic does not exist.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> Vec<i32> {
        let metadata = self.metadata(Some(topic));
        let topics = metadata
            .topics()
            .iter()
            .filter(|found| found.name() == topic && found.error().is_none());
        topics
            .flat_map(|found| {
                found
                    .partitions()
                    .iter()
                    .filter(|part| part.leader() >= 0)
                    .map(|part| part.id())
            })
            .collect()
    }

    /// The topics that exist.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        self.metadata(None)
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned())
            .collect()
    }

    /// Writes records and waits until all of them are acknowledged.
    ///
    /// # Panics
    /// If the broker refuses or does not acknowledge them in time.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = Outgoing>) -> u64 {
        let mut config = self.config();
        config
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "500000")
            .set("message.max.bytes", "100000000")
            .set("enable.idempotence", "true");
        config
            .set("compression.type", "none")
            .set("partitioner", "murmur2_random");
        let producer: BaseProducer<Acknowledged> = config
            .create_with_context(Acknowledged::default())
            .expect("a producer");
        let mut sent = 0;
        for record in records {
            sent += 1;
            send(&producer, base(topic, &record));
        }
        producer
            .flush(Duration::from_secs(120))
            .expect("all records acknowledged");
        let failed = producer.context().failed();
        assert!(
            failed.is_empty(),
            "{} of {sent} records were refused, first: {}",
            failed.len(),
            failed[0]
        );
        sent
    }

    /// First and end offset of every partition of a topic.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn offsets(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        let ends = |partition| {
            // A new leader briefly answers with an error.
            crate::wait::wait_for(
                &format!("the offsets of {topic}/{partition}"),
                TIMEOUT,
                || {
                    let found = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT);
                    found.map_err(|error| error.to_string())
                },
            )
        };
        self.partitions(topic)
            .into_iter()
            .map(|partition| (partition, ends(partition)))
            .collect()
    }

    /// The number of offsets between the start and the end of a topic; 0 if it does not exist.
    #[must_use]
    pub fn count(&self, topic: &str) -> u64 {
        self.offsets(topic)
            .values()
            .map(|(first, end)| (end - first) as u64)
            .sum()
    }

    /// Every record of a topic up to its current end offsets, in order per partition.
    ///
    /// # Panics
    /// If the records are not read in time.
    #[must_use]
    pub fn read(&self, topic: &str) -> Vec<Read> {
        let mut all = Vec::new();
        self.for_each(topic, |record| all.push(record));
        all.sort_by_key(|record| (record.partition, record.offset));
        all
    }

    /// Calls `visit` with every record of a topic up to its current end offsets, in order per partition.
    ///
    /// # Panics
    /// If the records are not read in time.
    pub fn for_each(&self, topic: &str, mut visit: impl FnMut(Read)) {
        let ends = self.offsets(topic);
        let mut open: BTreeMap<i32, i64> = ends
            .iter()
            .filter(|(_, (first, end))| first < end)
            .map(|(part, (_, end))| (*part, *end))
            .collect();
        let mut config = self.config();
        config
            .set("group.id", "e2e-reader")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        config
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        for (partition, (first, _)) in ends.iter().filter(|(part, _)| open.contains_key(*part)) {
            list.add_partition_offset(topic, *partition, Offset::Offset(*first))
                .expect("a start offset");
        }
        consumer.assign(&list).expect("an assignment");
        let deadline = Instant::now() + READ_DEADLINE;
        while !open.is_empty() {
            assert!(
                Instant::now() < deadline,
                "reading {topic}: not at the ends of {open:?} after {READ_DEADLINE:?}"
            );
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    if open.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                        open.remove(&partition);
                    }
                    if ends.get(&partition).is_some_and(|(_, end)| offset < *end) {
                        visit(owned(&message));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // librdkafka recovers from these by itself, with the remaining nodes.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::OperationTimedOut,
                ))) => {}
                Some(Err(error)) => panic!("reading {topic}: {error}"),
                None => {}
            }
        }
    }

    /// Waits until every replica of a topic is in sync, so that any single node can be stopped.
    ///
    /// # Panics
    /// If they are not in time.
    pub fn await_in_sync(&self, topic: &str) {
        crate::wait::wait_for(
            &format!("the replicas of {topic} to be in sync"),
            TIMEOUT,
            || {
                let metadata = self.metadata(Some(topic));
                let partitions = metadata
                    .topics()
                    .iter()
                    .flat_map(|topic| topic.partitions());
                let behind: Vec<i32> = partitions
                    .filter(|partition| partition.isr().len() < partition.replicas().len())
                    .map(|partition| partition.id())
                    .collect();
                if behind.is_empty() {
                    return Ok(());
                }
                Err(format!("partitions {behind:?} lack a replica"))
            },
        );
    }

    /// The committed offset of every partition of a topic in a group; partitions without a commit are omitted.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", group)
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        for partition in self.partitions(topic) {
            list.add_partition(topic, partition);
        }
        // A coordinator that has just started answers that it is not the coordinator.
        let committed = crate::wait::wait_for("a group's commits", TIMEOUT, || {
            let answer = consumer.committed_offsets(list.clone(), TIMEOUT);
            answer.map_err(|error| error.to_string())
        });
        let offsets = committed.elements();
        let known = offsets.iter().filter_map(|row| {
            row.offset()
                .to_raw()
                .map(|offset| (row.partition(), offset))
        });
        known.filter(|(_, offset)| *offset >= 0).collect()
    }

    /// Waits until a group has committed the end offsets of a topic.
    ///
    /// # Panics
    /// If they do not by `deadline`.
    pub fn wait_committed(&self, group: &str, topic: &str, deadline: Duration) {
        crate::wait::wait_for(
            &format!("{group} to commit all of {topic}"),
            deadline,
            || {
                let committed = self.committed(group, topic);
                let behind = self
                    .offsets(topic)
                    .into_iter()
                    .filter(|(partition, (first, end))| {
                        first < end && committed.get(partition) != Some(end)
                    });
                let behind: Vec<_> = behind
                    .map(|(part, (_, end))| format!("{part}: {:?} of {end}", committed.get(&part)))
                    .collect();
                if behind.is_empty() {
                    Ok(())
                } else {
                    Err(behind.join(", "))
                }
            },
        );
    }
}

/// Collects delivery failures.
#[derive(Default)]
struct Acknowledged {
    failed: std::sync::Mutex<Vec<String>>,
}

impl Acknowledged {
    fn failed(&self) -> Vec<String> {
        self.failed.lock().expect("no holder panics").clone()
    }
}

impl rdkafka::ClientContext for Acknowledged {}

impl rdkafka::producer::ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed
                .lock()
                .expect("no holder panics")
                .push(error.to_string());
        }
    }
}

fn base<'a>(topic: &'a str, record: &'a Outgoing) -> BaseRecord<'a, [u8], [u8]> {
    let headers = record.headers.iter();
    let headers = headers.fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value.as_slice()),
        })
    });
    let mut base = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
    if let Some(partition) = record.partition {
        base = base.partition(partition);
    }
    if let Some(timestamp_ms) = record.timestamp_ms {
        base = base.timestamp(timestamp_ms);
    }
    if let Some(key) = &record.key {
        base = base.key(key.as_slice());
    }
    if let Some(value) = &record.value {
        base = base.payload(value.as_slice());
    }
    base
}

fn send(producer: &BaseProducer<Acknowledged>, mut record: BaseRecord<'_, [u8], [u8]>) {
    let deadline = Instant::now() + READ_DEADLINE;
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                producer.poll(Duration::from_millis(50));
                record = back;
            }
            Err((error, _)) => panic!("cannot write a record: {error}"),
        }
    }
}

fn owned(message: &rdkafka::message::BorrowedMessage<'_>) -> Read {
    let headers = message.headers().map(|headers| {
        let pairs = headers.iter().map(|header| {
            (
                header.key.to_owned(),
                header.value.unwrap_or_default().to_vec(),
            )
        });
        pairs.collect()
    });
    Read {
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}

/// Blocks on a future of the admin client. Its own thread completes the future, so parking this one is enough.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}
