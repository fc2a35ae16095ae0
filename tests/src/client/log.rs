//! Log operations besides plain writes: transactions, and the deletion of records.

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{Acknowledged, Client, Outgoing, TIMEOUT, base, block_on, send};

impl Client {
    /// Writes records in one transaction and commits or aborts it.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn transact(&self, topic: &str, records: &[Outgoing], commit: bool) {
        let mut config = self.config();
        config.set("transactional.id", crate::unique("transaction"));
        let producer: BaseProducer<Acknowledged> = config
            .create_with_context(Acknowledged::default())
            .expect("a producer");
        producer.init_transactions(TIMEOUT).expect("a producer id");
        producer.begin_transaction().expect("a transaction");
        for record in records {
            send(&producer, base(topic, record));
        }
        producer.flush(TIMEOUT).expect("acknowledged");
        let failed = producer.context().failed();
        assert!(failed.is_empty(), "refused: {}", failed[0]);
        let ended = if commit {
            producer.commit_transaction(TIMEOUT)
        } else {
            producer.abort_transaction(TIMEOUT)
        };
        ended.expect("the end of a transaction");
    }

    /// Deletes the records before an offset of each partition, as retention does.
    ///
    /// # Panics
    /// If the broker refuses.
    pub fn delete_before(&self, topic: &str, offsets: impl IntoIterator<Item = (i32, i64)>) {
        let admin: AdminClient<DefaultClientContext> =
            self.config().create().expect("an admin client");
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))
                .expect("an offset");
        }
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let gone = block_on(admin.delete_records(&list, &options)).expect("an answer");
        for row in gone.elements() {
            row.error().expect("the records are deleted");
        }
    }
}
