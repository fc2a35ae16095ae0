//! A clock for loops that also wait for orders: it goes on whatever comes in between. A timeout that begins anew with each
//! order would never end while orders come often.

use std::time::{Duration, Instant};

/// Says when something is due again.
pub(super) struct Every {
    next: Instant,
}

impl Every {
    /// Due after `period` for the first time.
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self { next: now + period }
    }

    /// How long until it is due.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Whether it is due; if so, it is again after `period`.
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
    fn it_is_due_in_time_however_often_it_is_asked() {
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
