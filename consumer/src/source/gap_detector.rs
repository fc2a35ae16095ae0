//! Which fetched records are delivered: only those of a partition that is ours, and none past a doubtful jump. Pure.
//!
//! Rule 2: an error entry in a batch moves librdkafka's position past a record that was not delivered yet, and the next
//! pause (also its own, at a rebalance) resumes there: a silent loss. The ledger cannot see it, since a jump upwards is
//! legal (compaction, transactions). So an error entry marks the partition; a jump while it is marked is answered by
//! one seek back to the offset that was due, and what comes then is believed. Where nothing comes after the error (the
//! skipped record was the last one) the seek is made after a moment of silence; not at each entry, since a seek resets
//! the back-off between failing fetches.
//!
//! For the same reason the consumed position that librdkafka gives for a partition is believed only while nothing but
//! what this assignment has read has moved it.

use std::time::{Duration, Instant};

use super::raw::TopicId;
use super::{AssignmentId, StartAt, TopicPartition};

/// First records of an assignment whose headers are read both ways.
const HEADER_CHECKS: u8 = 8;

/// How long a partition in doubt may be silent: longer than librdkafka waits between failing fetches.
const SILENCE: Duration = Duration::from_millis(1500);

/// First pause before damaged data is read again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// All batches there will be.
const EVERY_BATCH: u64 = u64::MAX;

/// Why a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// Its offset is missing, as the client says: until it is started again.
    Missing,
    /// What is due cannot be read as it is; librdkafka would go on behind it.
    Damaged { again: Instant },
}

/// What librdkafka's consumed position of a partition is worth.
///
/// The client resets it when it stops a fetch and when it seeks, both some time after the call has returned, and moves it
/// with every entry that is taken out of the queue: records, control records, and error entries, which stand for nothing
/// that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// It may be left over from an earlier assignment: to be seen reset first.
    Foreign,
    /// It may be left over from before a seek: to be seen reset, or moved by a record that was fetched after it.
    Sought,
    /// An error entry may have moved it past a record that did not come.
    Erred,
    /// Only what this assignment has read has moved it.
    Own,
}

/// A partition's error entry, since which no record that was due has come.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    sought: bool,
}

/// One assignment of one partition.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) at: TopicPartition,
    pub(super) topic: TopicId,
    /// The offset that is due next; `None` while it is not known.
    pub(super) next: Option<i64>,
    /// Where it started, for an assign made anew before any record came.
    pub(super) start: StartAt,
    pub(super) paused: bool,
    /// Whether librdkafka was told not to fetch it.
    pub(super) client_paused: bool,
    open: bool,
    doubt: Option<Doubt>,
    position: Position,
    /// Records of this partition are dropped up to the end of this batch: what was fetched before a seek.
    skipped_batch: u64,
    /// Why nothing of it is admitted until it is read again.
    halt: Option<Halt>,
    /// Pause before damaged data is read again.
    pause: Duration,
    unchecked: u8,
}

/// What to do with a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Deliver it; the flag asks for a comparison of its headers.
    Deliver(AssignmentId, bool),
    /// Not ours, or behind a seek.
    Drop,
    /// Drop it and seek the partition back to this offset.
    SeekBack(AssignmentId, i64),
}

/// The assignments that records are admitted to.
#[derive(Debug, Default)]
pub(super) struct GapDetector {
    slots: Vec<Option<Admitted>>,
    /// For each topic, its partitions' slots.
    routes: Vec<(TopicId, Vec<Option<AssignmentId>>)>,
    /// Place of the topic that was looked up last: records come in runs.
    last: usize,
    batch: u64,
    unowned: u64,
    /// Whether a partition may be in doubt.
    doubts: bool,
    /// Whether a partition may stand before damaged data.
    halts: bool,
}

impl Admitted {
    /// Whether the client must not fetch it just now.
    pub(super) fn rests(&self) -> bool {
        self.paused || matches!(self.halt, Some(Halt::Damaged { .. }))
    }
}

