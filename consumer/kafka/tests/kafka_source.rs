//! Situation: members of one group read from librdkafka's mock cluster while partitions move, fetches are refused and
//! commits fail.
//! Property: every record is delivered once and in order, from the requested offset; nothing blocks forever.

mod member;

use std::time::{Duration, Instant};

use member::batches::{append, commit_marker, damaged_and_whole, records};
use member::{Member, at, produce, settings};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluicegate_engine::partition::commit::{CommitMetadata, CommitTarget};
use sluicegate_engine::source::{CommitEntry, Origin, Source, SourceEvent, StartAt};
use sluicegate_kafka::KafkaSource;
use sluicegate_kafka::mock::MockKafka;

const PARTITIONS: i32 = 4;

fn cluster() -> MockKafka {
    let kafka = MockKafka::start(1).expect("a mock cluster starts");
    kafka.create_topic("t", PARTITIONS).expect("a new topic");
    kafka
}

/// Rule 1: a partition that returns delivers nothing unless its queue is forwarded again; it resumes where it stopped.
fn partitions_move_to_and_fro(client: &[(&str, &str)]) {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    let mut first = Member::join(&settings(&bootstrap, client));
    let mut produced = 0;
    first.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    for _ in 0..2 {
        produce(&bootstrap, PARTITIONS, 50);
        produced += 50;
        let mut newcomer = Member::join(&settings(&bootstrap, client));
        let deadline = Instant::now() + Duration::from_secs(30);
        while first.owned().len() != 2 || newcomer.owned().len() != 2 {
            assert!(Instant::now() < deadline, "the group did not share");
            first.turn();
            newcomer.turn();
        }
        produce(&bootstrap, PARTITIONS, 50);
        produced += 50;
        while (0..PARTITIONS).any(|p| first.seen(p).max(newcomer.seen(p)) < produced) {
            assert!(Instant::now() < deadline, "a partition delivers nothing");
            first.turn();
            newcomer.turn();
        }
        newcomer.leave();
        first.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    }
    produce(&bootstrap, PARTITIONS, 10);
    produced += 10;
    first.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == produced));
    assert_eq!(first.unowned_records(), 0);
    first.leave();
}

#[test]
fn no_record_is_lost_when_partitions_move_cooperatively() {
    partitions_move_to_and_fro(&[]);
}

#[test]
fn no_record_is_lost_when_partitions_move_eagerly() {
    partitions_move_to_and_fro(&[("partition.assignment.strategy", "range")]);
}

/// Rule 2: an error entry moves librdkafka's position past a record; a pause then resumes behind it.
#[test]
fn no_record_is_lost_to_error_entries_and_pauses() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    produce(&bootstrap, PARTITIONS, 5);
    member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5));
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    for round in 1..=4 {
        let cluster = kafka.cluster().expect("the host owns it");
        cluster.request_errors(RDKafkaApiKey::Fetch, &[denied, denied, denied]);
        let errors = member.partition_errors;
        member.turn_until(|m| m.partition_errors > errors);
        member.pause_all(true);
        member.pause_all(false);
        produce(&bootstrap, PARTITIONS, 1);
        member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5 + round));
    }
    member.leave();
}

/// The group waits for the pump's answer: a drain may lie between a revoke and its release.
#[test]
fn a_rebalance_can_be_answered_much_later() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    let mut slow = Member::join(&settings(&bootstrap, &[]));
    slow.answers_after = Duration::from_millis(1500);
    slow.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    let mut other = Member::join(&settings(&bootstrap, &[]));
    let deadline = Instant::now() + Duration::from_secs(30);
    while slow.owned().len() != 2 || other.owned().len() != 2 {
        assert!(Instant::now() < deadline, "the group did not share");
        slow.turn();
        other.turn();
    }
    produce(&bootstrap, PARTITIONS, 20);
    while (0..PARTITIONS).any(|p| slow.seen(p).max(other.seen(p)) < 20) {
        assert!(Instant::now() < deadline, "a partition delivers nothing");
        slow.turn();
        other.turn();
    }
    slow.leave();
    other.leave();
}

