//! A librdkafka producer, and the thread that takes its reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::client;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_engine::emit::ProducerRecord;

use super::answers::{Answers, Batch};
use super::topics::Topics;
use crate::ffi::{self, ReportQueue};

/// Longest wait for a report.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A producer whose answers are passed on until it has ended and nothing is unanswered.
pub(super) struct Client {
    // Dropped first: see `Topics`.
    topics: Topics,
    producer: BaseProducer<Answers>,
    ended: AtomicBool,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Creates a producer; it connects in the background.
    ///
    /// # Errors
    /// If librdkafka rejects the config, or no thread can be started.
    pub(super) fn start(config: &ClientConfig, answers: Answers) -> Result<Arc<Self>, KafkaError> {
        let producer = BaseProducer::from_config_and_context(config, answers)?;
        let client = Arc::new(Self {
            topics: Topics::default(),
            producer,
            ended: AtomicBool::new(false),
            reader: Mutex::new(None),
        });
        let queue = ReportQueue::of(client.native());
        let queue =
            queue.ok_or_else(|| KafkaError::ClientCreation("it has no queue".to_owned()))?;
        let reader = Arc::clone(&client);
        let thread = std::thread::Builder::new()
            .name("producer".to_owned())
            .spawn(move || reader.read(queue))
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        *client.lock_reader() = Some(thread);
        Ok(client)
    }

    /// Gives it a record; `opaque` comes back with the answer.
    ///
    /// # Errors
    /// librdkafka's code.
    pub(super) fn produce(
        &self,
        record: &ProducerRecord<'_>,
        opaque: u64,
    ) -> Result<(), RDKafkaErrorCode> {
        self.topics.produce(self.native(), record, opaque)
    }

    /// librdkafka's client.
    pub(super) fn native(&self) -> &client::Client<Answers> {
        self.producer.client()
    }

    /// Passes reports on until the producer has ended.
    fn read(&self, mut queue: ReportQueue) {
        let answers = self.native().context();
        let mut batch = Batch::new(answers);
        while !self.ended.load(Ordering::Acquire) || self.unanswered() > 0 {
            queue.poll(POLL_INTERVAL, &mut batch);
        }
    }

    fn lock_reader(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of records without an answer.
    pub(super) fn unanswered(&self) -> i32 {
        self.producer.in_flight_count()
    }

    /// Sends what is queued, and waits for the answers. Returns whether all have arrived in time.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        ffi::flush(self.native(), timeout)
    }

    /// Answers everything as failed that is unanswered.
    pub(super) fn abandon(&self) {
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
    }

    /// No record is given to it any more: it is dropped once everything is answered.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Waits until everything is answered after its end, for this long.
    pub(super) fn wait_for_end(&self, limit: Duration) {
        let Some(reader) = self.lock_reader().take() else {
            return;
        };
        let deadline = Instant::now() + limit;
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
