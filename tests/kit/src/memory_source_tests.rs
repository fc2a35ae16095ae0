//! Properties of the scripted source that tests rely on.

use sluicegate_engine::partition::commit::TopicUuid;

use super::*;

fn started(kafka: &MemoryKafka, partitions: &[i32], start: StartAt) -> MemorySource {
    let mut source: MemorySource = kafka.source();
    let starts: Vec<_> = partitions
        .iter()
        .map(|&partition| StartPartition {
            slot: AssignmentId(partition as u32),
            at: at("t", partition),
            start,
            due: None,
            leader_epoch: None,
            topic_id: TopicUuid(1),
        })
        .collect();
    source.start(&starts).unwrap();
    source
}

fn offsets(source: &mut MemorySource, slot: u32) -> Vec<i64> {
    let mut out = Vec::new();
    source.poll(1000, &mut out);
    let of_slot = out.iter().filter(|d| d.slot == AssignmentId(slot));
    of_slot.map(|delivery| delivery.offset).collect()
}

#[test]
fn gaps_repeats_and_pauses_follow_the_script() {
    let kafka = MemoryKafka::new(1);
    kafka.produce("t", 0, Some(b"k"), None, &[]);
    kafka.skip("t", 0, 2);
    kafka.produce("t", 0, None, Some(b"v"), &[]);
    let mut source = started(&kafka, &[0], StartAt::Earliest);
    assert_eq!(offsets(&mut source, 0), [0, 3]);
    assert_eq!(source.end_offset(AssignmentId(0)), Some(4));
    kafka.repeat("t", 0, 1);
    source.pause(AssignmentId(0), true);
    assert!(offsets(&mut source, 0).is_empty());
    source.pause(AssignmentId(0), false);
    assert_eq!(offsets(&mut source, 0), [3]);
    source.release(&[at("t", 0)]).unwrap();
    kafka.produce("t", 0, None, None, &[]);
    assert!(offsets(&mut source, 0).is_empty());
}

#[test]
fn the_seed_alone_decides_how_partitions_interleave() {
    let run = |seed| {
        let kafka = MemoryKafka::new(seed);
        for n in 0..300 {
            kafka.produce("t", n % 3, None, None, &[]);
        }
        let mut source = started(&kafka, &[0, 1, 2], StartAt::Earliest);
        let mut out = Vec::new();
        source.poll(300, &mut out);
        out.iter().map(|d| (d.slot, d.offset)).collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
    assert_eq!(run(6).len(), 300);
}

#[test]
fn a_deleted_offset_is_reported_once() {
    let kafka = MemoryKafka::new(1);
    for _ in 0..5 {
        kafka.produce("t", 0, None, None, &[]);
    }
    kafka.delete_before("t", 0, 3);
    let mut source = started(&kafka, &[0], StartAt::Offset(1));
    let mut events = Vec::new();
    for _ in 0..2 {
        assert!(offsets(&mut source, 0).is_empty());
        source.events(&mut events);
    }
    assert!(matches!(events[..], [SourceEvent::OffsetMissing { .. }]));
    let mut source = started(&kafka, &[0], StartAt::Time(4));
    assert_eq!(offsets(&mut source, 0), [4]);
}

#[test]
fn commits_are_rejected_failed_and_withheld_on_demand() {
    let kafka = MemoryKafka::new(1);
    let mut source: MemorySource = kafka.source();
    let entry = |offset| CommitEntry {
        at: at("t", 0),
        offset,
        leader_epoch: None,
        metadata: "m".into(),
    };
    kafka.refuse_next_commit(CommitErrorKind::Rebalancing, "illegal generation");
    kafka.fail_next_commit("no coordinator");
    let mut events = Vec::new();
    source.commit(&[entry(1)]).unwrap();
    source.commit(&[entry(1)]).unwrap();
    source.events(&mut events);
    let [
        SourceEvent::Committed {
            results,
            error: None,
        },
        SourceEvent::Committed {
            error: Some(failed),
            ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    let refused = results[0].error.as_ref().expect("a refusal");
    assert_eq!(refused.kind, CommitErrorKind::Rebalancing);
    assert_eq!(failed.reason, "no coordinator");
    assert_eq!(kafka.committed("t", 0), None);
    kafka.hold_commits();
    source.commit(&[entry(2)]).unwrap();
    events.clear();
    source.events(&mut events);
    assert_eq!(events, []);
    kafka.answer_commits();
    source.events(&mut events);
    assert!(matches!(
        &events[..],
        [SourceEvent::Committed { error: None, .. }]
    ));
    assert_eq!(kafka.committed("t", 0), Some((2, "m".into())));
    assert_eq!(kafka.commit_log(), [entry(2)]);
}

#[test]
fn a_wake_from_elsewhere_ends_a_wait() {
    let kafka = MemoryKafka::new(1);
    let mut source: MemorySource = kafka.source();
    let waker = source.waker();
    let other = std::thread::spawn(move || waker.wake());
    let before = std::time::Instant::now();
    source.wait(Duration::from_secs(20));
    assert!(before.elapsed() < Duration::from_secs(20));
    other.join().unwrap();
    kafka.assign("t", &[0, 1]);
    source.wait(Duration::from_secs(20));
    let mut events = Vec::new();
    source.events(&mut events);
    assert_eq!(
        events,
        [SourceEvent::Assigned(vec![at("t", 0), at("t", 1)])]
    );
}
