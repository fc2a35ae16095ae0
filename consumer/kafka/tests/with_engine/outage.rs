//! The brokers go away while the committed offsets of new partitions are being queried, for longer than a request may take.

use std::time::{Duration, Instant};

use sluicegate_engine::status::PartitionReport;

use crate::leaderless::{Harness, PARTITIONS, RECORDS};
use crate::reading::REQUEST_TIMEOUT;

const BROKERS: [i32; 2] = [1, 2];

#[test]
fn an_outage_during_the_search_for_committed_offsets_is_survived() {
    let slow = Duration::from_millis(700);
    let mut harness = Harness::reading("cooperative-sticky", |kafka| {
        let cluster = kafka.cluster().expect("the host owns it");
        for broker in BROKERS {
            let set = cluster.broker_round_trip_time(broker, slow);
            set.expect("a known broker");
        }
    });
    harness.turn_until("they are assigned", |harness| {
        harness.reader.assigned.is_some()
    });
    harness.each_broker(|cluster, broker| cluster.broker_down(broker));
    let down = Instant::now();
    while down.elapsed() < 2 * REQUEST_TIMEOUT {
        harness.turn();
    }
    harness.each_broker(|cluster, broker| {
        cluster.broker_round_trip_time(broker, Duration::ZERO)?;
        cluster.broker_up(broker)
    });
    let handled = |row: &&PartitionReport| row.frontier == RECORDS;
    harness.turn_until("everything is handled", |harness| {
        harness.rows().iter().filter(handled).count() == 2 * PARTITIONS as usize
    });
    harness.reader.close();
}
