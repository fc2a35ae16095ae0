//! What stands in the way of something, as state: why, since when and how often; a bound on the lines that tell of it; and what
//! a panic says.

use std::any::Any;
use std::sync::Arc;

use crate::admin::{ProblemKind, ServiceProblem};
use crate::flow::report::WallClock;

/// Between two log lines about the same thing.
const LOG_INTERVAL_MS: u64 = 60_000;

/// Why something does not progress. It is kept until a success clears it; times are on the flow's clock, in milliseconds.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What happened last.
    pub cause: Arc<str>,
    /// What helps.
    pub remedy: Arc<str>,
    /// When it happened first.
    pub since_ms: u64,
    /// When it happened last.
    pub last_ms: u64,
    /// Times that it happened.
    pub count: u64,
}

impl Trouble {
    /// Trouble that begins now.
    pub fn new(cause: &str, remedy: &str, now_ms: u64) -> Self {
        Self {
            cause: cause.into(),
            remedy: remedy.into(),
            since_ms: now_ms,
            last_ms: now_ms,
            count: 1,
        }
    }

    /// It happened again, perhaps for another cause. `true`: it has another cause.
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

    /// Notes that it happened, for the first time or again. `true`: that is news, or it has another cause.
    pub fn note(place: &mut Option<Self>, cause: &str, remedy: &str, now_ms: u64) -> bool {
        match place {
            Some(known) => known.again(cause, remedy, now_ms),
            None => {
                *place = Some(Self::new(cause, remedy, now_ms));
                true
            }
        }
    }

    /// The entry in a list of problems.
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

/// Lets the first of many equal log lines through, and one a minute after it. It outlives the trouble that it is about, so
/// that one that comes and goes is bounded too.
#[derive(Clone, Debug, Default)]
pub struct LogLimit {
    logged_ms: Option<u64>,
    untold: u64,
}

impl LogLimit {
    /// Counts one event. `Some`: a line is due, which stands for so many events, this one included.
    pub fn count(&mut self, now_ms: u64) -> Option<u64> {
        self.untold += 1;
        let due = |last_ms: u64| now_ms.saturating_sub(last_ms) >= LOG_INTERVAL_MS;
        if !self.logged_ms.is_none_or(due) {
            return None;
        }
        self.logged_ms = Some(now_ms);
        Some(std::mem::take(&mut self.untold))
    }
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_comes_at_once_and_then_one_a_minute_with_the_number() {
        let mut limit = LogLimit::default();
        let lines: Vec<(u64, u64)> = (0..=180)
            .filter_map(|second| Some((second, limit.count(second * 1_000)?)))
            .collect();
        assert_eq!(lines, [(0, 1), (60, 60), (120, 60), (180, 60)]);
    }

    #[test]
    fn trouble_keeps_its_beginning_and_counts_whatever_its_cause_is() {
        let mut place = None;
        assert!(Trouble::note(&mut place, "a", "r", 10));
        assert!(!Trouble::note(&mut place, "a", "r", 20));
        assert!(Trouble::note(&mut place, "b", "r", 30));
        let trouble = place.expect("it was noted");
        assert_eq!(
            (trouble.since_ms, trouble.last_ms, trouble.count),
            (10, 30, 3)
        );
        assert_eq!(&*trouble.cause, "b");
    }
}
