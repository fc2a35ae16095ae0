//! A Kafka cluster inside the process, for the demo and for tests: librdkafka's mock brokers.
//!
//! It keeps 5 MiB (or 100,000 batches) a partition and drops older records silently, has no aborted transactions and
//! no admin requests: whoever fills it paces the filling, and it proves nothing about a real broker.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaApiKey;

use super::raw;

/// A running mock cluster; it ends when dropped.
pub struct MockKafka {
    /// The client that the cluster lives in.
    host: BaseProducer,
}

impl MockKafka {
    /// Starts `brokers` mock brokers on free local ports. Groups form at once instead of after 3 s.
    ///
    /// # Errors
    /// When librdkafka cannot start them.
    pub fn start(brokers: u32) -> Result<Self, KafkaError> {
        let host: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", brokers.max(1).to_string())
            .set_log_level(RDKafkaLogLevel::Error)
            .create()?;
        raw::mock::form_groups_at_once(host.client());
        Ok(Self { host })
    }

    /// What clients put into `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> String {
        self.cluster()
            .map(|cluster| cluster.bootstrap_servers())
            .unwrap_or_default()
    }

    /// Creates a topic; without it, a topic that is written to appears with 4 partitions.
    ///
    /// # Errors
    /// When the topic exists already.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), KafkaError> {
        match self.cluster() {
            Some(cluster) => cluster.create_topic(name, partitions, 1),
            None => Ok(()),
        }
    }

    /// Counts requests from now on; see [`Self::requests`].
    pub fn count_requests(&self) {
        raw::mock::keep_requests(self.host.client());
    }

    /// How many requests of a kind came since [`Self::count_requests`].
    pub fn requests(&self, kind: RDKafkaApiKey) -> usize {
        raw::mock::kept_requests(self.host.client(), kind as i16)
    }

    /// librdkafka's own handle, for faults on demand.
    pub fn cluster(&self) -> Option<MockCluster<'_, DefaultProducerContext>> {
        self.host.client().mock_cluster()
    }
}