impl GapDetector {
    /// Begins an assignment at `start`, of which `next` is the offset.
    pub(super) fn open(
        &mut self,
        slot: AssignmentId,
        at: TopicPartition,
        topic: TopicId,
        start: StartAt,
        next: Option<i64>,
    ) {
        let place = slot.0 as usize;
        if self.slots.len() <= place {
            self.slots.resize_with(place + 1, || None);
        }
        let route = match self.routes.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, route)) => route,
            None => {
                self.routes.push((topic, Vec::new()));
                &mut self.routes.last_mut().expect("pushed just now").1
            }
        };
        let partition = at.partition.max(0) as usize;
        if route.len() <= partition {
            route.resize(partition + 1, None);
        }
        route[partition] = Some(slot);
        // One that is moved stays paused.
        let before = self.slots[place].as_ref().filter(|a| a.open && a.at == at);
        let (paused, client_paused) =
            before.map_or((false, false), |a| (a.paused, a.client_paused));
        self.slots[place] = Some(Admitted {
            at,
            topic,
            next,
            start,
            paused,
            client_paused,
            open: true,
            doubt: None,
            position: Position::Foreign,
            skipped_batch: 0,
            halt: None,
            pause: FIRST_PAUSE,
            unchecked: HEADER_CHECKS,
        });
    }

    /// Ends the assignment of a partition: none of its records is admitted any more.
    pub(super) fn close(&mut self, at: &TopicPartition) {
        for (_, admitted) in self.opened_mut().filter(|(_, admitted)| admitted.at == *at) {
            admitted.open = false;
        }
    }

    /// The open assignments.
    pub(super) fn opened(&self) -> impl Iterator<Item = (AssignmentId, &Admitted)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(place, admitted)| Some((AssignmentId(place), admitted.as_ref()?)))
            .filter(|(_, admitted)| admitted.open)
    }

    fn opened_mut(&mut self) -> impl Iterator<Item = (AssignmentId, &mut Admitted)> {
        (0u32..)
            .zip(&mut self.slots)
            .filter_map(|(place, admitted)| Some((AssignmentId(place), admitted.as_mut()?)))
            .filter(|(_, admitted)| admitted.open)
    }

    /// An open assignment.
    pub(super) fn get_mut(&mut self, slot: AssignmentId) -> Option<&mut Admitted> {
        let admitted = self.slots.get_mut(slot.0 as usize)?.as_mut()?;
        admitted.open.then_some(admitted)
    }

    /// An open assignment.
    pub(super) fn get(&self, slot: AssignmentId) -> Option<&Admitted> {
        let admitted = self.slots.get(slot.0 as usize)?.as_ref()?;
        admitted.open.then_some(admitted)
    }

    /// A new batch begins.
    pub(super) fn begin_batch(&mut self) {
        self.batch += 1;
    }

    /// Records that came without an assignment, since the start.
    pub(super) fn unowned(&self) -> u64 {
        self.unowned
    }

    /// The slot of a partition, if it is ours.
    pub(super) fn slot(&mut self, topic: TopicId, partition: i32) -> Option<AssignmentId> {
        if self.routes.get(self.last).map(|(known, _)| *known) != Some(topic) {
            self.last = self.routes.iter().position(|(known, _)| *known == topic)?;
        }
        let partition = usize::try_from(partition).ok()?;
        *self.routes[self.last].1.get(partition)?
    }

    /// Decides about one record; the records of a partition come in order.
    pub(super) fn judge(&mut self, topic: TopicId, partition: i32, offset: i64) -> Verdict {
        let batch = self.batch;
        let Some((slot, admitted)) = self
            .slot(topic, partition)
            .and_then(|slot| Some((slot, self.get_mut(slot)?)))
        else {
            self.unowned += 1;
            return Verdict::Drop;
        };
        if admitted.skipped_batch >= batch {
            return Verdict::Drop;
        }
        if let Some(next) = admitted.next {
            if admitted.doubt.is_some() && offset > next {
                admitted.doubt = None;
                admitted.skipped_batch = batch;
                return Verdict::SeekBack(slot, next);
            }
            if offset < next {
                // Rule 3: a repeat. The ledger drops and counts it; it says nothing about the jump in doubt.
                return Verdict::Deliver(slot, false);
            }
        }
        admitted.doubt = None;
        if matches!(admitted.position, Position::Sought | Position::Erred) {
            admitted.position = Position::Own;
        }
        admitted.next = Some(offset + 1);
        admitted.pause = FIRST_PAUSE;
        let check = admitted.unchecked > 0;
        admitted.unchecked = admitted.unchecked.saturating_sub(1);
        Verdict::Deliver(slot, check)
    }

    /// Marks a partition whose error entry stood in a batch, or whose seek back did not succeed.
    pub(super) fn doubt(&mut self, slot: AssignmentId, now: Instant) {
        if let Some(admitted) = self.get_mut(slot).filter(|a| a.halt.is_none()) {
            admitted.doubt = Some(Doubt {
                since: now,
                sought: false,
            });
            if admitted.position != Position::Foreign {
                admitted.position = Position::Erred;
            }
            self.doubts = true;
        }
    }

    /// The client says that the offset to read is missing: what still comes is not believed. Gives the offset that is due.
    pub(super) fn missing(&mut self, slot: AssignmentId) -> Option<i64> {
        let admitted = self.get_mut(slot)?;
        admitted.halt = Some(Halt::Missing);
        admitted.skipped_batch = EVERY_BATCH;
        admitted.doubt = None;
        if admitted.position != Position::Foreign {
            admitted.position = Position::Erred;
        }
        admitted.next
    }

    /// What is due cannot be read as it is: nothing behind it is admitted until it is read again, after a pause. Gives the
    /// pause; nothing when the partition stands already.
    pub(super) fn damaged(&mut self, slot: AssignmentId, now: Instant) -> Option<Duration> {
        let admitted = self.get_mut(slot)?;
        if admitted.halt.is_some() {
            return None;
        }
        let pause = admitted.pause;
        admitted.halt = Some(Halt::Damaged { again: now + pause });
        admitted.skipped_batch = EVERY_BATCH;
        admitted.doubt = None;
        if admitted.position != Position::Foreign {
            admitted.position = Position::Erred;
        }
        admitted.pause = (pause * 2).min(LONGEST_PAUSE);
        self.halts = true;
        Some(pause)
    }

    /// Partitions that are to be read again after damage, and the offset that is due.
    pub(super) fn read_again(&mut self, now: Instant) -> Vec<(AssignmentId, i64)> {
        if !self.halts {
            return Vec::new();
        }
        let batch = self.batch;
        let (mut due, mut waiting, mut doubts) = (Vec::new(), false, self.doubts);
        for (slot, admitted) in self.opened_mut() {
            match (admitted.halt, admitted.next) {
                (Some(Halt::Damaged { again }), Some(next)) if again <= now => {
                    admitted.halt = None;
                    admitted.skipped_batch = batch;
                    // The seek may be lost; librdkafka then goes on behind the damage.
                    admitted.doubt = Some(Doubt {
                        since: now,
                        sought: false,
                    });
                    doubts = true;
                    due.push((slot, next));
                }
                (Some(Halt::Damaged { .. }), _) => waiting = true,
                _ => {}
            }
        }
        self.halts = waiting;
        self.doubts = doubts;
        due
    }

    /// A seek was accepted: nothing that was fetched before it comes any more.
    pub(super) fn sought(&mut self, slot: AssignmentId) {
        if let Some(admitted) = self.get_mut(slot)
            && admitted.position != Position::Foreign
        {
            admitted.position = Position::Sought;
        }
    }

    /// Judges the position that the client gives for a partition (`None`: reset), as far as `end` is known. Gives it back
    /// when everything before it was read in this assignment; what is due next is then not before it.
    pub(super) fn judge_position(
        &mut self,
        slot: AssignmentId,
        position: Option<i64>,
        end: Option<i64>,
    ) -> Option<i64> {
        let admitted = self.get_mut(slot)?;
        let Some(position) = position else {
            admitted.position = Position::Own;
            return None;
        };
        let next = admitted.next?;
        let in_log = end.is_none_or(|end| position <= end);
        if admitted.position != Position::Own || position < next || !in_log {
            return None;
        }
        admitted.next = Some(position);
        Some(position)
    }

    /// Partitions in doubt that have been silent for long: where to seek them back to. Each is named once; a later
    /// jump is still doubtful, since a seek soon after an assign can be lost.
    pub(super) fn silent(&mut self, now: Instant) -> Vec<(AssignmentId, i64)> {
        if !self.doubts {
            return Vec::new();
        }
        let (mut silent, mut waiting) = (Vec::new(), false);
        for (slot, admitted) in self.opened_mut() {
            let next = admitted.next;
            let Some(doubt) = admitted.doubt.as_mut().filter(|doubt| !doubt.sought) else {
                continue;
            };
            if now.duration_since(doubt.since) < SILENCE {
                waiting = true;
            } else if let Some(next) = next {
                doubt.sought = true;
                silent.push((slot, next));
            }
        }
        self.doubts = waiting;
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = TopicId(7);
    const SLOT: AssignmentId = AssignmentId(3);

    fn admission(next: i64) -> GapDetector {
        let mut admission = GapDetector::default();
        let at = TopicPartition {
            topic: "t".into(),
            partition: 2,
        };
        admission.open(SLOT, at, TOPIC, StartAt::Offset(next), Some(next));
        admission.begin_batch();
        admission
    }

    fn deliver(admission: &mut GapDetector, offset: i64) -> bool {
        matches!(admission.judge(TOPIC, 2, offset), Verdict::Deliver(SLOT, _))
    }

    #[test]
    fn a_jump_after_an_error_entry_is_sought_back_once_and_then_believed() {
        let mut admission = admission(10);
        assert!(deliver(&mut admission, 10));
        admission.doubt(SLOT, Instant::now());
        assert_eq!(admission.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 11));
        assert_eq!(
            admission.judge(TOPIC, 2, 13),
            Verdict::Drop,
            "the rest of the batch is older than the seek"
        );
        admission.begin_batch();
        assert!(deliver(&mut admission, 12), "the jump was real");
    }

    #[test]
    fn a_silent_partition_in_doubt_is_sought_back_once_an_error() {
        let mut admission = admission(10);
        let error = Instant::now();
        admission.doubt(SLOT, error);
        assert_eq!(admission.silent(error), []);
        assert_eq!(admission.silent(error + SILENCE), [(SLOT, 10)]);
        assert_eq!(admission.silent(error + 2 * SILENCE), []);
        assert_eq!(
            admission.judge(TOPIC, 2, 12),
            Verdict::SeekBack(SLOT, 10),
            "the seek may have been lost"
        );
        admission.doubt(SLOT, error);
        assert_eq!(admission.silent(error + SILENCE), [(SLOT, 10)]);
    }

    #[test]
    fn the_record_that_is_due_clears_the_doubt() {
        let mut admission = admission(10);
        admission.doubt(SLOT, Instant::now());
        assert!(deliver(&mut admission, 10));
        assert!(deliver(&mut admission, 15), "a compaction gap");
    }

    #[test]
    fn a_repeat_neither_clears_the_doubt_nor_moves_what_is_due() {
        let mut admission = admission(10);
        assert!(deliver(&mut admission, 10));
        admission.doubt(SLOT, Instant::now());
        assert!(deliver(&mut admission, 10));
        assert_eq!(admission.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 11));
    }

    #[test]
    fn a_position_is_believed_once_it_was_reset_in_this_assignment() {
        let mut admission = admission(10);
        assert_eq!(admission.judge_position(SLOT, Some(90), None), None);
        assert!(deliver(&mut admission, 10));
        let left_over = admission.judge_position(SLOT, Some(90), None);
        assert_eq!(
            left_over, None,
            "a record does not lower what was left over"
        );
        assert_eq!(admission.judge_position(SLOT, None, None), None);
        assert_eq!(admission.judge_position(SLOT, Some(11), None), Some(11));
        assert_eq!(admission.judge_position(SLOT, Some(14), Some(14)), Some(14));
        assert_eq!(admission.judge_position(SLOT, Some(13), None), None);
        let beyond = admission.judge_position(SLOT, Some(15), Some(14));
        assert_eq!(beyond, None, "beyond the end of the log");
    }

    #[test]
    fn a_position_is_not_believed_after_an_error_entry_until_the_record_that_is_due_has_come() {
        let mut admission = admission(10);
        admission.judge_position(SLOT, None, None);
        assert!(deliver(&mut admission, 10));
        admission.doubt(SLOT, Instant::now());
        assert_eq!(admission.judge_position(SLOT, Some(12), None), None);
        assert!(deliver(&mut admission, 11));
        assert_eq!(admission.judge_position(SLOT, Some(12), None), Some(12));
    }

    #[test]
    fn a_seek_gives_a_position_back_its_credit_once_it_has_taken_effect() {
        for by_record in [true, false] {
            let mut admission = admission(10);
            admission.judge_position(SLOT, None, None);
            admission.doubt(SLOT, Instant::now());
            assert_eq!(admission.judge(TOPIC, 2, 12), Verdict::SeekBack(SLOT, 10));
            assert_eq!(admission.judge_position(SLOT, Some(13), None), None);
            admission.sought(SLOT);
            assert_eq!(admission.judge_position(SLOT, Some(13), None), None);
            admission.begin_batch();
            if by_record {
                assert!(deliver(&mut admission, 10));
            } else {
                admission.judge_position(SLOT, None, None);
            }
            assert_eq!(admission.judge_position(SLOT, Some(12), None), Some(12));
        }
    }

    #[test]
    fn a_new_assignment_does_not_inherit_the_credit_of_a_position() {
        let mut admission = admission(10);
        admission.judge_position(SLOT, None, None);
        let at = admission.get(SLOT).unwrap().at.clone();
        admission.close(&at);
        assert_eq!(admission.judge_position(SLOT, Some(20), None), None);
        let again = AssignmentId(4);
        admission.open(again, at, TOPIC, StartAt::Offset(10), Some(10));
        assert_eq!(admission.judge_position(again, Some(20), None), None);
    }

    #[test]
    fn nothing_behind_damaged_data_is_admitted_until_it_is_read_again_more_and_more_slowly() {
        let mut admission = admission(10);
        assert!(deliver(&mut admission, 10));
        let mut now = Instant::now();
        for pause in [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE] {
            assert_eq!(admission.damaged(SLOT, now), Some(pause));
            assert_eq!(admission.damaged(SLOT, now), None, "it stands already");
            assert!(admission.get(SLOT).unwrap().rests());
            admission.begin_batch();
            assert_eq!(admission.judge(TOPIC, 2, 15), Verdict::Drop);
            admission.doubt(SLOT, now);
            assert_eq!(admission.silent(now + 2 * SILENCE), [], "it is not sought");
            assert_eq!(admission.read_again(now), []);
            now += pause;
            assert_eq!(admission.read_again(now), [(SLOT, 11)]);
            assert!(!admission.get(SLOT).unwrap().rests());
            admission.begin_batch();
        }
        assert!(deliver(&mut admission, 11));
        assert_eq!(
            admission.damaged(SLOT, now),
            Some(FIRST_PAUSE),
            "another one"
        );
    }

    #[test]
    fn what_stands_behind_damaged_data_is_not_believed_when_the_seek_back_was_lost() {
        let mut admission = admission(10);
        let now = Instant::now();
        assert!(deliver(&mut admission, 10));
        assert_eq!(admission.damaged(SLOT, now), Some(FIRST_PAUSE));
        assert_eq!(admission.read_again(now + FIRST_PAUSE), [(SLOT, 11)]);
        admission.sought(SLOT);
        admission.begin_batch();
        assert_eq!(admission.judge(TOPIC, 2, 15), Verdict::SeekBack(SLOT, 11));
        admission.sought(SLOT);
        admission.begin_batch();
        assert!(deliver(&mut admission, 11));
        assert!(deliver(&mut admission, 15), "a gap");
    }

    #[test]
    fn a_partition_whose_offset_is_missing_stands_until_it_is_opened_again() {
        let mut admission = admission(10);
        admission.judge_position(SLOT, None, None);
        admission.doubt(SLOT, Instant::now());
        assert_eq!(admission.missing(SLOT), Some(10));
        admission.begin_batch();
        assert_eq!(admission.judge(TOPIC, 2, 15), Verdict::Drop);
        assert_eq!(admission.silent(Instant::now() + 2 * SILENCE), []);
        assert_eq!(admission.judge_position(SLOT, Some(12), None), None);
        admission.get_mut(SLOT).unwrap().paused = true;
        let at = admission.get(SLOT).unwrap().at.clone();
        admission.open(SLOT, at, TOPIC, StartAt::Offset(40), Some(40));
        assert!(deliver(&mut admission, 40));
        assert!(
            admission.get(SLOT).unwrap().rests(),
            "a pause outlasts a move"
        );
    }

    #[test]
    fn records_of_a_closed_or_unknown_partition_are_dropped_and_counted() {
        let mut admission = admission(0);
        let at = admission.get(SLOT).unwrap().at.clone();
        admission.close(&at);
        assert_eq!(admission.judge(TOPIC, 2, 0), Verdict::Drop);
        assert_eq!(admission.judge(TOPIC, 9, 0), Verdict::Drop);
        assert_eq!(admission.judge(TopicId(8), 2, 0), Verdict::Drop);
        assert_eq!(admission.unowned(), 3);
    }
}
