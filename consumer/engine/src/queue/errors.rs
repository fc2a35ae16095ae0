//! A handler's errors: the last one, and whether every attempt fails.

use std::sync::Arc;

use crate::clock::WallClock;
use crate::status::{LastError, ProblemKind, ServiceProblem};

/// How long every attempt must have failed before that is a problem of its own, in milliseconds. A dependency that restarts
/// is back within it.
const FAILING_MS: u64 = 30_000;
/// Number of attempts that must have failed by then.
const FAILING_ATTEMPTS: u64 = 10;
/// The problem lapses if no further attempt fails for this long, in milliseconds: nothing is known about the handler then.
const LAPSE_MS: u64 = 300_000;

/// Failed attempts since the last one that succeeded.
struct Failing {
    since_ms: u64,
    last_ms: u64,
    attempts: u64,
}

/// Errors of a handler's records. Times are on the flow's clock.
#[derive(Default)]
pub(super) struct HandlerErrors {
    last: Option<(u64, Arc<str>)>,
    failing: Option<Failing>,
}

impl HandlerErrors {
    /// Records an error that says nothing about the handler's code, such as a refused emit.
    pub(super) fn record(&mut self, reason: Arc<str>, now_ms: u64) {
        self.last = Some((now_ms, reason));
    }

    /// An attempt has failed.
    pub(super) fn attempt_failed(&mut self, reason: Arc<str>, now_ms: u64) {
        self.record(reason, now_ms);
        let failing = self.failing.get_or_insert(Failing {
            since_ms: now_ms,
            last_ms: now_ms,
            attempts: 0,
        });
        failing.last_ms = now_ms;
        failing.attempts += 1;
    }

    /// An attempt has succeeded, or the handler is another one from now on.
    #[inline]
    pub(super) fn succeeded(&mut self) {
        self.failing = None;
    }

    pub(super) fn last(&self, clock: WallClock) -> Option<LastError> {
        let (at_ms, reason) = self.last.as_ref()?;
        Some(LastError {
            at_ms: clock.at(*at_ms),
            message: reason.to_string(),
        })
    }

    /// The problem that every attempt fails. Its cause does not quote the errors: problems are logged, and an error's text may
    /// contain a record's value.
    pub(super) fn problem(
        &self,
        handler: &str,
        clock: WallClock,
        now_ms: u64,
    ) -> Option<ServiceProblem> {
        let failing = self.failing.as_ref()?;
        let lasts = failing.last_ms.saturating_sub(failing.since_ms) >= FAILING_MS;
        let lapsed = now_ms.saturating_sub(failing.last_ms) >= LAPSE_MS;
        let is_problem = lasts && !lapsed && failing.attempts >= FAILING_ATTEMPTS;
        is_problem.then(|| ServiceProblem {
            kind: ProblemKind::AttemptsFailing,
            what: format!("every attempt of handler `{handler}` fails"),
            since_ms: clock.at(failing.since_ms),
            count: failing.attempts,
            cause: "the handler returns errors".to_owned(),
            remedy: format!(
                "`sluicegate handlers show {handler}` prints the last error: repair the handler or what it depends on"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: WallClock = WallClock { epoch_ms: 1_000 };

    fn failing(attempts: u64, over_ms: u64) -> HandlerErrors {
        let mut errors = HandlerErrors::default();
        for i in 0..attempts {
            errors.attempt_failed("boom".into(), i * over_ms / (attempts - 1));
        }
        errors
    }

    #[test]
    fn failing_attempts_are_a_problem_once_they_last_and_until_nothing_is_known() {
        for (attempts, over_ms, now_ms, is_problem) in [
            (FAILING_ATTEMPTS, FAILING_MS, FAILING_MS, true),
            (FAILING_ATTEMPTS - 1, FAILING_MS, FAILING_MS, false),
            (FAILING_ATTEMPTS, FAILING_MS - 1, FAILING_MS, false),
            (
                FAILING_ATTEMPTS,
                FAILING_MS,
                FAILING_MS + LAPSE_MS - 1,
                true,
            ),
            (FAILING_ATTEMPTS, FAILING_MS, FAILING_MS + LAPSE_MS, false),
        ] {
            let problem = failing(attempts, over_ms).problem("h", CLOCK, now_ms);
            let told = problem.map(|one| (one.kind, one.since_ms, one.count));
            let wanted = (ProblemKind::AttemptsFailing, 1_000, attempts);
            assert_eq!(told, is_problem.then_some(wanted), "{attempts} {over_ms}");
        }
    }

    #[test]
    fn a_success_ends_the_problem_and_keeps_the_last_error() {
        let mut errors = failing(FAILING_ATTEMPTS, FAILING_MS);
        errors.succeeded();
        assert_eq!(errors.problem("h", CLOCK, FAILING_MS), None);
        let last = errors.last(CLOCK).expect("an error");
        assert_eq!((last.at_ms, &*last.message), (31_000, "boom"));
    }
}
