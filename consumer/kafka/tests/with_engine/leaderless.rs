//! Partition 3 of topic `t` cannot be read: the other partitions of `t`, and those of another topic, flow within 2 s of the
//! assignment, with and without commits, and the cause is reported.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::clock::WallClock;
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::event::Event;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::TopicPartition;
use sluicegate_engine::status::{PartitionReport, PartitionState, ProblemKind};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kit::engine_doubles::{HeldPool, flow_settings, handler};

use crate::reading::{Reader, produce};

pub(crate) const PARTITIONS: i32 = 4;
const AWAY: i32 = 3;
pub(crate) const RECORDS: i64 = 50;
const BOUND: Duration = Duration::from_secs(2);
const CLOCK: WallClock = WallClock { epoch_ms: 0 };
const ASSIGNORS: [&str; 2] = ["cooperative-sticky", "range"];

pub(crate) struct Harness {
    kafka: MockKafka,
    pub(crate) reader: Reader,
    pool: Arc<HeldPool>,
    started: Instant,
    /// Added to the engine's clock.
    ahead_ms: u64,
}

impl Harness {
    /// A reader of topics `t` and `u`, after `prepare`.
    pub(crate) fn reading(assignor: &str, prepare: impl FnOnce(&MockKafka)) -> Self {
        let kafka = MockKafka::start(2).expect("a mock cluster starts");
        for topic in ["t", "u"] {
            kafka.create_topic(topic, PARTITIONS).expect("a new topic");
            produce(
                &kafka.bootstrap_servers(),
                topic,
                PARTITIONS,
                RECORDS,
                RECORDS,
            );
        }
        prepare(&kafka);
        let pool = Arc::new(HeldPool::default());
        Self {
            reader: reader(&kafka, assignor, &pool),
            kafka,
            pool,
            started: Instant::now(),
            ahead_ms: 0,
        }
    }

    pub(crate) fn turn(&mut self) {
        let pool = self.pool.clone();
        let now_ms = self.started.elapsed().as_millis() as u64 + self.ahead_ms;
        self.reader.turn(&mut |reader: &mut Reader| {
            reader.step(Event::Tick(now_ms));
            reader.finish(&pool, |_| false);
            if reader.engine.observation_due() {
                reader.observe();
            }
        });
    }

    pub(crate) fn rows(&self) -> Vec<PartitionReport> {
        self.reader.engine.report(CLOCK, |_| None).partitions
    }

    /// Changes every broker of the cluster.
    pub(crate) fn each_broker(
        &self,
        change: impl Fn(&MockCluster<'_, DefaultProducerContext>, i32) -> KafkaResult<()>,
    ) {
        let cluster = self.kafka.cluster().expect("the host owns it");
        for broker in 1..=2 {
            change(&cluster, broker).expect("a known broker");
        }
    }

    fn away(&self) -> PartitionReport {
        let rows = self.rows();
        let away = |row: &PartitionReport| row.topic == "t" && row.partition == AWAY;
        rows.into_iter().find(away).expect("it is assigned")
    }

    /// Turns until everything but `t/3` is handled; how long that took since the assignment.
    fn others_flow(&mut self) -> Duration {
        let others = 2 * PARTITIONS as usize - 1;
        let handled = |row: &&PartitionReport| row.frontier == RECORDS;
        self.turn_until("the others are handled", |harness| {
            harness.rows().iter().filter(handled).count() >= others
        });
        let assigned = self.reader.assigned.expect("they are assigned");
        assigned.elapsed()
    }

    pub(crate) fn turn_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.rows());
            self.turn();
        }
    }

    /// Reports the partition as what cannot be read, with cause and time.
    fn assert_reported(&self, kind: ProblemKind) {
        let row = self.away();
        let problem = row.problem(0).expect("it is a problem");
        assert_eq!(problem.kind, kind);
        assert!(
            problem.cause.contains("the partition has no leader"),
            "{}",
            problem.cause
        );
        assert!(row.since_ms.is_some(), "{row:?}");
        let at = TopicPartition {
            topic: "t".into(),
            partition: AWAY,
        };
        let explained = self.reader.engine.explain(&at, None, CLOCK);
        let reason = explained.and_then(|why| why.reason).expect("a reason");
        assert!(
            reason.contains("the partition has no leader") && reason.contains("(for "),
            "{reason}"
        );
    }
}

