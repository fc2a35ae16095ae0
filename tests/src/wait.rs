//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Polls `condition` until it returns a value, and returns that value.
///
/// # Panics
/// After `deadline`, with `what` and the last error of `condition`.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    condition: impl FnMut() -> Result<T, String>,
) -> T {
    match try_wait_for(deadline, condition) {
        Ok(value) => value,
        Err(last) => panic!("waited {deadline:?} for {what}; last seen: {last}"),
    }
}

/// As [`wait_for`], but returns the last error after `deadline`.
///
/// # Errors
/// The last error of `condition`, if it returned no value in time.
pub fn try_wait_for<T>(
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => return Err(last),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Fails unless `condition` holds throughout `span`: for things that must not happen.
///
/// # Panics
/// As soon as `condition` returns an error, with `what` and that error.
pub fn stays(what: &str, span: Duration, condition: impl FnMut() -> Result<(), String>) {
    stays_by_samples(what, span, POLL_INTERVAL, condition);
}

/// As [`stays`], checked once per `interval`: for checks that cost something.
///
/// # Panics
/// As [`stays`].
pub fn stays_by_samples(
    what: &str,
    span: Duration,
    interval: Duration,
    mut condition: impl FnMut() -> Result<(), String>,
) {
    let end = Instant::now() + span;
    loop {
        if let Err(broken) = condition() {
            panic!("{what} did not last {span:?}: {broken}");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(interval.min(left));
    }
}
