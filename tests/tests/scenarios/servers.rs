//! Situation: a machine with Java and Maven (or Docker), and nothing else.
//! Property: the harness starts real servers, and written records are read back; ACLs and logins are enforced;
//! a killed node comes back with its records. All other scenarios depend on this.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Takes: 62 s.
//! Command: `cargo xtask test --scenario servers`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Acl, Kafka, KafkaOptions, PASSWORD, USER};
use e2e::process::Signal;
use e2e::unique;
use e2e::wait::wait_for;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn records_are_read_back_complete_and_in_order() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let topic = unique("round-trip");
    client.create_topic(&topic, 3);
    let records = (0..3000).map(|number: u32| {
        let record = Outgoing::new(&format!("k{}", number % 7), number.to_string());
        record
            .partition((number % 3) as i32)
            .header("a", "1")
            .header("a", vec![0xff, 0x00])
    });
    assert_eq!(client.produce(&topic, records), 3000);
    let read = client.read(&topic);
    assert_eq!(read.len(), 3000);
    assert_eq!(client.count(&topic), 3000);
    for record in &read {
        let number = i64::from(record.partition) + 3 * record.offset;
        assert_eq!(record.text(), number.to_string());
        assert_eq!(
            record.headers,
            [
                ("a".to_owned(), b"1".to_vec()),
                ("a".to_owned(), vec![0xff, 0x00])
            ]
        );
    }
    assert!(client.committed("no-such-group", &topic).is_empty());
}

#[test]
fn a_login_is_required_and_a_revoked_permission_is_enforced() {
    let options = KafkaOptions {
        secured: true,
        authorizer: true,
        ..KafkaOptions::default()
    };
    let kafka = Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("guarded", 1);
    client.produce("guarded", [Outgoing::new("k", "v")]);

    let (secure, ca) = kafka.secure();
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &secure)
            .set("security.protocol", "SASL_SSL");
        config.set("ssl.ca.location", ca.display().to_string());
        config
            .set("sasl.mechanism", mechanism)
            .set("sasl.username", USER)
            .set("sasl.password", PASSWORD);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let found = consumer
            .fetch_watermarks("guarded", 0, DEADLINE)
            .expect("offsets through TLS and SASL");
        assert_eq!(found, (0, 1), "{mechanism}");
        config.set("sasl.password", "wrong");
        let refused: BaseConsumer = config.create().expect("a consumer");
        assert!(
            refused
                .fetch_watermarks("guarded", 0, Duration::from_secs(3))
                .is_err(),
            "{mechanism}"
        );
    }

    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", kafka.login())
        .set("security.protocol", "SASL_PLAINTEXT");
    config
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", USER)
        .set("sasl.password", PASSWORD);
    config.set("group.id", "reader");
    let may_read = || {
        let consumer: BaseConsumer = config.create().map_err(|error| error.to_string())?;
        let mut start = TopicPartitionList::new();
        start
            .add_partition_offset("guarded", 0, Offset::Beginning)
            .map_err(|error| error.to_string())?;
        consumer.assign(&start).map_err(|error| error.to_string())?;
        match consumer.poll(Duration::from_secs(5)) {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("nothing came".to_owned()),
        }
    };
    let rule = Acl::DenyRead {
        topic: "guarded".to_owned(),
    };
    wait_for("the read permission", DEADLINE, may_read);
    kafka
        .change_acl(&rule, true)
        .unwrap_or_else(|error| panic!("{error:#}"));
    wait_for("the permission to be revoked", DEADLINE, || {
        may_read().map_or(Ok(()), |()| Err("may still read".to_owned()))
    });
    kafka
        .change_acl(&rule, false)
        .unwrap_or_else(|error| panic!("{error:#}"));
    wait_for("the permission to be restored", DEADLINE, may_read);
}

#[test]
fn three_nodes_survive_the_loss_of_one_and_a_killed_node_comes_back() {
    let mut kafka =
        Kafka::start(&KafkaOptions::three_nodes()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic_with("kept", 3, 3, &[("min.insync.replicas", "2")]);
    client.produce(
        "kept",
        (0..300).map(|number| Outgoing::new(&number.to_string(), "before")),
    );
    kafka
        .stop_node(2, Signal::KILL)
        .unwrap_or_else(|error| panic!("{error:#}"));
    client.produce(
        "kept",
        (0..300).map(|number| Outgoing::new(&number.to_string(), "without it")),
    );
    kafka
        .start_node(2)
        .unwrap_or_else(|error| panic!("{error:#}"));
    client.await_in_sync("kept");
    kafka
        .stop_node(0, Signal::TERM)
        .unwrap_or_else(|error| panic!("{error:#}"));
    wait_for(
        "all records from the remaining nodes",
        DEADLINE,
        || match client.count("kept") {
            600 => Ok(()),
            other => Err(format!("{other} records")),
        },
    );
    assert_eq!(client.read("kept").len(), 600);
}

#[test]
fn zookeeper_and_etcd_start() {
    let zookeeper = e2e::zookeeper::ZooKeeper::start().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(zookeeper.connect().contains(':'));
    let etcd = e2e::etcd::Etcd::start().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(etcd.endpoint().starts_with("http://"));
}