fn set_leader(kafka: &MockKafka, leader: Option<i32>) {
    let cluster = kafka.cluster().expect("the host owns it");
    let set = cluster.partition_leader("t", AWAY, leader);
    set.expect("a known partition");
}

/// Lets the group read every partition from its first record, by a commit.
fn commit(kafka: &MockKafka) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap_servers())
        .set("group.id", "g")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for topic in ["t", "u"] {
        for partition in 0..PARTITIONS {
            let added = list.add_partition_offset(topic, partition, Offset::Offset(0));
            added.expect("a valid offset");
        }
    }
    let committed = consumer.commit(&list, CommitMode::Sync);
    committed.expect("the group has no members");
}

/// The other broker coordinates the group.
fn coordinate(cluster: &MockCluster<'_, DefaultProducerContext>) {
    let group = MockCoordinator::Group("g".into());
    cluster.coordinator(group, 1).expect("a known broker");
}

fn reader(kafka: &MockKafka, assignor: &str, pool: &Arc<HeldPool>) -> Reader {
    let pattern = |topic: &str| TopicPattern::Exact(topic.into());
    let route = Route {
        topics: vec![pattern("t"), pattern("u")],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(1, vec![(HandlerIx(0), route)]).expect("topics' names");
    let plan = (index, vec![(HandlerIx(0), handler(pool.clone()))]);
    let client = [("partition.assignment.strategy", assignor)];
    let bootstrap = kafka.bootstrap_servers();
    Reader::new(&bootstrap, "g", flow_settings(), plan, &["t", "u"], &client)
}

#[test]
fn a_partition_without_leader_and_commit_delays_no_other() {
    for assignor in ASSIGNORS {
        let mut harness = Harness::reading(assignor, |kafka| set_leader(kafka, None));
        let took = harness.others_flow();
        println!("{assignor}: the others have flowed {took:?} after the assignment");
        assert!(took < BOUND, "{assignor}: {took:?}");
        assert_eq!(harness.away().state, PartitionState::Starting);
        harness.assert_reported(ProblemKind::PartitionStarting);

        set_leader(&harness.kafka, Some(1));
        harness.turn_until("it is read", |harness| harness.away().frontier == RECORDS);
        assert_eq!(harness.away().problem(0), None);
        harness.reader.close();
    }
}

/// Its start is known, so it is read like the others, and found to have no leader.
#[test]
fn a_partition_without_leader_but_with_a_commit_delays_no_other() {
    for assignor in ASSIGNORS {
        let mut harness = Harness::reading(assignor, |kafka| {
            commit(kafka);
            set_leader(kafka, None);
        });
        let took = harness.others_flow();
        println!("{assignor}: the others have flowed {took:?} after the assignment");
        assert!(took < BOUND, "{assignor}: {took:?}");
        // An election takes a few seconds.
        harness.turn_until("it is observed", |harness| {
            !harness.reader.engine.observation_due()
        });
        harness.ahead_ms += 6_000;
        harness.turn_until("it is reported", |harness| harness.away().reason.is_some());
        harness.assert_reported(ProblemKind::PartitionUnreadable);
        // Not beyond: the mock cluster's new leaders know no earlier epoch, which is like a truncated log.
        harness.reader.close();
    }
}

/// The broker is known, and not there: a request to it would wait.
#[test]
fn a_partition_whose_leader_does_not_answer_delays_no_other() {
    for assignor in ASSIGNORS {
        let mut harness = Harness::reading(assignor, |kafka| {
            let cluster = kafka.cluster().expect("the host owns it");
            for topic in ["t", "u"] {
                for partition in 0..PARTITIONS {
                    let set = cluster.partition_leader(topic, partition, Some(1));
                    set.expect("a known partition");
                }
            }
            set_leader(kafka, Some(2));
            coordinate(&cluster);
            cluster.broker_down(2).expect("a known broker");
        });
        let took = harness.others_flow();
        println!("{assignor}: the others have flowed {took:?} after the assignment");
        assert!(took < BOUND, "{assignor}: {took:?}");
        assert_eq!(harness.away().state, PartitionState::Starting);
        harness.reader.close();
    }
}
