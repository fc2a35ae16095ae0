//! Deliveries, gaps, repeats and seeks of scripted partitions.

use super::*;

const TOPIC: TopicId = TopicId(7);
const SLOT: AssignmentId = AssignmentId(3);

fn detector(next: i64) -> GapDetector {
    let mut detector = GapDetector::default();
    let at = TopicPartition {
        topic: "t".into(),
        partition: 2,
    };
    detector.open(SLOT, at, TOPIC, StartAt::Offset(next), Some(next));
    detector.begin_batch();
    detector
}

fn deliver(detector: &mut GapDetector, offset: i64) -> bool {
    matches!(detector.judge(TOPIC, 2, offset), Verdict::Deliver(SLOT, _))
}

#[test]
fn a_jump_after_an_error_entry_is_sought_back_once_and_then_trusted() {
    let mut detector = detector(10);
    assert!(deliver(&mut detector, 10));
    detector.suspect(SLOT, Instant::now());
    assert_eq!(detector.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 11));
    assert_eq!(
        detector.judge(TOPIC, 2, 13),
        Verdict::Drop,
        "the rest of the batch is older than the seek"
    );
    detector.begin_batch();
    assert!(deliver(&mut detector, 12), "the gap was real");
}

#[test]
fn a_suspect_partition_without_records_is_sought_back_once_per_error() {
    let mut detector = detector(10);
    let error = Instant::now();
    detector.suspect(SLOT, error);
    assert_eq!(detector.overdue(error), []);
    assert_eq!(detector.overdue(error + SUSPECT_TIMEOUT), [(SLOT, 10)]);
    assert_eq!(detector.overdue(error + 2 * SUSPECT_TIMEOUT), []);
    assert_eq!(
        detector.judge(TOPIC, 2, 12),
        Verdict::SeekBack(SLOT, 10),
        "the seek may have been lost"
    );
    detector.suspect(SLOT, error);
    assert_eq!(detector.overdue(error + SUSPECT_TIMEOUT), [(SLOT, 10)]);
}

#[test]
fn the_next_expected_record_clears_the_suspicion() {
    let mut detector = detector(10);
    detector.suspect(SLOT, Instant::now());
    assert!(deliver(&mut detector, 10));
    assert!(deliver(&mut detector, 15), "a compaction gap");
}

#[test]
fn a_redelivery_neither_clears_the_suspicion_nor_moves_the_expected_offset() {
    let mut detector = detector(10);
    assert!(deliver(&mut detector, 10));
    detector.suspect(SLOT, Instant::now());
    assert!(deliver(&mut detector, 10));
    assert_eq!(detector.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 11));
}

#[test]
fn a_position_is_trusted_once_it_was_reset_in_this_assignment() {
    let mut detector = detector(10);
    assert_eq!(detector.judge_position(SLOT, Some(90), None), None);
    assert!(deliver(&mut detector, 10));
    let left_over = detector.judge_position(SLOT, Some(90), None);
    assert_eq!(
        left_over, None,
        "a record does not lower the stale position"
    );
    assert_eq!(detector.judge_position(SLOT, None, None), None);
    assert_eq!(detector.judge_position(SLOT, Some(11), None), Some(11));
    assert_eq!(detector.judge_position(SLOT, Some(14), Some(14)), Some(14));
    assert_eq!(detector.judge_position(SLOT, Some(13), None), None);
    let beyond = detector.judge_position(SLOT, Some(15), Some(14));
    assert_eq!(beyond, None, "beyond the end of the log");
}

#[test]
fn a_position_after_an_error_entry_is_not_trusted_until_the_expected_record_arrives() {
    let mut detector = detector(10);
    detector.judge_position(SLOT, None, None);
    assert!(deliver(&mut detector, 10));
    detector.suspect(SLOT, Instant::now());
    assert_eq!(detector.judge_position(SLOT, Some(12), None), None);
    assert!(deliver(&mut detector, 11));
    assert_eq!(detector.judge_position(SLOT, Some(12), None), Some(12));
}

#[test]
fn a_position_is_trusted_again_once_a_seek_has_taken_effect() {
    for by_record in [true, false] {
        let mut detector = detector(10);
        detector.judge_position(SLOT, None, None);
        detector.suspect(SLOT, Instant::now());
        assert_eq!(detector.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 10));
        assert_eq!(detector.judge_position(SLOT, Some(13), None), None);
        detector.sought(SLOT);
        assert_eq!(detector.judge_position(SLOT, Some(13), None), None);
        detector.begin_batch();
        if by_record {
            assert!(deliver(&mut detector, 10));
        } else {
            detector.judge_position(SLOT, None, None);
        }
        assert_eq!(detector.judge_position(SLOT, Some(12), None), Some(12));
    }
}

