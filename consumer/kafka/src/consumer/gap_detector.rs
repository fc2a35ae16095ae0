//! Decides which fetched records are delivered: only those of an owned partition, and none past a suspect gap. Pure.
//!
//! ```text
//!  queue:  41   42   error entry   44 …      librdkafka's position is past 43, which was not delivered
//!                    │ suspect     └ a gap ─► drop 44, seek back to 43, once ─► trust what follows
//!                    └ nothing for SUSPECT_TIMEOUT ─► seek back to 43
//! ```
//!
//! Rule 2: an error entry in a batch moves librdkafka's position past a record that was not delivered yet, and the next
//! pause (also librdkafka's own, during a rebalance) resumes there: a silent loss (G12). The ledger cannot see it,
//! because an upward gap is legal (compaction, transactions). So an error entry marks the partition as suspect, and the
//! first gap after it causes one seek back to the next expected offset. If no record follows the error (the skipped
//! record was the last one), the seek is made after `SUSPECT_TIMEOUT`; not at each error entry, because a seek resets
//! the backoff between failing fetches. Corrupt data is read again with growing delays, since librdkafka would continue
//! after it; after a missing offset nothing of the partition is admitted until it is started again.
//!
//! For the same reason librdkafka's consumed position of a partition is trusted only while nothing but records read by
//! this assignment have moved it (G2).

use std::time::{Duration, Instant};

use sluicegate_engine::source::{AssignmentId, StartAt, TopicPartition};

use crate::ffi::TopicId;

/// Number of records at the start of an assignment whose headers are read in both ways.
const HEADER_CHECKS: u8 = 8;

/// How long a suspect partition may deliver nothing: longer than librdkafka's backoff between failing fetches.
const SUSPECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// Delay before damaged data is first read again; doubled with each failure.
const REREAD_DELAY: Duration = Duration::from_secs(1);
/// Maximum such delay.
const MAX_REREAD_DELAY: Duration = Duration::from_mins(1);
/// Later than any batch.
const EVERY_BATCH: u64 = u64::MAX;

/// Why nothing of a partition is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// The client reports its offset as missing: until it is restarted.
    Missing,
    /// The next record cannot be read; librdkafka would continue after it.
    Damaged { again: Instant },
}

/// Whether librdkafka's consumed position of a partition can be trusted.
///
/// The client resets it when it stops a fetch and when it seeks, both some time after the call has returned, and
/// advances it with every entry taken from the queue: records, control records, and error entries, which stand for
/// nothing that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// It may stem from an earlier assignment: not trusted until seen reset.
    Stale,
    /// It may stem from before a seek: not trusted until seen reset, or advanced by a record fetched after it.
    AfterSeek,
    /// An error entry may have moved it past an undelivered record.
    AfterError,
    /// Only records read by this assignment have moved it.
    Trusted,
}

/// An error entry after which the next expected record has not arrived.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    since: Instant,
    sought: bool,
}

/// One assignment of one partition.
#[derive(Debug)]
pub(super) struct Admitted {
    slot: AssignmentId,
    pub(super) at: TopicPartition,
    pub(super) topic: TopicId,
    /// The next expected offset; `None` while it is unknown.
    pub(super) next: Option<i64>,
    /// Where it started, to repeat the assign before any record has arrived.
    pub(super) start: StartAt,
    pub(super) paused: bool,
    /// Whether librdkafka was told not to fetch it.
    pub(super) client_paused: bool,
    open: bool,
    suspicion: Option<Suspicion>,
    position: Position,
    /// Records of this partition are dropped up to the end of this batch: they were fetched before a seek.
    skipped_batch: u64,
    /// Why nothing of it is admitted until it is read again.
    halt: Option<Halt>,
    /// Delay before damaged data is read again.
    pause: Duration,
    unchecked: u8,
}

/// The decision about a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Deliver it; the flag requests a comparison of its headers.
    Deliver(AssignmentId, bool),
    /// Not owned, or fetched before a seek.
    Drop,
    /// Drop it and seek the partition back to this offset.
    SeekBack(AssignmentId, i64),
}

