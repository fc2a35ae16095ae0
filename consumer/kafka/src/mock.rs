//! An in-process Kafka cluster for the demo and for tests: librdkafka's mock brokers.
//!
//! It keeps 5 MiB (or 100,000 batches) per partition and drops older records silently, has no aborted transactions and
//! no admin requests: its user must pace writes, and it proves nothing about a real broker.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaApiKey;

use crate::ffi;

/// A running mock cluster; it stops when dropped.
pub struct MockKafka {
    /// The client that hosts the cluster.
    host: BaseProducer,
}

impl MockKafka {
    /// Starts `brokers` mock brokers on free local ports. Groups form at once instead of after 3 s.
    ///
    /// # Errors
    /// If librdkafka cannot start them.
    pub fn start(brokers: u32) -> Result<Self, KafkaError> {
        let host: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", brokers.max(1).to_string())
            .set_log_level(RDKafkaLogLevel::Error)
            .create()?;
        ffi::mock::form_groups_at_once(host.client());
        Ok(Self { host })
    }

    /// Value for `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> String {
        self.cluster()
            .map(|cluster| cluster.bootstrap_servers())
            .unwrap_or_default()
    }

    /// Creates a topic; a topic that is written to without this gets 4 partitions.
    ///
    /// # Errors
    /// If the topic already exists.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), KafkaError> {
        match self.cluster() {
            Some(cluster) => cluster.create_topic(name, partitions, 1),
            None => Ok(()),
        }
    }

    /// Starts counting requests; see [`Self::requests`].
    pub fn count_requests(&self) {
        ffi::mock::keep_requests(self.host.client());
    }

    /// Number of requests of a kind since [`Self::count_requests`].
    pub fn requests(&self, kind: RDKafkaApiKey) -> usize {
        ffi::mock::kept_requests(self.host.client(), kind as i16)
    }

    /// librdkafka's own handle, for fault injection.
    pub fn cluster(&self) -> Option<MockCluster<'_, DefaultProducerContext>> {
        self.host.client().mock_cluster()
    }
}
