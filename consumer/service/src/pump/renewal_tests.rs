//! Client renewal on a scripted source: state that the old client takes with it, and calls that delay the renewal.

use std::time::Duration;

use sluicegate_engine::source::{CommitErrorKind, SourceEvent, StartAt};

use crate::pump::harness::Harness;

fn recreate(harness: &mut Harness) {
    harness.kafka.recreate_topic("t");
    harness
        .kafka
        .tell(SourceEvent::TopicRecreated { topic: "t".into() });
    harness.turn();
}

#[test]
fn a_commit_in_flight_at_the_old_client_does_not_block_commits_of_the_new_one() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.kafka.hold_commits();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    recreate(&mut harness);
    assert!(harness.kafka.is_closed());
    harness.kafka.answer_commits();
    harness.produce(3);
    harness.kafka.assign("t", &[0]);
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2]);
    assert_eq!(harness.committed(), Some(3));
}

#[test]
fn a_client_is_not_closed_while_calls_borrow_its_records() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    recreate(&mut harness);
    assert!(
        !harness.kafka.is_closed(),
        "a call borrows five of its records"
    );
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert!(harness.kafka.is_closed());
    harness.produce(2);
    harness.kafka.assign("t", &[0]);
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1]);
    assert_eq!(harness.committed(), Some(2));
}

#[test]
fn a_member_that_its_group_has_forgotten_rejoins() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    let forget = |harness: &mut Harness| {
        let forgotten = CommitErrorKind::NotMember;
        harness.kafka.refuse_next_commit(forgotten, "no such group");
    };
    forget(&mut harness);
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert!(!harness.kafka.is_closed(), "the client may still notice it");
    forget(&mut harness);
    harness.advance(Duration::from_secs(11));
    harness.turn();
    assert!(harness.kafka.is_closed());
    harness.kafka.assign("t", &[0]);
    harness.turn();
    harness.run_all(true);
    assert_eq!(harness.committed(), Some(5));
}
