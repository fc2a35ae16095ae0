//! A periodic timer for loops that also wait for commands. A receive timeout that restarts with each command would never expire
//! while commands arrive often.

use std::time::{Duration, Instant};

/// A periodic timer.
pub(super) struct Every {
    next: Instant,
}

impl Every {
    /// Due for the first time after `period`.
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self { next: now + period }
    }

    /// Time until it is due.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Whether it is due; if so, restarts it with `period`.
    pub(super) fn take(&mut self, period: Duration, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + period;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_is_due_on_time_however_often_it_is_polled() {
        let (start, period) = (Instant::now(), Duration::from_secs(1));
        let mut every = Every::new(period, start);
        let mut times = 0;
        for tenth in 1..=100 {
            let now = start + Duration::from_millis(100) * tenth;
            assert!(every.left(now) <= period);
            times += u32::from(every.take(period, now));
        }
        assert_eq!(times, 10);
    }
}
