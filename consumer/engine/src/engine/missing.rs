//! Offsets that the client cannot fetch from (G12): distinguished, reported, and recovered from.
//!
//! ```text
//!  OffsetMissing ─► bounds of the log? ─┬─ offset within: it could not be read ─► the read is retried
//!                                       ├─ out of range, policy stop ─► stopped
//!                                       └─ out of range, earliest or latest ─► in-flight settled? ─► reset there
//! ```

use std::ops::Range;

use super::Engine;
use super::recovery::{Goal, Judgement, Lost, Recovery};
use crate::event::Effect;
use crate::record::Record;
use crate::source::{
    AssignmentId, BoundsError, PartitionFault, SourceError, StartAt, StartPartition, TopicPartition,
};

impl<R: Record> Engine<R> {
    /// The client reports that the next offset is out of range (G12).
    pub(crate) fn offset_missing(
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
        let now_ms = self.now_ms;
        let lost = Lost {
            asked: asked.unwrap_or_else(|| self.flow.assignment(slot).ledger().next()),
            fetched,
            truncated,
            reason,
        };
        if !self.is_damaged(slot) {
            let cause = format!("offset {} cannot be read: {}", lost.asked, lost.reason);
            let remedy = "the log's bounds are being queried";
            self.flow.unreadable(slot, &cause, remedy);
        }
        let delivered = self.flow.assignment(slot).delivered();
        match self.troubles.recovery(slot) {
            Some(recovery) => recovery.lose_again(lost, delivered, now_ms),
            None => {
                let recovery = Recovery::new(lost, now_ms);
                self.troubles.begin_recovery(slot, recovery);
            }
        }
    }

    /// Queries the log bounds that are due for lost offsets; the answers arrive as events.
    pub(crate) fn run_recoveries(&mut self) {
        if self.troubles.is_empty() || self.stopping.has_begun() {
            return;
        }
        let now_ms = self.now_ms;
        let mut asked = Vec::new();
        for slot in self.troubles.slots() {
            let Some(recovery) = self.troubles.recovery(slot) else {
                continue;
            };
            let at = self.flow.assignment(slot).at();
            if recovery.is_over(now_ms) || !self.flow.is_read(at, slot) {
                self.troubles.end_recovery(slot);
            } else if recovery.asks_bounds(self.flow.is_unused(slot), now_ms) {
                asked.push(at.clone());
            }
        }
        if !asked.is_empty() {
            self.effects.push_back(Effect::AskBounds(asked));
        }
    }

    /// Handles the bounds of a log, or the reason why they are not available.
    pub(crate) fn bounds(&mut self, at: &TopicPartition, bounds: Result<Range<i64>, BoundsError>) {
        let Some(slot) = self.flow.slot(at) else {
            return;
        };
        if let Ok(log) = &bounds {
            self.observations.record_queried_end(slot, log.end);
        }
        let now_ms = self.now_ms;
        let next = self.flow.assignment(slot).ledger().next();
        let Some(recovery) = self.troubles.recovery(slot) else {
            return;
        };
        if !recovery.bounds_answered() {
            return;
        }
        let log = match bounds {
            Ok(log) => log,
            Err(reason) => {
                if recovery.bounds_unavailable(now_ms) {
                    let Lost {
                        asked,
                        reason: lost,
                        ..
                    } = recovery.lost();
                    let cause = format!(
                        "offset {asked} cannot be read ({lost}), and the log's bounds are not available: {reason}"
                    );
                    if !self.is_damaged(slot) {
                        let remedy = "the query is retried until the brokers answer";
                        self.cannot_read(slot, &cause, remedy);
                    }
                }
                return;
            }
        };
        let lost = recovery.lost_from(next);
        match lost.judge(&log) {
            Judgement::Within => {
                let cause = format!(
                    "offset {} could not be read although the log has it: {}",
                    lost.asked, lost.reason
                );
                self.seek(slot, lost.asked, Goal::Again { cause });
            }
            Judgement::OutOfRange(words) => match self.settings.offset_out_of_range {
                None => {
                    let remedy = "commit another offset for the group while it is stopped, or set \
                                  processing.offset_out_of_range, and restart the service";
                    self.stop_unfetched(slot, &words, remedy, log.end);
                }
                Some(policy) => self.continue_elsewhere(slot, words, log, policy),
            },
        }
    }

