//! Jitter for timers, so that a fleet of processes does not act in lockstep.

use std::time::Duration;

/// Exponential backoff with full jitter: a random share of a delay that starts at `first`, doubles with each consecutive
/// failure (`failures` counts from 1) and is capped at `longest`.
pub fn backoff(first: Duration, longest: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let most = first.saturating_mul(1 << doublings).min(longest);
    most.mul_f64(fastrand::f64())
}

/// `span` ± 20 %.
pub fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_cap_and_spreads_over_the_whole_range() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        for (failures, most) in [
            (1, 100),
            (2, 200),
            (6, 3_200),
            (7, 5_000),
            (u32::MAX, 5_000),
        ] {
            let most = Duration::from_millis(most);
            let waits: Vec<Duration> = (0..200)
                .map(|_| backoff(first, longest, failures))
                .collect();
            assert!(waits.iter().all(|wait| *wait <= most), "{failures}");
            assert!(
                waits.iter().any(|wait| *wait > most.mul_f64(0.8)),
                "{failures}"
            );
            assert!(
                waits.iter().any(|wait| *wait < most.mul_f64(0.2)),
                "{failures}"
            );
        }
    }

    #[test]
    fn jittered_stays_within_a_fifth() {
        let span = Duration::from_secs(30);
        for _ in 0..200 {
            assert!((span.mul_f64(0.8)..=span.mul_f64(1.2)).contains(&jittered(span)));
        }
    }
}
