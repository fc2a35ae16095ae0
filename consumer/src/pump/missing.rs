//! Offsets that are not in the log (G12), and partitions that cannot be read: told apart, explained, and gone on from.
//!
//! ```text
//!  OffsetMissing ─► bounds of the log? ─┬─ the offset lies within: it could not be read ─► read it again
//!                                       ├─ it does not, policy stop ─► stopped
//!                                       └─ it does not, earliest or latest ─► in flight settled? ─► restart there
//!  PartitionError ─► unreadable, until something is read or it is quiet
//! ```

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Pump;
use crate::source::{
    AssignmentId, FetchState, PartitionFault, SourceError, StartAt, StartPartition, TopicPartition,
};

/// First pause before the bounds of a log are asked for again, or an offset is read again; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// A fault that is not repeated for so long is over.
const QUIET: Duration = Duration::from_mins(1);
/// A fetch that is refused is repeated within this: none is refused any more when the last one was not for so long.
const DENIED_QUIET: Duration = Duration::from_secs(3);

/// An offset that the client could not read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// What is due next.
    pub(super) asked: i64,
    /// Where the client was when it was refused.
    pub(super) fetched: Option<i64>,
    /// The log was cut off before that.
    pub(super) truncated: bool,
    /// The broker's words.
    pub(super) reason: String,
}

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is in the log; the client could not read it.
    Within,
    /// It is not in the log, in these words.
    Missing(String),
}

impl Lost {
    /// Tells a missing offset from one that could not be read, by the bounds of the log: its first offset, and one past
    /// its last.
    fn judge(&self, log: &Range<i64>) -> Verdict {
        let Range { start, end } = log;
        let asked = self.asked;
        if self.truncated {
            return Verdict::Missing(format!(
                "the log was cut off before offset {asked}, and what stands there now is something else; it has the \
                 offsets {start} to {end}"
            ));
        }
        if asked < *start {
            let gone = start - asked;
            return Verdict::Missing(format!(
                "offset {asked} is no longer in the log, which begins at {start} and ends at {end}: {gone} offsets are \
                 gone"
            ));
        }
        if asked > *end {
            return Verdict::Missing(format!(
                "offset {asked} is beyond the end of the log, which begins at {start} and ends at {end}: it was cut \
                 off, or made anew"
            ));
        }
        // A log never gets an earlier beginning: what is within it now and was refused before was beyond its end.
        if self.fetched == Some(asked) && asked > *start {
            return Verdict::Missing(format!(
                "offset {asked} was beyond the end of the log, which has been written on since, to {end}: it was cut \
                 off in between"
            ));
        }
        Verdict::Within
    }
}

/// Where a partition with a lost offset stands.
#[derive(Debug)]
enum Stage {
    /// The bounds of its log are asked for, or about to be.
    Asking,
    /// What is in flight settles first.
    Settling,
    /// It is read again, with so much delivered before.
    Reading { delivered: u64 },
}

/// A partition with a lost offset.
#[derive(Debug)]
pub(super) struct Missing {
    slot: AssignmentId,
    at: TopicPartition,
    lost: Lost,
    stage: Stage,
    due: Instant,
    pause: Duration,
    asked: bool,
}

impl Missing {
    fn again_later(&mut self) {
        self.due = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_RETRY);
    }
}

/// A partition that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    slot: AssignmentId,
    /// What was read of it before.
    next: i64,
    /// When it was heard of last.
    heard: Instant,
    /// When it is over.
    fault: PartitionFault,
}

impl Unreadable {
    /// Whether it is over although nothing was read.
    fn is_over(&self, now: Instant, fetch: impl FnOnce() -> FetchState) -> bool {
        let quiet = now.duration_since(self.heard);
        match self.fault {
            PartitionFault::Damaged => false,
            PartitionFault::Denied => quiet >= DENIED_QUIET && fetch() == FetchState::Fetching,
            PartitionFault::Passing => quiet >= QUIET,
        }
    }
}