/// A close must complete even though the rebalance in progress has not been answered.
#[test]
fn a_source_closes_in_the_middle_of_a_rebalance() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    let unanswered = |source: &mut KafkaSource, is_it: fn(&SourceEvent) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut events = Vec::new();
        while !events.iter().any(is_it) {
            assert!(Instant::now() < deadline, "no rebalance arrived");
            source.wait(Duration::from_millis(50));
            source.events(&mut events);
        }
        let started = Instant::now();
        let _ = source.close(Instant::now() + Duration::from_secs(10));
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "the close hangs"
        );
    };
    let mut source = KafkaSource::new(&settings(&bootstrap, &[])).expect("a client");
    source.subscribe(&["t".into()]).expect("a subscription");
    unanswered(&mut source, |e| matches!(e, SourceEvent::Assigned(_)));

    let mut owner = Member::join(&settings(&bootstrap, &[]));
    owner.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    let mut second = KafkaSource::new(&settings(&bootstrap, &[])).expect("a client");
    second.subscribe(&["t".into()]).expect("a subscription");
    let mut source = owner.into_source();
    unanswered(&mut source, |e| matches!(e, SourceEvent::Revoked { .. }));
}

/// Without a LeaveGroup request the group would wait for the member until its session times out.
#[test]
fn a_member_leaves_the_group_with_or_without_partitions() {
    let kafka = MockKafka::start(1).expect("a mock cluster starts");
    kafka.create_topic("t", 1).expect("a new topic");
    kafka.count_requests();
    let left = || kafka.requests(RDKafkaApiKey::LeaveGroup);
    let joins = || kafka.requests(RDKafkaApiKey::JoinGroup);
    let settings = settings(&kafka.bootstrap_servers(), &[]);
    let mut owner = Member::join(&settings);
    // It is not polled while another member leaves.
    owner.may_lose = true;
    owner.turn_until(|m| m.owned().len() == 1);
    // One that has just sent its join request, and one that has joined without partitions.
    for joined in [false, true] {
        let joins_before = joins();
        let mut idle = Member::join(&settings);
        let deadline = Instant::now() + Duration::from_secs(20);
        while joins() == joins_before || (joined && idle.source.membership().generation.is_none()) {
            assert!(Instant::now() < deadline, "the group does not settle");
            owner.turn();
            idle.turn();
        }
        let before = left();
        idle.leave();
        assert_eq!(
            left() - before,
            1,
            "it left without a LeaveGroup request, joined: {joined}"
        );
    }
    // Its session may have timed out while it was not polled; the group accepts commits only from members.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(
            Instant::now() < deadline,
            "the owner does not become a member again"
        );
        owner.turn_until(|m| m.owned().len() == 1);
        let entry = CommitEntry {
            at: at(0),
            offset: 0,
            leader_epoch: None,
            metadata: String::new(),
        };
        let (results, error) = owner.commit(&[entry]);
        if error.is_none() && results.iter().all(|result| result.error.is_none()) {
            break;
        }
        owner.turn();
    }
    let before = left();
    owner.leave();
    assert_eq!(
        left() - before,
        1,
        "the owner left without a LeaveGroup request"
    );
}

/// With an eager assignor the client mistakes the join's response for the close's, unless the close waits.
#[test]
fn a_member_that_closes_during_its_first_join_leaves_once_the_join_completes() {
    let kafka = cluster();
    kafka.count_requests();
    for assignor in ["range", "cooperative-sticky"] {
        let strategy = [("partition.assignment.strategy", assignor)];
        let settings = settings(&kafka.bootstrap_servers(), &strategy);
        for _ in 0..3 {
            let before = kafka.requests(RDKafkaApiKey::LeaveGroup);
            let mut member = Member::join(&settings);
            member.turn_until(|m| m.source.is_rebalancing());
            let started = Instant::now();
            let has_left = member.source.close(started + Duration::from_secs(15));
            let took = started.elapsed();
            assert!(has_left, "{assignor}: not left after {took:?}");
            assert!(took < Duration::from_secs(10), "{assignor}: {took:?}");
            let left = kafka.requests(RDKafkaApiKey::LeaveGroup) - before;
            assert_eq!(left, 1, "{assignor}");
        }
    }
}

