//! Operations on existing topics: adding partitions, and querying leaders.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::client::{Client, TIMEOUT, block_on};

impl Client {
    /// Increases the number of partitions of a topic.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn add_partitions(&self, topic: &str, partitions: usize) {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().expect("an admin client");
        let grown = block_on(admin.create_partitions(
            [&NewPartitions::new(topic, partitions)],
            &AdminOptions::new().operation_timeout(Some(TIMEOUT)),
        ));
        for result in grown.expect("an answer to CreatePartitions") {
            result.unwrap_or_else(|(name, code)| panic!("cannot grow topic {name}: {code}"));
        }
        self.wait_topic(topic, partitions as i32);
    }

    /// The leader of a partition; negative if there is none.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        let metadata = consumer
            .fetch_metadata(Some(topic), TIMEOUT)
            .expect("metadata of a topic");
        let partitions = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions());
        let found = partitions.into_iter().find(|found| found.id() == partition);
        found.map_or(-1, |found| found.leader())
    }
}
