//! Failures kept as state (cause, remedy, start time, count), a rate limit for the log lines about them, and the text of a panic.

use std::any::Any;
use std::sync::Arc;

use crate::clock::WallClock;
use crate::status::{ProblemKind, ServiceProblem};

/// Minimum interval between two log lines of one [`LogLimit`].
const LOG_INTERVAL_MS: u64 = 60_000;

/// Why something makes no progress. Kept until a success clears it; times are on the flow's clock, in milliseconds.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Cause of the last failure.
    pub cause: Arc<str>,
    /// What the operator can do about it.
    pub remedy: Arc<str>,
    /// Time of the first failure.
    pub since_ms: u64,
    /// Time of the last failure.
    pub last_ms: u64,
    /// Number of failures.
    pub count: u64,
}

impl Trouble {
    /// A first failure at `now_ms`.
    pub fn new(cause: &str, remedy: &str, now_ms: u64) -> Self {
        Self {
            cause: cause.into(),
            remedy: remedy.into(),
            since_ms: now_ms,
            last_ms: now_ms,
            count: 1,
        }
    }

    /// Counts another failure. Returns whether its cause or remedy differs from the last one.
    pub fn again(&mut self, cause: &str, remedy: &str, now_ms: u64) -> bool {
        self.count += 1;
        self.last_ms = now_ms;
        if *self.cause == *cause && *self.remedy == *remedy {
            return false;
        }
        self.cause = cause.into();
        self.remedy = remedy.into();
        true
    }

    /// Records a failure in `place`. Returns whether it is the first one or has another cause, that is, whether to log it.
    pub fn record(place: &mut Option<Self>, cause: &str, remedy: &str, now_ms: u64) -> bool {
        match place {
            Some(known) => known.again(cause, remedy, now_ms),
            None => {
                *place = Some(Self::new(cause, remedy, now_ms));
                true
            }
        }
    }

    /// The entry for the list of problems.
    pub fn problem(&self, kind: ProblemKind, what: String, clock: WallClock) -> ServiceProblem {
        ServiceProblem {
            kind,
            what,
            since_ms: clock.at(self.since_ms),
            count: self.count,
            cause: self.cause.to_string(),
            remedy: self.remedy.to_string(),
        }
    }
}

/// Limits equal log lines to the first one, then one per minute. Outlives the failure that it is about, so that an
/// intermittent failure is limited too.
#[derive(Clone, Debug, Default)]
pub struct LogLimit {
    logged_ms: Option<u64>,
    unlogged: u64,
}

impl LogLimit {
    /// Counts one occurrence. `Some(n)`: write a line now; it stands for `n` occurrences, including this one.
    pub fn count(&mut self, now_ms: u64) -> Option<u64> {
        self.unlogged += 1;
        let due = |last_ms: u64| now_ms.saturating_sub(last_ms) >= LOG_INTERVAL_MS;
        if !self.logged_ms.is_none_or(due) {
            return None;
        }
        self.logged_ms = Some(now_ms);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// The text of a panic's payload.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_immediate_then_one_per_minute_with_the_count() {
        let mut limit = LogLimit::default();
        let lines: Vec<(u64, u64)> = (0..=180)
            .filter_map(|second| Some((second, limit.count(second * 1_000)?)))
            .collect();
        assert_eq!(lines, [(0, 1), (60, 60), (120, 60), (180, 60)]);
    }

    #[test]
    fn trouble_keeps_its_start_and_counts_across_causes() {
        let mut place = None;
        assert!(Trouble::record(&mut place, "a", "r", 10));
        assert!(!Trouble::record(&mut place, "a", "r", 20));
        assert!(Trouble::record(&mut place, "b", "r", 30));
        let trouble = place.expect("it was noted");
        assert_eq!(
            (trouble.since_ms, trouble.last_ms, trouble.count),
            (10, 30, 3)
        );
        assert_eq!(&*trouble.cause, "b");
    }
}
