//! Operations on existing topics: adding partitions, and querying leaders.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;

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
        self.leaders(topic).get(&partition).copied().unwrap_or(-1)
    }

    /// The leader of every partition of a topic; negative where there is none.
    ///
    /// # Panics
    /// If no broker answers.
    #[must_use]
    pub fn leaders(&self, topic: &str) -> BTreeMap<i32, i32> {
        let metadata = self.metadata(Some(topic));
        let partitions = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions());
        partitions
            .map(|found| (found.id(), found.leader()))
            .collect()
    }
}