    /// Stops a partition whose log ends at `end`.
    fn stop_unfetched(&mut self, slot: AssignmentId, cause: &str, remedy: &str, end: i64) {
        self.troubles.end_recovery(slot);
        self.flow.stop_partition(slot, cause, remedy);
        self.observations.record_end(slot, self.now_ms, end);
    }

    fn seek(&mut self, slot: AssignmentId, to: i64, goal: Goal) {
        if let Some(recovery) = self.troubles.recovery(slot) {
            recovery.seek(goal);
        }
        let assignment = self.flow.assignment(slot);
        self.effects.push_back(Effect::Seek(StartPartition {
            slot,
            at: assignment.at().clone(),
            start: StartAt::Offset(to),
            due: Some(to),
            leader_epoch: None,
            topic_id: assignment.topic_id(),
        }));
    }

    /// Resets the partition to the policy's offset, once none of its records is in flight.
    fn continue_elsewhere(
        &mut self,
        slot: AssignmentId,
        words: String,
        log: Range<i64>,
        policy: StartAt,
    ) {
        let to = match policy {
            StartAt::Latest => log.end,
            _ => log.start,
        };
        if self.flow.is_unused(slot) {
            self.seek(slot, to, Goal::Elsewhere { words, to, log });
            return;
        }
        let remedy = format!(
            "it continues at offset {to} or later, as processing.offset_out_of_range says, once its in-flight records \
             have settled"
        );
        self.flow.unreadable(slot, &words, &remedy);
        if let Some(recovery) = self.troubles.recovery(slot) {
            recovery.settle_first();
        }
    }

    /// The client has been repositioned, or could not be.
    pub(crate) fn sought(&mut self, slot: AssignmentId, result: Result<(), SourceError>) {
        let now_ms = self.now_ms;
        // Without one, the partition may have been released in the meantime.
        let Some(recovery) = self.troubles.recovery(slot) else {
            return;
        };
        let Some(goal) = recovery.goal() else {
            return;
        };
        match (goal, result) {
            (Goal::Again { cause }, Ok(())) => {
                recovery.read(self.flow.assignment(slot).delivered(), now_ms);
                if !self.is_damaged(slot) {
                    self.cannot_read(slot, &cause, "the read is retried from there");
                    self.watch(slot, PartitionFault::Passing);
                }
            }
            (Goal::Again { cause }, Err(error)) => {
                recovery.retry_later(now_ms);
                let cause = format!("{cause}; the retry failed: {error}");
                self.cannot_read(slot, &cause, "it is retried");
            }
            (Goal::Elsewhere { words, to, log }, Ok(())) => self.restarted(slot, &words, to, &log),
            (Goal::Elsewhere { words, to, log }, Err(SourceError::Terminal(reason))) => {
                let cause = format!("{words}; continuing at offset {to} failed: {reason}");
                self.stop_unfetched(slot, &cause, "restart the service", log.end);
            }
            (Goal::Elsewhere { words, to, .. }, Err(error)) => {
                recovery.retry_later(now_ms);
                let cause = format!("{words}; continuing at offset {to} failed: {error}");
                self.cannot_read(slot, &cause, "it is retried");
            }
        }
    }

    /// The client continues at `to`.
    fn restarted(&mut self, slot: AssignmentId, words: &str, to: i64, log: &Range<i64>) {
        let Some(recovery) = self.troubles.end_recovery(slot) else {
            return;
        };
        let &Lost {
            asked, truncated, ..
        } = recovery.lost();
        let gone = u64::try_from(to - asked).unwrap_or(0);
        let another_log = truncated || asked > log.end;
        self.flow.restart(slot, to, gone, another_log);
        let at = self.flow.assignment(slot).at();
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            asked,
            first = log.start,
            end = log.end,
            to,
            passed_over = gone,
            "{words}; continuing as processing.offset_out_of_range says"
        );
    }
}