#[test]
fn a_new_assignment_does_not_inherit_a_trusted_position() {
    let mut detector = detector(10);
    detector.judge_position(SLOT, None, None);
    let at = detector.get(SLOT).unwrap().at.clone();
    detector.close(&at);
    assert_eq!(detector.judge_position(SLOT, Some(20), None), None);
    let again = AssignmentId(4);
    detector.open(again, at, TOPIC, StartAt::Offset(10), Some(10));
    assert_eq!(detector.judge_position(again, Some(20), None), None);
}

#[test]
fn no_record_after_damaged_data_is_admitted_until_it_is_reread_with_backoff() {
    let mut detector = detector(10);
    assert!(deliver(&mut detector, 10));
    let mut now = Instant::now();
    for pause in [REREAD_DELAY, 2 * REREAD_DELAY, 4 * REREAD_DELAY] {
        assert_eq!(detector.damaged(SLOT, now), Some(pause));
        assert_eq!(detector.damaged(SLOT, now), None, "it is already halted");
        assert!(detector.get(SLOT).unwrap().is_fetch_suspended());
        detector.begin_batch();
        assert_eq!(detector.judge(TOPIC, 2, 15), Verdict::Drop);
        detector.suspect(SLOT, now);
        assert_eq!(detector.overdue(now + 2 * SUSPECT_TIMEOUT), [], "no seek");
        assert_eq!(detector.read_again(now), []);
        now += pause;
        assert_eq!(detector.read_again(now), [(SLOT, 11)]);
        assert!(!detector.get(SLOT).unwrap().is_fetch_suspended());
        detector.begin_batch();
    }
    assert!(deliver(&mut detector, 11));
    assert_eq!(
        detector.damaged(SLOT, now),
        Some(REREAD_DELAY),
        "another one"
    );
}

#[test]
fn records_after_damaged_data_are_not_trusted_if_the_seek_back_was_lost() {
    let mut detector = detector(10);
    let now = Instant::now();
    assert!(deliver(&mut detector, 10));
    assert_eq!(detector.damaged(SLOT, now), Some(REREAD_DELAY));
    assert_eq!(detector.read_again(now + REREAD_DELAY), [(SLOT, 11)]);
    detector.sought(SLOT);
    detector.begin_batch();
    assert_eq!(detector.judge(TOPIC, 2, 15), Verdict::SeekBack(SLOT, 11));
    detector.sought(SLOT);
    detector.begin_batch();
    assert!(deliver(&mut detector, 11));
    assert!(deliver(&mut detector, 15), "a gap");
}

#[test]
fn a_partition_whose_offset_is_missing_is_halted_until_it_is_opened_again() {
    let mut detector = detector(10);
    detector.judge_position(SLOT, None, None);
    detector.suspect(SLOT, Instant::now());
    assert_eq!(detector.missing(SLOT), Some(10));
    detector.begin_batch();
    assert_eq!(detector.judge(TOPIC, 2, 15), Verdict::Drop);
    assert_eq!(detector.overdue(Instant::now() + 2 * SUSPECT_TIMEOUT), []);
    assert_eq!(detector.judge_position(SLOT, Some(12), None), None);
    detector.get_mut(SLOT).unwrap().paused = true;
    let at = detector.get(SLOT).unwrap().at.clone();
    detector.open(SLOT, at, TOPIC, StartAt::Offset(40), Some(40));
    assert!(deliver(&mut detector, 40));
    assert!(
        detector.get(SLOT).unwrap().is_fetch_suspended(),
        "a pause outlasts a move"
    );
}

#[test]
fn records_of_a_closed_or_unknown_partition_are_dropped_and_counted() {
    let mut detector = detector(0);
    let at = detector.get(SLOT).unwrap().at.clone();
    detector.close(&at);
    assert_eq!(detector.judge(TOPIC, 2, 0), Verdict::Drop);
    assert_eq!(detector.judge(TOPIC, 9, 0), Verdict::Drop);
    assert_eq!(detector.judge(TopicId(8), 2, 0), Verdict::Drop);
    assert_eq!(detector.unowned(), 3);
}
