//! Recovery of a partition from an offset that cannot be fetched (G12).

use std::ops::Range;

/// Initial delay before the bounds of a log are queried again, or a read is retried; doubles each time.
const FIRST_RETRY_DELAY_MS: u64 = 500;
/// Maximum such delay.
const MAX_RETRY_DELAY_MS: u64 = 30_000;
/// A retried read without another error for this time has succeeded.
const READ_TIMEOUT_MS: u64 = 60_000;

/// An offset that the client could not fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The next offset to read.
    pub(crate) asked: i64,
    /// The client's fetch position when the broker rejected it.
    pub(crate) fetched: Option<i64>,
    /// Whether the log was truncated before that offset.
    pub(crate) truncated: bool,
    /// The broker's error.
    pub(crate) reason: String,
}

/// Whether the offset is in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// The offset is in the log; the client could not read it.
    Within,
    /// The offset is out of range; the text explains why.
    OutOfRange(String),
}

impl Lost {
    /// Distinguishes an offset out of range from a failed read, by the bounds of the log: its first offset, and one past its
    /// last.
    pub(crate) fn judge(&self, log: &Range<i64>) -> Judgement {
        let Range { start, end } = log;
        let asked = self.asked;
        if self.truncated {
            return Judgement::OutOfRange(format!(
                "the log was truncated before offset {asked} and has other records there now; it has the offsets {start} \
                 to {end}"
            ));
        }
        if asked < *start {
            let gone = start - asked;
            return Judgement::OutOfRange(format!(
                "offset {asked} has left the log, which begins at {start} and ends at {end}: {gone} offsets are \
                 gone"
            ));
        }
        if asked > *end {
            return Judgement::OutOfRange(format!(
                "offset {asked} is beyond the end of the log, which begins at {start} and ends at {end}: it was \
                 truncated, or created again"
            ));
        }
        // A log's first offset never decreases: an offset in range now that was rejected before was beyond the end then.
        if self.fetched == Some(asked) && asked > *start {
            return Judgement::OutOfRange(format!(
                "offset {asked} was beyond the end of the log, which has since grown to {end}: it was truncated \
                 in between"
            ));
        }
        Judgement::Within
    }
}

/// A repositioning that the client has not answered yet.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// The read of the lost offset is retried. The text is the cause.
    Again { cause: String },
    /// The partition continues at `to`. The text says why the offset is out of range.
    Elsewhere {
        words: String,
        to: i64,
        log: Range<i64>,
    },
}

/// Stage of a recovery.
#[derive(Clone, Debug)]
enum Stage {
    /// The bounds of its log are being queried, or are about to be.
    Asking,
    /// Waits until its in-flight records have settled.
    Settling,
    /// The client is being repositioned.
    Seeking(Goal),
    /// The read is being retried; `delivered` counts the records before the retry.
    Reading { delivered: u64 },
}

/// Recovery of a partition from a lost offset. Times are on the engine's clock.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    lost: Lost,
    stage: Stage,
    due_ms: u64,
    delay_ms: u64,
    /// The bounds were queried, and the answer has not arrived.
    asked: bool,
}

impl Recovery {
    /// The bounds of the log are to be queried.
    pub(crate) fn new(lost: Lost, now_ms: u64) -> Self {
        Self {
            lost,
            stage: Stage::Asking,
            due_ms: now_ms,
            delay_ms: FIRST_RETRY_DELAY_MS,
            asked: false,
        }
    }

    /// An offset was lost again: at once if the retried read has `delivered` records since, else later.
    pub(crate) fn lose_again(&mut self, lost: Lost, delivered: u64, now_ms: u64) {
        if let Stage::Reading { delivered: before } = self.stage {
            if delivered > before {
                self.delay_ms = FIRST_RETRY_DELAY_MS;
                self.due_ms = now_ms;
            } else {
                self.schedule_retry(now_ms);
            }
        }
        self.lost = lost;
        self.asked = false;
        self.stage = Stage::Asking;
    }

    /// Whether the bounds are to be queried now; from then on the answer is expected. `is_unused`: none of the partition's
    /// records is in flight.
    pub(crate) fn asks_bounds(&mut self, is_unused: bool, now_ms: u64) -> bool {
        let ready = match self.stage {
            Stage::Asking => true,
            Stage::Settling => is_unused,
            Stage::Seeking(_) | Stage::Reading { .. } => false,
        };
        let asks = ready && !self.asked && now_ms >= self.due_ms;
        self.asked |= asks;
        asks
    }

    /// An answer about the bounds has arrived; `false`: none was expected.
    pub(crate) fn bounds_answered(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    /// What is lost, of which nothing is before `next`: a client that delivers records again can be behind what was read.
    pub(crate) fn lost_from(&mut self, next: i64) -> Lost {
        self.lost.asked = self.lost.asked.max(next);
        self.lost.clone()
    }

    /// What is lost.
    pub(crate) fn lost(&self) -> &Lost {
        &self.lost
    }

    /// The bounds are not available: they are queried again later. Returns whether nothing is known yet.
    pub(crate) fn bounds_unavailable(&mut self, now_ms: u64) -> bool {
        self.schedule_retry(now_ms);
        matches!(self.stage, Stage::Asking)
    }

    /// The client is being repositioned.
    pub(crate) fn seek(&mut self, goal: Goal) {
        self.stage = Stage::Seeking(goal);
    }

    /// It continues once the partition's records have settled.
    pub(crate) fn settle_first(&mut self) {
        self.stage = Stage::Settling;
    }

    /// What the client is being repositioned for, if it is.
    pub(crate) fn goal(&self) -> Option<Goal> {
        match &self.stage {
            Stage::Seeking(goal) => Some(goal.clone()),
            Stage::Asking | Stage::Settling | Stage::Reading { .. } => None,
        }
    }

    /// The read is retried; so many records were delivered before.
    pub(crate) fn read(&mut self, delivered: u64, now_ms: u64) {
        self.stage = Stage::Reading { delivered };
        self.due_ms = now_ms + READ_TIMEOUT_MS;
    }

    /// The client could not be repositioned: it begins again later.
    pub(crate) fn retry_later(&mut self, now_ms: u64) {
        self.stage = Stage::Asking;
        self.schedule_retry(now_ms);
    }

    fn schedule_retry(&mut self, now_ms: u64) {
        self.due_ms = now_ms + self.delay_ms;
        self.delay_ms = (self.delay_ms * 2).min(MAX_RETRY_DELAY_MS);
    }

    /// Whether the retried read has succeeded: it was not followed by another error.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        matches!(self.stage, Stage::Reading { .. }) && now_ms >= self.due_ms
    }
}

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
            Judgement::OutOfRange(said) => assert!(said.contains(words), "{said}"),
            Judgement::Within => panic!("{lost:?} is missing: {words}"),
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
            assert_eq!(lost(asked, fetched).judge(&(50..100)), Judgement::Within);
        }
    }
}