/// The group waits for the owner to learn of the newcomer; until then the newcomer can only wait.
#[test]
fn a_member_knows_when_its_group_rebalances() {
    let kafka = cluster();
    let settings = settings(&kafka.bootstrap_servers(), &[]);
    let mut owner = Member::join(&settings);
    owner.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    owner.turn_until(|m| !m.source.is_rebalancing());
    let mut newcomer = Member::join(&settings);
    newcomer.turn_until(|m| m.source.is_rebalancing());
    let deadline = Instant::now() + Duration::from_secs(20);
    while owner.owned().len() != newcomer.owned().len()
        || owner.source.is_rebalancing()
        || newcomer.source.is_rebalancing()
    {
        assert!(Instant::now() < deadline, "the rebalance does not end");
        owner.turn();
        newcomer.turn();
    }
    newcomer.leave();
    owner.leave();
}

/// With every gate closed nothing is read, and shutdown has nothing to wait for.
#[test]
fn a_member_that_has_unsubscribed_ends_at_once() {
    let kafka = cluster();
    kafka.count_requests();
    let mut member = Member::join(&settings(&kafka.bootstrap_servers(), &[]));
    member.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    member.source.subscribe(&[]).expect("no subscription");
    member.turn_until(|m| m.owned().is_empty());
    let started = Instant::now();
    member.leave();
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "it waited {:?} for its membership",
        started.elapsed()
    );
    assert_eq!(kafka.requests(RDKafkaApiKey::LeaveGroup), 1);
}

#[test]
fn commits_carry_metadata_and_refusals_are_reported() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    produce(&bootstrap, PARTITIONS, 5);
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    let metadata = |offset: i64| CommitMetadata {
        epoch: 7,
        finished: std::iter::once(offset + 1..offset + 3).collect(),
        ..CommitMetadata::default()
    };
    let entry = |partition, offset: i64| CommitEntry {
        at: at(partition),
        offset,
        leader_epoch: None,
        metadata: metadata(offset).encode(CommitTarget {
            group: "g",
            at: &at(partition),
            offset,
        }),
    };
    let (results, error) = member.commit(&[entry(0, 3), entry(1, 4)]);
    assert!(error.is_none() && results.len() == 2 && results.iter().all(|r| r.error.is_none()));
    let found: Vec<_> = member
        .committed(&[0, 1, 2])
        .into_iter()
        .map(|found| {
            (
                found.at.partition,
                found.origin,
                found.offset,
                found.read.metadata,
            )
        })
        .collect();
    let expected = [
        (0, Origin::Committed, 3, Some(metadata(3))),
        (1, Origin::Committed, 4, Some(metadata(4))),
        (2, Origin::NewGroup, 0, None),
    ];
    assert_eq!(found, expected);

    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    let cluster = kafka.cluster().expect("the host owns it");
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[fenced]);
    member.source.commit(&[entry(0, 5)]).expect("it is sent");
    member.turn_until(|m| !m.commit_answers.is_empty());
    let (results, error) = &member.commit_answers[0];
    let reported = results.iter().any(|r| r.error.is_some()) || error.is_some();
    assert!(
        reported,
        "the refusal was not reported: {results:?} {error:?}"
    );
    let committed = member.committed(&[0]);
    assert_eq!(committed[0].offset, 3, "the refused commit has no effect");
    member.leave();
}

/// G12: nothing is skipped or repeated silently when the offset to read is missing; the service decides.
#[test]
fn a_missing_offset_is_reported_and_the_partition_resumes_where_it_is_reset() {
    for client in [&[][..], &[("partition.assignment.strategy", "range")]] {
        let kafka = cluster();
        let bootstrap = kafka.bootstrap_servers();
        produce(&bootstrap, PARTITIONS, 5);
        let mut member = Member::join(&settings(&bootstrap, client));
        member.start = |at| match at.partition {
            0 => StartAt::Offset(1000),
            _ => StartAt::Earliest,
        };
        member.turn_until(|m| m.missing.contains(&at(0)));
        member.turn_until(|m| (1..PARTITIONS).all(|p| m.seen(p) == 5));
        assert_eq!(member.first(0), None);
        member.restart(0, StartAt::Offset(2));
        member.turn_until(|m| m.seen(0) == 5);
        produce(&bootstrap, PARTITIONS, 3);
        member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 8));
        member.leave();
    }
}

