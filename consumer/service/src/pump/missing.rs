//! Offsets out of range (G12) and partitions with read errors: distinguished, reported, and recovered from.
//!
//! ```text
//!  OffsetMissing ─► bounds of the log? ─┬─ offset within: it could not be read ─► retry the read
//!                                       ├─ out of range, policy stop ─► stopped
//!                                       └─ out of range, earliest or latest ─► in-flight settled? ─► reset there
//!  PartitionError ─► unreadable, until a record is read or the error expires
//! ```

use std::ops::Range;
use std::time::{Duration, Instant};

use sluicegate_engine::source::{
    AssignmentId, BoundsError, FetchState, PartitionFault, SourceError, StartAt, StartPartition,
    TopicPartition,
};

use super::Pump;

/// Initial delay before the bounds of a log are queried again, or a read is retried; doubles each time.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Maximum such delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A transient fault not repeated within this time is cleared.
const TRANSIENT_EXPIRY: Duration = Duration::from_mins(1);
/// A denied fetch is retried by the client within this time: after it without an error, fetches are no longer denied.
const DENIED_EXPIRY: Duration = Duration::from_secs(3);

/// An offset that the client could not fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// The next offset to read.
    pub(super) asked: i64,
    /// The client's fetch position when the broker rejected it.
    pub(super) fetched: Option<i64>,
    /// Whether the log was truncated before that offset.
    pub(super) truncated: bool,
    /// The broker's error.
    pub(super) reason: String,
}

/// Whether the offset is in the log.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The offset is in the log; the client could not read it.
    Within,
    /// The offset is out of range; the text explains why.
    Missing(String),
}

impl Lost {
    /// Distinguishes an offset out of range from a failed read, by the bounds of the log: its first offset, and one past its
    /// last.
    fn judge(&self, log: &Range<i64>) -> Verdict {
        let Range { start, end } = log;
        let asked = self.asked;
        if self.truncated {
            return Verdict::Missing(format!(
                "the log was truncated before offset {asked} and has other records there now; it has the offsets {start} \
                 to {end}"
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
                "offset {asked} is beyond the end of the log, which begins at {start} and ends at {end}: it was \
                 truncated, or created again"
            ));
        }
        // A log's first offset never decreases: an offset in range now that was rejected before was beyond the end then.
        if self.fetched == Some(asked) && asked > *start {
            return Verdict::Missing(format!(
                "offset {asked} was beyond the end of the log, which has since grown to {end}: it was truncated \
                 in between"
            ));
        }
        Verdict::Within
    }
}

/// Recovery stage of a partition with a lost offset.
#[derive(Debug)]
enum Stage {
    /// The bounds of its log are being queried, or are about to be.
    Asking,
    /// Waits until its in-flight records have settled.
    Settling,
    /// The read is being retried; `delivered` counts the records before the retry.
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
    delay: Duration,
    asked: bool,
}

impl Missing {
    fn schedule_retry(&mut self) {
        self.due = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(MAX_RETRY_DELAY);
    }
}

/// A partition with a read error.
#[derive(Debug)]
pub(super) struct Unreadable {
    slot: AssignmentId,
    /// The next offset to read when the error was reported.
    next: i64,
    /// When the error was last reported.
    reported: Instant,
    /// Kind of the error, which decides when it is cleared.
    fault: PartitionFault,
}

impl Unreadable {
    /// Whether the error is over although no record was read.
    fn is_over(&self, now: Instant, fetch: impl FnOnce() -> FetchState) -> bool {
        let silence = now.duration_since(self.reported);
        match self.fault {
            PartitionFault::Damaged => false,
            PartitionFault::Denied => silence >= DENIED_EXPIRY && fetch() == FetchState::Fetching,
            PartitionFault::Passing => silence >= TRANSIENT_EXPIRY,
        }
    }
}