impl Pump {
    /// The offset to read is not there, as the client says (G12).
    pub(super) fn offset_missing(
        &mut self,
        at: &TopicPartition,
        asked: Option<i64>,
        fetched: Option<i64>,
        truncated: bool,
        reason: String,
    ) {
        let Some(slot) = self.read_slot(at) else {
            return;
        };
        let lost = Lost {
            asked: asked.unwrap_or_else(|| self.flow.assignment(slot).ledger.next()),
            fetched,
            truncated,
            reason,
        };
        if !self.is_damaged(slot) {
            let cause = format!("offset {} cannot be read: {}", lost.asked, lost.reason);
            let remedy = "whether the log has it is being asked";
            self.flow.unreadable(slot, &cause, remedy);
        }
        let now = Instant::now();
        let known = self.missing.iter_mut().find(|known| known.slot == slot);
        let Some(known) = known else {
            self.missing.push(Missing {
                slot,
                at: at.clone(),
                lost,
                stage: Stage::Asking,
                due: now,
                pause: FIRST_RETRY,
                asked: false,
            });
            return;
        };
        if let Stage::Reading { delivered } = known.stage {
            if self.flow.assignment(slot).delivered > delivered {
                known.pause = FIRST_RETRY;
                known.due = now;
            } else {
                known.again_later();
            }
        }
        known.lost = lost;
        known.asked = false;
        known.stage = Stage::Asking;
    }

    /// Asks what is due about lost offsets; the answers come as events.
    pub(super) fn look_into_missing(&mut self) {
        if self.missing.is_empty() || self.stopping.is_some() {
            return;
        }
        let now = Instant::now();
        let flow = &self.flow;
        self.missing.retain(|missing| {
            let over = matches!(missing.stage, Stage::Reading { .. }) && now >= missing.due;
            !over && flow.is_read(&missing.at, missing.slot)
        });
        let mut asked = Vec::new();
        for missing in &mut self.missing {
            let ready = match missing.stage {
                Stage::Asking => true,
                Stage::Settling => flow.is_unused(missing.slot),
                Stage::Reading { .. } => false,
            };
            if ready && !missing.asked && now >= missing.due {
                missing.asked = true;
                asked.push(missing.at.clone());
            }
        }
        if !asked.is_empty() {
            self.source.ask_bounds(&asked);
        }
    }

    /// The bounds of a log, or why they are not to be had.
    pub(super) fn bounds(&mut self, at: &TopicPartition, bounds: Result<Range<i64>, String>) {
        if let (Some(slot), Ok(log)) = (self.flow.slot(at), &bounds) {
            self.note_asked_end(slot, log.end);
        }
        let Some(index) = self.missing.iter().position(|missing| missing.at == *at) else {
            return;
        };
        let missing = &mut self.missing[index];
        if !std::mem::take(&mut missing.asked) || self.flow.slot(at) != Some(missing.slot) {
            return;
        }
        let (slot, asked) = (missing.slot, missing.lost.asked);
        let log = match bounds {
            Ok(log) => log,
            Err(reason) => {
                missing.again_later();
                if matches!(missing.stage, Stage::Asking) && !self.is_damaged(slot) {
                    let missing = &self.missing[index];
                    let cause = format!(
                        "offset {asked} cannot be read ({}), and whether the log has it is not to be had: {reason}",
                        missing.lost.reason
                    );
                    self.cannot_read(slot, &cause, "it is asked again until the brokers answer");
                }
                return;
            }
        };
        match missing.lost.judge(&log) {
            Verdict::Within => self.read_again(index),
            Verdict::Missing(words) => match self.settings.offset_out_of_range {
                None => {
                    self.missing.swap_remove(index);
                    let remedy = "commit another offset for the group while it is stopped, or set \
                                  processing.offset_out_of_range, and restart the service";
                    self.flow.stop_partition(slot, &words, remedy);
                    self.note_end_of_unfetched(slot, log.end);
                }
                Some(policy) => self.restart_elsewhere(index, words, &log, policy),
            },
        }
    }