/// G2: the position passes control records once they are read, but never records that are still queued.
#[test]
fn a_partition_ending_with_control_records_is_read_to_its_end() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    append(&bootstrap, "t", 0, &records(0, &["a", "b", "c"]));
    append(&bootstrap, "t", 0, &commit_marker(3));
    append(&bootstrap, "t", 1, &commit_marker(0));
    let mut member = Member::join(&settings(&bootstrap, &[]));
    let deadline = Instant::now() + Duration::from_secs(30);
    while (member.consumed(0), member.consumed(1)) != (Some(4), Some(1)) {
        let so_far = (member.consumed(0), member.consumed(1));
        assert!(Instant::now() < deadline, "read as far as {so_far:?}");
        member.turn();
    }
    assert_eq!((member.seen(0), member.end_offset(0)), (4, Some(4)));

    // Fetched and queued but not read: the end is known, the position does not move.
    append(&bootstrap, "t", 0, &records(4, &["d", "e"]));
    append(&bootstrap, "t", 0, &commit_marker(6));
    while member.end_offset(0) != Some(7) {
        assert!(Instant::now() < deadline, "it is not fetched");
        member.source.wait(Duration::from_millis(20));
    }
    for _ in 0..20 {
        assert_eq!(member.consumed(0), Some(4));
        member.source.wait(Duration::from_millis(20));
    }
    while member.consumed(0) != Some(7) {
        assert!(Instant::now() < deadline, "it is not read");
        member.turn();
    }
    member.leave();
}

/// The position of an earlier assignment says nothing about the position of the current one.
#[test]
fn a_position_of_an_earlier_assignment_is_not_reused() {
    for client in [&[][..], &[("partition.assignment.strategy", "range")]] {
        let kafka = cluster();
        let bootstrap = kafka.bootstrap_servers();
        append(&bootstrap, "t", 0, &records(0, &["a", "b", "c"]));
        append(&bootstrap, "t", 0, &commit_marker(3));
        let mut member = Member::join(&settings(&bootstrap, client));
        let deadline = Instant::now() + Duration::from_secs(30);
        while member.consumed(0) != Some(4) {
            assert!(Instant::now() < deadline, "it is not read");
            member.turn();
        }
        member.restart(0, StartAt::Offset(1));
        assert_eq!(member.consumed(0), None, "nothing has been read since");
        while member.consumed(0) != Some(4) {
            assert!(Instant::now() < deadline, "it is not read again");
            member.turn();
        }
        assert_eq!(member.first(0), Some(0));
        member.leave();
    }
}

/// Damaged data is not skipped, and it is not refetched in a tight loop.
#[test]
fn damaged_data_blocks_only_its_partition() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    append(&bootstrap, "t", 0, &records(0, &["a", "b", "c"]));
    let damaged = damaged_and_whole(3, &["d", "e"], &["f", "g"]);
    append(&bootstrap, "t", 0, &damaged);
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.turn_until(|m| m.seen(0) == 3 && m.partition_errors == 3);
    append(&bootstrap, "t", 1, &records(0, &["a", "b"]));
    member.turn_until(|m| m.seen(1) == 2);
    assert_eq!((member.seen(0), member.consumed(0)), (3, None));
    let reason = "data at offset 3 cannot be read: MessageSet at offset 3";
    for said in &member.error_reasons {
        assert!(
            said.starts_with(reason) && said.contains("CRC32C"),
            "{said}"
        );
    }
    assert!(
        member.partition_errors <= 4,
        "it is refetched in a tight loop"
    );
    member.leave();
}

