//! Lost offsets with records in flight, and read errors: the effect of each policy.

use std::time::{Duration, Instant};

use sluicegate_engine::clock::WallClock;
use sluicegate_engine::flow::Flow;
use sluicegate_engine::source::{
    CommitErrorKind, FetchState, PartitionFault, Rejection, SourceEvent, StartAt,
};
use sluicegate_engine::status::{PartitionState, ProblemKind, RecordStatus};
use sluicegate_kafka::RecordBuf;

use crate::pump::harness::{Harness, at};

#[test]
fn the_lag_of_a_partition_that_is_not_fetched_grows_with_its_log() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.produce(150);
    harness.turn();
    harness.advance(Duration::from_secs(2));
    harness.turn();
    assert_eq!(harness.report().lag, Some(155), "and it is paused");
    harness.produce(50);
    harness.advance(Duration::from_secs(2));
    harness.turn();
    assert_eq!(
        harness.report().lag,
        Some(155),
        "the client does not learn of them"
    );
    for _ in 0..2 {
        harness.advance(Duration::from_secs(11));
        harness.turn();
    }
    assert_eq!(harness.report().lag, Some(205));
}

#[test]
fn policy_stop_stops_the_partition_and_reports_requested_existing_and_lost_offsets() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.overtake();
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert_eq!(
        harness.committed(),
        Some(5),
        "in-flight records are settled"
    );
    let report = harness.report();
    assert_eq!(
        (report.state, report.lag),
        (PartitionState::Stopped, Some(45))
    );
    let cause = report.reason.clone().unwrap();
    let words = "offset 5 has left the log, which begins at 40 and ends at 50: 35 offsets are gone";
    assert_eq!(cause, words);
    let problem = report.problem(0).expect("it is a problem");
    assert_eq!(problem.what, "partition t/0 is stopped");
    assert!(problem.remedy.contains("processing.offset_out_of_range"));
}

#[test]
fn policy_earliest_waits_for_in_flight_records_and_continues_at_the_first_offset() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.overtake();
    harness.turn();
    let report = harness.report();
    assert_eq!(report.state, PartitionState::Unreadable);
    let remedy = report.remedy.expect("a remedy");
    assert!(
        remedy.contains("once its in-flight records have settled"),
        "{remedy}"
    );
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    let rest: Vec<i64> = (40..50).collect();
    assert_eq!(harness.run_all(true), rest);
    let report = harness.report();
    assert_eq!((report.state, report.gone), (PartitionState::Running, 35));
    assert_eq!((harness.committed(), report.lag), (Some(50), Some(0)));
}

#[test]
fn policy_latest_continues_at_the_end_and_commits_it_immediately() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Latest));
    harness.overtake();
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert_eq!((harness.committed(), harness.report().gone), (Some(50), 45));
    harness.produce(1);
    harness.turn();
    assert_eq!(harness.run_all(true), [50]);
    assert_eq!(harness.committed(), Some(51));
}

#[test]
fn an_offset_within_the_log_is_retried_whatever_the_policy() {
    for policy in [None, Some(StartAt::Earliest), Some(StartAt::Latest)] {
        let mut harness = Harness::with_five_in_flight(policy);
        harness.kafka.tell(SourceEvent::OffsetMissing {
            at: at(),
            asked: Some(5),
            fetched: Some(9),
            truncated: false,
            reason: "Broker: Offset out of range".into(),
        });
        harness.turn();
        assert_eq!(harness.report().state, PartitionState::Unreadable);
        harness.produce(3);
        harness.turn();
        let all: Vec<i64> = (0..8).collect();
        assert_eq!(harness.run_all(true), all);
        assert_eq!(harness.committed(), Some(8));
        assert_eq!(
            (harness.report().state, harness.report().gone),
            (PartitionState::Running, 0)
        );
    }
}

#[test]
fn an_offset_behind_what_was_read_loses_nothing_and_repeats_nothing() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    // A client that delivers records again asks for one that retention has deleted in the meantime.
    harness.kafka.delete_before("t", 0, 3);
    harness.kafka.tell(SourceEvent::OffsetMissing {
        at: at(),
        asked: Some(2),
        fetched: Some(2),
        truncated: false,
        reason: "Broker: Offset out of range".into(),
    });
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    harness.produce(3);
    harness.turn();
    assert_eq!(harness.run_all(true), [5, 6, 7]);
    let report = harness.report();
    assert_eq!((harness.committed(), report.gone), (Some(8), 0));
    assert_eq!(report.state, PartitionState::Running);
}

