//! Stops during a rebalance, and what they leave behind.

use std::time::Duration;

use sluicegate_engine::source::{SourceEvent, StartAt};

use crate::pump::harness::Harness;

#[test]
fn records_are_processed_until_the_rebalance_completes_and_all_are_committed() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.kafka.set_rebalancing(true);
    harness.stop();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    harness.produce(3);
    harness.turn();
    assert_eq!(
        harness.run_all(true),
        [5, 6, 7],
        "the partition is owned until then"
    );
    assert!(!harness.kafka.is_closed());

    harness.kafka.set_rebalancing(false);
    harness.turn();
    harness.produce(2);
    harness.turn();
    assert_eq!(harness.run_all(true), [0; 0], "no record starts after that");
    assert!(harness.kafka.is_closed());
    assert_eq!(harness.committed(), Some(8));
}

#[test]
fn a_new_partition_settles_a_record_before_it_is_released() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    harness.kafka.set_rebalancing(true);
    harness.stop();
    harness.kafka.assign("t", &[1]);
    harness.turn();
    harness.kafka.set_rebalancing(false);
    for _ in 0..2 {
        harness.advance(Duration::from_millis(5));
        harness.kafka.produce("t", 1, None, Some(b"v"), &[]);
        harness.turn();
        assert!(!harness.kafka.is_closed());
    }
    // A delivered record is not a settled one.
    assert_eq!(harness.run_all(true), [0, 1]);
    harness.advance(Duration::from_millis(5));
    harness.turn();
    assert!(harness.kafka.is_closed());
    let (committed, _) = harness.kafka.committed("t", 1).expect("a commit");
    assert_eq!(committed, 2);
}

#[test]
fn a_call_that_ends_before_the_drain_deadline_counts_even_if_the_pump_learns_of_it_later() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.stop();
    harness.finish();
    harness.advance(Duration::from_mins(2));
    harness.turn();
    assert_eq!(harness.committed(), Some(5));
    assert_eq!(harness.left().unfinished, 0);
}

#[test]
fn a_stop_whose_leave_request_failed_reports_a_remaining_member() {
    for refused in [false, true] {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        if refused {
            harness.kafka.refuse_leave();
        }
        harness.run_all(true);
        harness.stop();
        assert!(harness.kafka.is_closed());
        assert_eq!(harness.left().members, u64::from(refused));
        assert_eq!(harness.left().is_graceful(), !refused);
    }
}

#[test]
fn partitions_lost_during_a_stop_count_as_unfinished() {
    for rebalancing in [false, true] {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        harness.kafka.set_rebalancing(rebalancing);
        harness.stop();
        harness.turn();
        harness.kafka.revoke("t", &[0], true);
        harness.turn();
        harness.kafka.set_rebalancing(false);
        harness.advance(Duration::from_secs(1));
        harness.run_all(true);
        assert!(harness.kafka.is_closed());
        assert_eq!(harness.left().unfinished, 5);
        assert!(!harness.left().is_graceful());
    }
}

#[test]
fn a_requested_stop_survives_a_client_renewal() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.kafka.set_rebalancing(true);
    harness.stop();
    harness.kafka.recreate_topic("t");
    harness
        .kafka
        .tell(SourceEvent::TopicRecreated { topic: "t".into() });
    harness.turn();
    harness.run_all(true);
    assert!(harness.kafka.is_closed());
    harness.kafka.assign("t", &[0]);
    harness.produce(1);
    harness.turn();
    assert_eq!(harness.run_all(false), [0; 0], "it does not rejoin");
}
