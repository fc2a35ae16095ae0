//! How long a failed attempt waits for the next one, and when it is the last.

use std::time::Duration;

/// A spec's `retry`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Calls for one record, the first included; after the last one it is given up.
    pub max_attempts: u32,
    /// Delay after the first attempt.
    pub delay: Duration,
    /// Each delay is this times the one before.
    pub multiplier: f64,
    /// No delay is longer.
    pub max_delay: Duration,
    /// Share of the delay by which it is randomly lengthened or shortened, 0 to 1.
    pub jitter: f64,
}

impl RetryPolicy {
    /// Milliseconds to wait after attempt number `attempt` (from 1). `random` is uniform in 0..1.
    pub fn delay_ms(&self, attempt: u32, random: f64) -> u64 {
        let exponent = attempt.saturating_sub(1).min(64) as i32;
        let base = self.delay.as_secs_f64() * self.multiplier.powi(exponent);
        let bounded = base.min(self.max_delay.as_secs_f64());
        let jittered = bounded * (1.0 + self.jitter * (2.0 * random - 1.0));
        (jittered * 1_000.0).round().max(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_jitter_stays_within_its_share() {
        let policy = RetryPolicy {
            max_attempts: 5,
            delay: Duration::from_millis(100),
            multiplier: 2.0,
            max_delay: Duration::from_millis(350),
            jitter: 0.2,
        };
        assert_eq!(
            [1, 2, 3, 60].map(|attempt| policy.delay_ms(attempt, 0.5)),
            [100, 200, 350, 350]
        );
        assert_eq!(policy.delay_ms(1, 0.0), 80);
        assert_eq!(policy.delay_ms(1, 1.0), 120);
    }
}