    /// The log has the offset: the client is set back to it, more and more slowly if that does not help.
    fn read_again(&mut self, index: usize) {
        let missing = &mut self.missing[index];
        let (slot, asked) = (missing.slot, missing.lost.asked);
        let cause = format!(
            "offset {asked} could not be read although the log has it: {}",
            missing.lost.reason
        );
        let start = StartPartition {
            slot,
            at: missing.at.clone(),
            start: StartAt::Offset(asked),
            due: Some(asked),
            leader_epoch: None,
            topic_id: self.flow.assignment(slot).topic_id,
        };
        match self.source.start(std::slice::from_ref(&start)) {
            Ok(()) => {
                missing.stage = Stage::Reading {
                    delivered: self.flow.assignment(slot).delivered,
                };
                missing.due = Instant::now() + QUIET;
                if !self.is_damaged(slot) {
                    self.cannot_read(slot, &cause, "it is read again from there");
                    self.watch(slot, PartitionFault::Passing);
                }
            }
            Err(error) => {
                missing.again_later();
                let cause = format!("{cause}; reading it again was refused: {error}");
                self.cannot_read(slot, &cause, "it is tried again");
            }
        }
    }

    /// The policy says where to go on, once nothing of the partition is in flight.
    fn restart_elsewhere(
        &mut self,
        index: usize,
        words: String,
        log: &Range<i64>,
        policy: StartAt,
    ) {
        let missing = &mut self.missing[index];
        let (slot, asked) = (missing.slot, missing.lost.asked);
        let to = match policy {
            StartAt::Latest => log.end,
            _ => log.start,
        };
        if !self.flow.is_unused(slot) {
            let remedy = format!(
                "it continues at offset {to} or later, as processing.offset_out_of_range says, once what is in flight has \
                 settled"
            );
            self.flow.unreadable(slot, &words, &remedy);
            missing.stage = Stage::Settling;
            return;
        }
        let start = StartPartition {
            slot,
            at: missing.at.clone(),
            start: StartAt::Offset(to),
            due: Some(to),
            leader_epoch: None,
            topic_id: self.flow.assignment(slot).topic_id,
        };
        if let Err(error) = self.source.start(std::slice::from_ref(&start)) {
            if let SourceError::Terminal(reason) = &error {
                let cause = format!("{words}; continuing at offset {to} was refused: {reason}");
                self.missing.swap_remove(index);
                self.flow
                    .stop_partition(slot, &cause, "restart the service");
                self.note_end_of_unfetched(slot, log.end);
                return;
            }
            missing.again_later();
            let cause = format!("{words}; continuing at offset {to} was refused: {error}");
            self.cannot_read(slot, &cause, "it is tried again");
            return;
        }
        let gone = u64::try_from(to - asked).unwrap_or(0);
        let another_log = missing.lost.truncated || asked > log.end;
        self.flow.restart(slot, to, gone, another_log);
        self.missing.swap_remove(index);
        tracing::warn!(
            topic = &*start.at.topic,
            partition = start.at.partition,
            asked,
            first = log.start,
            end = log.end,
            to,
            passed_over = gone,
            "{words}; continuing as processing.offset_out_of_range says"
        );
    }

    /// Something is wrong with reading a partition.
    pub(super) fn partition_error(
        &mut self,
        at: &TopicPartition,
        reason: &str,
        fault: PartitionFault,
    ) {
        let Some(slot) = self.read_slot(at) else {
            return;
        };
        let remedy = match fault {
            PartitionFault::Denied => "grant the service READ on the topic",
            PartitionFault::Damaged => {
                "it is read again with growing pauses: another replica may have it whole; to pass it over, commit an \
                 offset behind it while the service is stopped"
            }
            PartitionFault::Passing => "the client goes on trying; see the cause",
        };
        self.cannot_read(slot, reason, remedy);
        self.watch(slot, fault);
    }