/// Tracks the assignments and decides which of their records are admitted.
#[derive(Debug, Default)]
pub(super) struct GapDetector {
    slots: Vec<Option<Admitted>>,
    /// The slots of each topic's partitions.
    routes: Vec<(TopicId, Vec<Option<AssignmentId>>)>,
    /// Index of the topic asked for last: records of a topic arrive in runs.
    last: usize,
    batch: u64,
    unowned: u64,
    /// Whether any partition may be suspect.
    any_suspect: bool,
    /// Whether any partition may be waiting at damaged data.
    halts: bool,
}

impl Admitted {
    /// Whether the client must currently not fetch it.
    pub(super) fn is_fetch_suspended(&self) -> bool {
        self.paused || matches!(self.halt, Some(Halt::Damaged { .. }))
    }
}

impl GapDetector {
    /// Starts an assignment at `start`, which resolves to offset `next`.
    pub(super) fn open(
        &mut self,
        slot: AssignmentId,
        at: TopicPartition,
        topic: TopicId,
        start: StartAt,
        next: Option<i64>,
    ) {
        let place = slot.index();
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
        // A repositioned assignment stays paused.
        let before = self.slots[place].as_ref().filter(|a| a.open && a.at == at);
        let (paused, client_paused) =
            before.map_or((false, false), |a| (a.paused, a.client_paused));
        self.slots[place] = Some(Admitted {
            slot,
            at,
            topic,
            next,
            start,
            paused,
            client_paused,
            open: true,
            suspicion: None,
            position: Position::Stale,
            skipped_batch: 0,
            halt: None,
            pause: REREAD_DELAY,
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
        let open = self.slots.iter().flatten().filter(|admitted| admitted.open);
        open.map(|admitted| (admitted.slot, admitted))
    }

    fn opened_mut(&mut self) -> impl Iterator<Item = (AssignmentId, &mut Admitted)> {
        let all = self.slots.iter_mut().flatten();
        all.filter(|admitted| admitted.open)
            .map(|admitted| (admitted.slot, admitted))
    }

    /// An open assignment.
    pub(super) fn get_mut(&mut self, slot: AssignmentId) -> Option<&mut Admitted> {
        let admitted = self.slots.get_mut(slot.index())?.as_mut()?;
        (admitted.open && admitted.slot == slot).then_some(admitted)
    }

    /// An open assignment.
    pub(super) fn get(&self, slot: AssignmentId) -> Option<&Admitted> {
        let admitted = self.slots.get(slot.index())?.as_ref()?;
        (admitted.open && admitted.slot == slot).then_some(admitted)
    }

    /// Starts a new batch.
    pub(super) fn begin_batch(&mut self) {
        self.batch += 1;
    }

    /// Number of records without an assignment, since the client was created.
    pub(super) fn unowned(&self) -> u64 {
        self.unowned
    }

    /// The slot of a partition, if it is owned.
    pub(super) fn slot(&mut self, topic: TopicId, partition: i32) -> Option<AssignmentId> {
        if self.routes.get(self.last).map(|(known, _)| *known) != Some(topic) {
            self.last = self.routes.iter().position(|(known, _)| *known == topic)?;
        }
        let partition = usize::try_from(partition).ok()?;
        *self.routes[self.last].1.get(partition)?
    }

    /// Decides about one record; the records of a partition arrive in order.
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
            if admitted.suspicion.is_some() && offset > next {
                admitted.suspicion = None;
                admitted.skipped_batch = batch;
                return Verdict::SeekBack(slot, next);
            }
            if offset < next {
                // Rule 3: a redelivery. The ledger drops and counts it; it says nothing about the suspect gap.
                return Verdict::Deliver(slot, false);
            }
        }
        admitted.suspicion = None;
        if matches!(
            admitted.position,
            Position::AfterSeek | Position::AfterError
        ) {
            admitted.position = Position::Trusted;
        }
        admitted.next = Some(offset + 1);
        admitted.pause = REREAD_DELAY;
        let check = admitted.unchecked > 0;
        admitted.unchecked = admitted.unchecked.saturating_sub(1);
        Verdict::Deliver(slot, check)
    }

    /// Marks a partition as suspect after an error entry in a batch or a failed seek back.
    pub(super) fn suspect(&mut self, slot: AssignmentId, now: Instant) {
        if let Some(admitted) = self.get_mut(slot).filter(|a| a.halt.is_none()) {
            admitted.suspicion = Some(Suspicion {
                since: now,
                sought: false,
            });
            if admitted.position != Position::Stale {
                admitted.position = Position::AfterError;
            }
            self.any_suspect = true;
        }
    }