impl Pump {
    /// The client reports that the next offset is out of range (G12).
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
            let remedy = "the log's bounds are being queried";
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
                delay: FIRST_RETRY_DELAY,
                asked: false,
            });
            return;
        };
        if let Stage::Reading { delivered } = known.stage {
            if self.flow.assignment(slot).delivered > delivered {
                known.delay = FIRST_RETRY_DELAY;
                known.due = now;
            } else {
                known.schedule_retry();
            }
        }
        known.lost = lost;
        known.asked = false;
        known.stage = Stage::Asking;
    }

    /// Queries the log bounds that are due for lost offsets; the answers arrive as events.
    pub(super) fn check_missing_offsets(&mut self) {
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

    /// Handles the bounds of a log, or the reason why they are not available.
    pub(super) fn bounds(&mut self, at: &TopicPartition, bounds: Result<Range<i64>, BoundsError>) {
        if let (Some(slot), Ok(log)) = (self.flow.slot(at), &bounds) {
            self.record_queried_end(slot, log.end);
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
                missing.schedule_retry();
                if matches!(missing.stage, Stage::Asking) && !self.is_damaged(slot) {
                    let missing = &self.missing[index];
                    let cause = format!(
                        "offset {asked} cannot be read ({}), and the log's bounds are not available: {reason}",
                        missing.lost.reason
                    );
                    self.cannot_read(
                        slot,
                        &cause,
                        "the query is retried until the brokers answer",
                    );
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
                    self.record_end_of_unfetched(slot, log.end);
                }
                Some(policy) => self.restart_elsewhere(index, words, &log, policy),
            },
        }
    }

    /// The log has the offset: seeks the client back to it, with increasing delays if that does not help.
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
                missing.due = Instant::now() + TRANSIENT_EXPIRY;
                if !self.is_damaged(slot) {
                    self.cannot_read(slot, &cause, "the read is retried from there");
                    self.watch(slot, PartitionFault::Passing);
                }
            }
            Err(error) => {
                missing.schedule_retry();
                let cause = format!("{cause}; the retry failed: {error}");
                self.cannot_read(slot, &cause, "it is retried");
            }
        }
    }

    /// Resets the partition to the policy's offset, once none of its records is in flight.
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
                "it continues at offset {to} or later, as processing.offset_out_of_range says, once its in-flight records \
                 have settled"
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
                let cause = format!("{words}; continuing at offset {to} failed: {reason}");
                self.missing.swap_remove(index);
                self.flow
                    .stop_partition(slot, &cause, "restart the service");
                self.record_end_of_unfetched(slot, log.end);
                return;
            }
            missing.schedule_retry();
            let cause = format!("{words}; continuing at offset {to} failed: {error}");
            self.cannot_read(slot, &cause, "it is retried");
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

    /// Handles a read error of a partition.
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
                "the read is retried with increasing delays: another replica may have it intact; to skip it, commit an \
                 offset after it while the service is stopped"
            }
            PartitionFault::Passing => "the client keeps retrying; see the cause",
        };
        self.cannot_read(slot, reason, remedy);
        self.watch(slot, fault);
    }

    /// Whether the data at the next offset is known to be damaged. Error entries of damaged data move the client's position, at the
    /// end of a log even past it: an out-of-range error that follows is a consequence, not a cause.
    fn is_damaged(&self, slot: AssignmentId) -> bool {
        let mut faults = self.unreadable.iter();
        faults.any(|fault| fault.slot == slot && fault.fault == PartitionFault::Damaged)
    }

    fn read_slot(&self, at: &TopicPartition) -> Option<AssignmentId> {
        let slot = self.flow.slot(at)?;
        self.flow.is_read(at, slot).then_some(slot)
    }

    /// Reports that a partition cannot be read. The first time is logged, then one line per minute and topic.
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

    /// Watches for the end of a fault.
    pub(super) fn watch(&mut self, slot: AssignmentId, fault: PartitionFault) {
        self.unreadable.retain(|other| other.slot != slot);
        self.unreadable.push(Unreadable {
            slot,
            next: self.flow.assignment(slot).ledger.next(),
            reported: Instant::now(),
            fault,
        });
    }

    /// Clears the errors of partitions from which a record was read, or whose error has expired.
    pub(super) fn clear_readable(&mut self) {
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

    /// The known end of a partition's log; for one that is not fetched, from the last query.
    pub(super) fn end_offset(&self, slot: AssignmentId) -> Option<i64> {
        self.source.end_offset(slot).max(self.queried_end(slot))
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
    fn an_offset_is_missing_only_out_of_range_or_after_a_truncation() {
        let missing = |lost: Lost, words: &str| match lost.judge(&(50..100)) {
            Verdict::Missing(said) => assert!(said.contains(words), "{said}"),
            Verdict::Within => panic!("{lost:?} is missing: {words}"),
        };
        missing(
            lost(10, 10),
            "begins at 50 and ends at 100: 40 offsets are gone",
        );
        missing(lost(101, 101), "beyond the end of the log");
        missing(lost(70, 70), "was truncated in between");
        let truncated = Lost {
            truncated: true,
            ..lost(70, -1)
        };
        missing(truncated, "was truncated before offset 70");
        for (asked, fetched) in [(50, 101), (50, 50), (70, 101), (100, 101), (99, -2)] {
            assert_eq!(lost(asked, fetched).judge(&(50..100)), Verdict::Within);
        }
    }
}
