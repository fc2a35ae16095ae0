//! The descriptor that ends a pump's sleep: for records, for the client's events, and for callers of [`Wake::wake`].

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};
use sluicegate_engine::source::Wake;

/// Maximum sleep: bounds the delay if a wake-up is lost after all.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// A counter that is readable while it is not zero.
#[derive(Clone)]
pub(super) struct WakeUp(Arc<OwnedFd>);

impl WakeUp {
    /// A wake-up that is already due: entries queued before the first sleep are found by the first iteration.
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(1, flags)?)))
    }

    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Sleeps until a wake-up or the timeout, then consumes the wake-up. The queues are served after this call, so an
    /// entry that arrives in between is either served or wakes the next sleep.
    pub(super) fn sleep(&self, timeout: Duration) {
        let timeout = timeout.min(MAX_SLEEP);
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut descriptors = [PollFd::new(&*self.0, PollFlags::IN)];
        // An interrupted poll is an early wake-up, which is harmless.
        let _ = poll(&mut descriptors, Some(&timeout));
        let _ = read(&*self.0, &mut [0u8; 8]);
    }
}

impl Wake for WakeUp {
    fn wake(&self) {
        // An overflow (2^64 wake-ups) leaves it readable.
        let _ = write(&*self.0, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wake_up_ends_the_next_sleep_and_only_that_one() {
        let wake = WakeUp::new().unwrap();
        let long = Duration::from_secs(1);
        let started = Instant::now();
        wake.sleep(long);
        wake.wake();
        wake.wake();
        wake.sleep(long);
        assert!(started.elapsed() < long, "both wake-ups were due");
        let started = Instant::now();
        wake.sleep(Duration::from_millis(30));
        assert!(
            started.elapsed() >= Duration::from_millis(30),
            "none is left"
        );
    }
}