/// An error entry at the end of a log moves the client's position beyond it; after a pause it fetches from there. The log
/// still contains the due offset.
#[test]
fn a_position_moved_out_of_the_log_by_an_error_is_distinguished_from_a_missing_offset() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    produce(&bootstrap, PARTITIONS, 5);
    member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5));
    let broken = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
    let cluster = kafka.cluster().expect("the host owns it");
    cluster.request_errors(RDKafkaApiKey::Fetch, &[broken; 3]);
    member.turn_until(|m| m.partition_errors > 0);
    member.pause_all(true);
    member.pause_all(false);
    // Events are not taken here, so the seek that would repair the position does not run before the client's fetch fails.
    let refused = Instant::now() + Duration::from_secs(3);
    while Instant::now() < refused {
        member.source.wait(Duration::from_millis(20));
        member.source.poll(100, &mut Vec::new());
    }
    member.turn_until(|m| !m.missing.is_empty());
    let lost = member.missing[0].clone();
    assert_eq!(member.lost[0], (Some(5), Some(6)));
    member.source.ask_bounds(std::slice::from_ref(&lost));
    member.turn_until(|m| !m.bounds.is_empty());
    assert_eq!(member.bounds[0], (lost, Ok(0..5)));
    for at in std::mem::take(&mut member.missing) {
        member.restart(at.partition, StartAt::Offset(5));
    }
    produce(&bootstrap, PARTITIONS, 2);
    member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 7));
    member.leave();
}

/// Rule 1: each of several partitions that are moved is forwarded again, however many are moved at once.
#[test]
fn partitions_that_are_moved_at_once_are_all_read() {
    for client in [&[][..], &[("partition.assignment.strategy", "range")]] {
        let kafka = cluster();
        let bootstrap = kafka.bootstrap_servers();
        produce(&bootstrap, PARTITIONS, 5);
        let mut member = Member::join(&settings(&bootstrap, client));
        member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5));
        for partition in 0..PARTITIONS {
            member.restart(partition, StartAt::Offset(2));
        }
        assert!((0..PARTITIONS).all(|p| member.seen(p) == 2));
        member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5));
        member.leave();
    }
}

#[test]
fn latest_starts_after_existing_records() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    produce(&bootstrap, PARTITIONS, 5);
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.start = |_| StartAt::Latest;
    member.turn_until(|m| m.owned().len() == PARTITIONS as usize);
    produce(&bootstrap, PARTITIONS, 2);
    member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 7));
    assert!((0..PARTITIONS).all(|p| member.first(p) == Some(5)));
    let ends: Vec<_> = (0..PARTITIONS).map(|p| member.end_offset(p)).collect();
    assert_eq!(ends, [Some(7); PARTITIONS as usize]);
    member.leave();
}

/// A briefly unavailable broker must not cost the assignment.
#[test]
fn starts_are_retried_while_offsets_are_unavailable() {
    let kafka = cluster();
    let bootstrap = kafka.bootstrap_servers();
    produce(&bootstrap, PARTITIONS, 5);
    let away = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let cluster = kafka.cluster().expect("the host owns it");
    cluster.request_errors(RDKafkaApiKey::ListOffsets, &[away; 2]);
    let mut member = Member::join(&settings(&bootstrap, &[]));
    member.turn_until(|m| (0..PARTITIONS).all(|p| m.seen(p) == 5));
    member.leave();
}

/// Rule 4: one wake-up may announce many queued events, and all are served.
#[test]
fn every_event_behind_one_wake_up_is_served() {
    let kafka = cluster();
    let fast = settings(
        &kafka.bootstrap_servers(),
        &[("statistics.interval.ms", "1")],
    );
    let mut source = KafkaSource::new(&fast).expect("a client");
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while events.len() < 100 {
        assert!(Instant::now() < deadline, "{} events arrived", events.len());
        source.wait(Duration::from_secs(1));
        source.events(&mut events);
    }
    assert!(
        events
            .iter()
            .any(|e| matches!(e, SourceEvent::Statistics(json) if json.starts_with('{')))
    );
}