    /// Whether what is due is known to be damaged. Error entries of damaged data move the client's position, at the end of a log
    /// out of it: what is then said of its offset is no cause of its own.
    fn is_damaged(&self, slot: AssignmentId) -> bool {
        let mut faults = self.unreadable.iter();
        faults.any(|fault| fault.slot == slot && fault.fault == PartitionFault::Damaged)
    }

    fn read_slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        let slot = self.flow.slot(at)?;
        self.flow.is_read(at, slot).then_some(slot)
    }

    /// Shows that a partition cannot be read; said in the log at first and once a minute for its topic.
    pub(super) fn cannot_read(&mut self, slot: AssignmentId, cause: &str, remedy: &str) {
        self.flow.unreadable(slot, cause, remedy);
        let at = self.flow.assignment(slot).at.clone();
        if let Some(times) = self.count_for_log(&at.topic, "unreadable") {
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                cause,
                remedy,
                times,
                "partition cannot be read"
            );
        }
    }

    /// Looks out for the end of a fault.
    pub(super) fn watch(&mut self, slot: AssignmentId, fault: PartitionFault) {
        self.unreadable.retain(|other| other.slot != slot);
        self.unreadable.push(Unreadable {
            slot,
            next: self.flow.assignment(slot).ledger.next(),
            heard: Instant::now(),
            fault,
        });
    }

    /// Partitions of which something was read, or nothing bad was heard any more, are well again.
    pub(super) fn look_for_readable(&mut self) {
        if self.unreadable.is_empty() {
            return;
        }
        let now = Instant::now();
        let (flow, source) = (&mut self.flow, &self.source);
        let mut over = Vec::new();
        self.unreadable.retain(|fault| {
            let assignment = flow.assignment(fault.slot);
            if !flow.is_read(&assignment.at, fault.slot) {
                return false;
            }
            let read = assignment.ledger.next() > fault.next;
            if !read && !fault.is_over(now, || source.fetch_state(fault.slot)) {
                return true;
            }
            let at = assignment.at.clone();
            over.extend(flow.readable(fault.slot).map(|trouble| (at, trouble)));
            false
        });
        let now_ms = self.now_ms();
        for (at, trouble) in over {
            if let Some(times) = self.count_for_log(&at.topic, "readable") {
                tracing::info!(
                    topic = &*at.topic,
                    partition = at.partition,
                    errors = trouble.count,
                    seconds = now_ms.saturating_sub(trouble.since_ms) / 1_000,
                    times,
                    "partition can be read again"
                );
            }
        }
    }

    /// The end of a partition, as far as it is known: of one that is not read, when it was asked for last.
    pub(super) fn end_offset(&self, slot: AssignmentId) -> Option<i64> {
        self.source.end_offset(slot).max(self.asked_end(slot))
    }
}

#[cfg(test)]
#[path = "missing_tests.rs"]
pub(super) mod scripted;

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(asked: i64, fetched: i64) -> Lost {
        Lost {
            asked,
            fetched: Some(fetched),
            truncated: false,
            reason: "Broker: Offset out of range".into(),
        }
    }

    #[test]
    fn an_offset_is_missing_only_outside_the_log_or_after_it_was_cut_off() {
        let missing = |lost: Lost, words: &str| match lost.judge(&(50..100)) {
            Verdict::Missing(said) => assert!(said.contains(words), "{said}"),
            Verdict::Within => panic!("{lost:?} is missing: {words}"),
        };
        missing(
            lost(10, 10),
            "begins at 50 and ends at 100: 40 offsets are gone",
        );
        missing(lost(101, 101), "beyond the end of the log");
        missing(lost(70, 70), "was cut off in between");
        let truncated = Lost {
            truncated: true,
            ..lost(70, -1)
        };
        missing(truncated, "was cut off before offset 70");
        for (asked, fetched) in [(50, 101), (50, 50), (70, 101), (100, 101), (99, -2)] {
            assert_eq!(lost(asked, fetched).judge(&(50..100)), Verdict::Within);
        }
    }
}