    /// The client reports the offset to read as missing: later records are not trusted. Returns the next expected
    /// offset.
    pub(super) fn missing(&mut self, slot: AssignmentId) -> Option<i64> {
        let admitted = self.get_mut(slot)?;
        admitted.halt = Some(Halt::Missing);
        admitted.skipped_batch = EVERY_BATCH;
        admitted.suspicion = None;
        if admitted.position != Position::Stale {
            admitted.position = Position::AfterError;
        }
        admitted.next
    }

    /// The next record cannot be read: nothing after it is admitted until it is read again, after a delay. Returns the
    /// delay; `None` if the partition is already halted.
    pub(super) fn damaged(&mut self, slot: AssignmentId, now: Instant) -> Option<Duration> {
        let admitted = self.get_mut(slot)?;
        if admitted.halt.is_some() {
            return None;
        }
        let pause = admitted.pause;
        admitted.halt = Some(Halt::Damaged { again: now + pause });
        admitted.skipped_batch = EVERY_BATCH;
        admitted.suspicion = None;
        if admitted.position != Position::Stale {
            admitted.position = Position::AfterError;
        }
        admitted.pause = (pause * 2).min(MAX_REREAD_DELAY);
        self.halts = true;
        Some(pause)
    }

    /// Partitions to read again after damage, each with its next expected offset.
    pub(super) fn read_again(&mut self, now: Instant) -> Vec<(AssignmentId, i64)> {
        if !self.halts {
            return Vec::new();
        }
        let batch = self.batch;
        let (mut due, mut waiting, mut any_suspect) = (Vec::new(), false, self.any_suspect);
        for (slot, admitted) in self.opened_mut() {
            match (admitted.halt, admitted.next) {
                (Some(Halt::Damaged { again }), Some(next)) if again <= now => {
                    admitted.halt = None;
                    admitted.skipped_batch = batch;
                    // The seek may be lost; librdkafka would then continue after the damage.
                    admitted.suspicion = Some(Suspicion {
                        since: now,
                        sought: false,
                    });
                    any_suspect = true;
                    due.push((slot, next));
                }
                (Some(Halt::Damaged { .. }), _) => waiting = true,
                _ => {}
            }
        }
        self.halts = waiting;
        self.any_suspect = any_suspect;
        due
    }

    /// A seek was accepted: no record that was fetched before it arrives any more.
    pub(super) fn sought(&mut self, slot: AssignmentId) {
        if let Some(admitted) = self.get_mut(slot)
            && admitted.position != Position::Stale
        {
            admitted.position = Position::AfterSeek;
        }
    }

    /// Judges the client's position of a partition (`None`: reset) against the log end offset, if known. Returns it if
    /// everything before it was read in this assignment; the next expected offset is then at least that.
    pub(super) fn judge_position(
        &mut self,
        slot: AssignmentId,
        position: Option<i64>,
        end: Option<i64>,
    ) -> Option<i64> {
        let admitted = self.get_mut(slot)?;
        let Some(position) = position else {
            admitted.position = Position::Trusted;
            return None;
        };
        let next = admitted.next?;
        let in_log = end.is_none_or(|end| position <= end);
        if admitted.position != Position::Trusted || position < next || !in_log {
            return None;
        }
        admitted.next = Some(position);
        Some(position)
    }

    /// Suspect partitions that have delivered nothing for `SUSPECT_TIMEOUT`, each with the offset to seek back to. Each
    /// is returned once; a later gap is still suspect, because a seek soon after an assign can be lost.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(AssignmentId, i64)> {
        if !self.any_suspect {
            return Vec::new();
        }
        let (mut overdue, mut waiting) = (Vec::new(), false);
        for (slot, admitted) in self.opened_mut() {
            let next = admitted.next;
            let Some(suspicion) = admitted.suspicion.as_mut().filter(|s| !s.sought) else {
                continue;
            };
            if now.duration_since(suspicion.since) < SUSPECT_TIMEOUT {
                waiting = true;
            } else if let Some(next) = next {
                suspicion.sought = true;
                overdue.push((slot, next));
            }
        }
        self.any_suspect = waiting;
        overdue
    }
}

#[cfg(test)]
#[path = "gap_detector_tests.rs"]
mod tests;
