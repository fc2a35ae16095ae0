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
    mut condition: impl FnMut() -> bool,
    seen: impl FnOnce() -> String,
) {
    let end = Instant::now() + deadline;
    while !condition() {
        if Instant::now() >= end {
            panic!("waited {deadline:?}: {}", seen());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