#[test]
fn a_truncated_log_restarts_at_its_beginning_even_below_the_committed_offset() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.run_all(true);
    assert_eq!(harness.committed(), Some(5));
    harness.kafka.tell(SourceEvent::OffsetMissing {
        at: at(),
        asked: Some(5),
        fetched: None,
        truncated: true,
        reason: "Local: Partition log truncation detected".into(),
    });
    harness.turn();
    assert_eq!(
        harness.committed(),
        Some(0),
        "the next owner starts there too"
    );
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert_eq!(harness.committed(), Some(5));
}

#[test]
fn a_partition_lost_during_recovery_is_not_reset() {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.overtake();
    harness.turn();
    harness.kafka.revoke("t", &[0], true);
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert!(!harness.kafka.is_running("t", 0));
    assert_eq!(harness.committed(), Some(0), "it was lost");
    harness.kafka.assign("t", &[0]);
    harness.turn();
    let rest: Vec<i64> = (40..50).collect();
    assert_eq!(harness.run_all(true), rest);
}

#[test]
fn a_read_error_is_reported_until_a_record_is_read() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.kafka.tell(SourceEvent::PartitionError {
        at: at(),
        reason: "Broker: Topic authorization failed".into(),
        fault: PartitionFault::Denied,
    });
    harness.turn();
    let report = harness.report();
    assert_eq!(report.state, PartitionState::Unreadable);
    assert!(report.problem(0).is_some());
    harness.produce(1);
    harness.turn();
    let report = harness.report();
    assert_eq!(
        (report.state, report.problem(0)),
        (PartitionState::Running, None)
    );
}

#[test]
fn a_restored_permission_clears_the_error_although_no_record_is_read() {
    let mut harness = Harness::with_five_in_flight(None);
    let denied = || SourceEvent::PartitionError {
        at: at(),
        reason: "Broker: Topic authorization failed".into(),
        fault: PartitionFault::Denied,
    };
    harness.kafka.set_fetch_state("t", 0, FetchState::Refused);
    harness.kafka.tell(denied());
    harness.kafka.tell(denied());
    harness.turn();
    let problem = harness.report().problem(0).expect("it is a problem");
    assert_eq!(
        (problem.count, problem.kind),
        (2, ProblemKind::PartitionUnreadable)
    );
    assert!(problem.remedy.contains("READ"), "{}", problem.remedy);
    harness.advance(Duration::from_secs(3));
    harness.turn();
    assert!(
        harness.report().problem(0).is_some(),
        "the last fetch was refused"
    );
    harness.kafka.set_fetch_state("t", 0, FetchState::Fetching);
    harness.advance(Duration::from_secs(1));
    harness.turn();
    assert_eq!(harness.report().problem(0), None);
}

#[test]
fn damage_is_not_cleared_by_a_successful_fetch() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.kafka.set_fetch_state("t", 0, FetchState::Fetching);
    harness.kafka.tell(SourceEvent::PartitionError {
        at: at(),
        reason: "data at offset 5 cannot be read".into(),
        fault: PartitionFault::Damaged,
    });
    harness.turn();
    harness.advance(Duration::from_mins(10));
    harness.turn();
    assert_eq!(harness.report().state, PartitionState::Unreadable);
}

#[test]
fn damage_stays_the_cause_when_it_moved_the_client_out_of_range() {
    let mut harness = Harness::with_five_in_flight(None);
    // Nothing waits, so that nothing else becomes a problem in ten minutes.
    harness.run_all(true);
    let cause = "data at offset 5 cannot be read: MessageSet at offset 5";
    for event in [
        SourceEvent::PartitionError {
            at: at(),
            reason: cause.into(),
            fault: PartitionFault::Damaged,
        },
        SourceEvent::OffsetMissing {
            at: at(),
            asked: Some(5),
            fetched: Some(6),
            truncated: false,
            reason: "Broker: Offset out of range".into(),
        },
    ] {
        harness.kafka.tell(event);
        harness.turn();
        let report = harness.report();
        assert_eq!(report.state, PartitionState::Unreadable);
        assert_eq!(report.reason.as_deref(), Some(cause));
    }
    harness.advance(Duration::from_mins(10));
    harness.turn();
    let problem = harness.report().problem(0).expect("it is still reported");
    assert_eq!(problem.cause, cause);
    harness.produce(1);
    harness.turn();
    assert_eq!(harness.report().problem(0), None, "it was read");
}

