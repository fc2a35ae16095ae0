//! Retry policy: the delay before the next attempt, and the attempt limit.

use std::time::Duration;

/// A spec's `retry`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Maximum calls per record, including the first; after the last one the record goes to the dead-letter topic.
    pub max_attempts: u32,
    /// Delay after the first failed attempt.
    pub delay: Duration,
    /// Factor from one delay to the next.
    pub multiplier: f64,
    /// Upper bound of a delay, before jitter.
    pub max_delay: Duration,
    /// Fraction of the delay, 0 to 1, by which it is randomly lengthened or shortened.
    pub jitter: f64,
}

impl RetryPolicy {
    /// Delay in milliseconds after attempt number `attempt` (counted from 1). `random` is uniform in 0..1.
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
