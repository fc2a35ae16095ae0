//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// Time between two polls: short, since what is awaited happens in this process or on this machine.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Polls until `condition` holds.
///
/// # Panics
/// After `deadline`, with `seen`, which is built only then.
#[track_caller]
pub fn wait_until(
    deadline: Duration,
    condition: impl FnMut() -> bool,
    seen: impl FnOnce() -> String,
) {
    wait_for(deadline, condition, |holds| *holds, |_| seen());
}

/// Reads until the value `fits`, and returns it.
///
/// # Panics
/// After `deadline`, with `seen` of the value that was judged last: another reading could show a value that fits.
#[track_caller]
pub fn wait_for<T>(
    deadline: Duration,
    mut read: impl FnMut() -> T,
    fits: impl Fn(&T) -> bool,
    seen: impl FnOnce(&T) -> String,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        let value = read();
        if fits(&value) {
            return value;
        }
        if Instant::now() >= end {
            panic!("waited {deadline:?}: {}", seen(&value));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Checks that a condition holds throughout `span`: for things that must not happen.
///
/// # Panics
/// As `check` does.
#[track_caller]
pub fn stays(span: Duration, mut check: impl FnMut()) {
    let end = Instant::now() + span;
    loop {
        check();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(POLL_INTERVAL.min(left));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_wait_that_ends_in_vain_shows_the_value_that_was_judged_last() {
        let judged = Cell::new(0);
        let mut readings = 0;
        let read = || {
            readings += 1;
            readings
        };
        let fits = |value: &u32| {
            judged.set(*value);
            false
        };
        let wait = || wait_for(Duration::from_millis(20), read, fits, u32::to_string);
        let panicked = catch_unwind(AssertUnwindSafe(wait)).expect_err("nothing fits");
        let text = panicked.downcast_ref::<String>().expect("a message");
        assert_eq!(*text, format!("waited 20ms: {}", judged.get()));
    }
}