#[test]
fn an_unknown_start_offset_is_a_problem_until_it_is_found() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.kafka.create_topic("t", 2);
    harness.kafka.set_leaderless("t", 1, true);
    harness.kafka.assign("t", &[1]);
    harness.turn();
    let starting = |harness: &Harness| {
        let report = harness.pump.report();
        let row = report.partitions.iter().find(|row| row.partition == 1);
        row.cloned().expect("it is assigned")
    };
    let problem = starting(&harness).problem(0).expect("it is a problem");
    assert_eq!(problem.kind, ProblemKind::PartitionStarting);
    assert!(
        problem.cause.contains("the partition has no leader"),
        "{}",
        problem.cause
    );
    assert!(harness.pump.report().joined, "only one partition waits");
    harness.kafka.set_leaderless("t", 1, false);
    harness.turn();
    assert_eq!(starting(&harness).problem(0), None);
}

#[test]
fn rejected_commits_are_a_problem_until_one_is_accepted() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.kafka.refuse_next_commit(
        CommitErrorKind::Rejected(Rejection::Right),
        "Broker: Group authorization failed",
    );
    harness.run_all(true);
    harness.turn();
    let problems = harness.pump.report().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].kind, ProblemKind::CommitsRefused);
    assert!(problems[0].cause.contains("Group authorization failed"));
    assert!(problems[0].remedy.contains("grant the service READ"));
    let why = harness.pump.explain(&at(), None, harness.pump.clock);
    let why = why.and_then(|why| why.reason).expect("a reason");
    assert!(why.contains("group g rejects commits"), "{why}");
    let waited = Instant::now();
    while !harness.pump.report().problems.is_empty() {
        assert!(
            waited.elapsed() < Duration::from_secs(20),
            "the commits were not retried"
        );
        harness.turn();
    }
    assert_eq!(harness.committed(), Some(5));
}

#[test]
fn an_existing_record_that_is_not_delivered_is_a_stall() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.run_all(true);
    harness.turn();
    let slot = harness
        .pump
        .engine
        .flow()
        .slot(&at())
        .expect("it is assigned");
    let flow = harness.pump.engine.flow_mut();
    let stalled = |flow: &Flow<RecordBuf>| {
        let report = flow.report(WallClock { epoch_ms: 0 }, |_| None);
        report.partitions[0].clone()
    };
    flow.tick(100_000);
    flow.record_end(slot, Some(5));
    flow.tick(500_000);
    flow.record_end(slot, Some(6));
    assert!(
        !stalled(flow).stalled,
        "the log has had it only for a moment"
    );
    flow.tick(559_999);
    flow.record_end(slot, None);
    assert!(!stalled(flow).stalled);
    flow.tick(560_000);
    let row = stalled(flow);
    assert_eq!(
        (row.stalled, row.stalled_since_ms, row.lag),
        (true, Some(500_000), Some(1))
    );
    let problem = row.problem(0).expect("it is a problem");
    assert_eq!(problem.kind, ProblemKind::PartitionStalled);
    assert!(
        problem.cause.contains("no record of it arrives"),
        "{}",
        problem.cause
    );
    let why = flow.explain(&at(), None, WallClock { epoch_ms: 0 });
    let why = why.expect("it is assigned");
    assert_eq!(why.status, RecordStatus::NotDelivered);
    harness.produce(1);
    harness.turn();
    assert_eq!(harness.report().problem(0), None);
}

#[test]
fn a_partition_without_a_leader_is_a_problem_after_the_election_timeout() {
    let mut harness = Harness::with_five_in_flight(None);
    harness.kafka.set_fetch_state("t", 0, FetchState::NoLeader);
    // It is observed once per second; the first time counts as the begin.
    for _ in 0..5 {
        harness.advance(Duration::from_secs(1));
        harness.turn();
    }
    assert_eq!(harness.report().problem(0), None);
    harness.advance(Duration::from_secs(1));
    harness.turn();
    let problem = harness.report().problem(0).expect("it is a problem");
    assert_eq!(problem.cause, "the partition has no leader");
    harness.kafka.set_fetch_state("t", 0, FetchState::Fetching);
    harness.advance(Duration::from_secs(3));
    harness.turn();
    assert_eq!(harness.report().problem(0), None);
}
