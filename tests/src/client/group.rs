//! Members of a consumer group.

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Client, TIMEOUT};

impl Client {
    /// The number of members of a group, including those that are joining.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn members(&self, group: &str) -> usize {
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        // A new coordinator is briefly not ready.
        let groups = crate::wait::wait_for("a description of a group", TIMEOUT, || {
            let found = consumer.fetch_group_list(Some(group), TIMEOUT);
            found.map_err(|error| error.to_string())
        });
        let found = groups.groups().iter().find(|found| found.name() == group);
        found.map_or(0, |group| group.members().len())
    }
}
