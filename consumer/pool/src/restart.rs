//! Restart backoff and circuit breaker of a handler's instances. Pure; time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Delay after the second failure in a row (the first rebuild is immediate); doubled from there on.
const INITIAL_DELAY: Duration = Duration::from_millis(10);
/// Upper bound of the delay after an instance has failed.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Upper bound of the delay after an instance could not be built: what it needs is away, and each attempt may wait for it.
const MAX_CREATION_DELAY: Duration = Duration::from_secs(30);

/// When a handler whose instances keep failing is tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Failures tolerated within the window without an acknowledged record in between; one more trips the handler.
    pub max_restarts: u32,
    /// Length of the window.
    pub restart_window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 10,
            restart_window: Duration::from_secs(60),
        }
    }
}

/// How an instance failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It panicked, or broke the contract: too many of these trip the handler.
    Poisoned,
    /// What it needs is away, so that it could not be built or is of no use. An outage must not trip the handler, however long it lasts.
    Unavailable,
}

/// Reaction to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    /// Rebuild the instance after this delay.
    Rebuild(Duration),
    /// Trip the handler: no rebuild until a reset.
    Trip,
}

/// Instance failures of one handler since its last acknowledged or dropped record.
#[derive(Debug, Default)]
pub(crate) struct RestartBackoff {
    failures: VecDeque<Instant>,
    streak: u32,
}

impl RestartBackoff {
    /// Clears the failures after an acknowledged or dropped record, so that a poison record among good ones never trips the
    /// handler.
    pub(crate) fn clear(&mut self) {
        self.failures.clear();
        self.streak = 0;
    }

    /// Records a failure.
    pub(crate) fn record_failure(
        &mut self,
        failure: Failure,
        now: Instant,
        policy: &RestartPolicy,
    ) -> AfterFailure {
        let max_delay = match failure {
            Failure::Poisoned => MAX_DELAY,
            Failure::Unavailable => MAX_CREATION_DELAY,
        };
        while self
            .failures
            .front()
            .is_some_and(|&first| now.duration_since(first) > policy.restart_window)
        {
            self.failures.pop_front();
        }
        if failure == Failure::Poisoned {
            self.failures.push_back(now);
        }
        self.streak = self.streak.saturating_add(1);
        if self.failures.len() > policy.max_restarts as usize {
            return AfterFailure::Trip;
        }
        let doublings = match self.streak {
            1 => return AfterFailure::Rebuild(Duration::ZERO),
            streak => (streak - 2).min(16),
        };
        AfterFailure::Rebuild((INITIAL_DELAY * (1 << doublings)).min(max_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        max_restarts: 3,
        restart_window: Duration::from_secs(60),
    };

    #[test]
    fn delays_grow_and_one_failure_over_the_limit_trips() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        let seen: Vec<_> = (0..4)
            .map(|_| backoff.record_failure(Failure::Poisoned, now, &POLICY))
            .collect();
        let wait = |ms| AfterFailure::Rebuild(Duration::from_millis(ms));
        assert_eq!(seen, [wait(0), wait(10), wait(20), AfterFailure::Trip]);
    }

    #[test]
    fn an_acknowledged_record_in_between_clears_the_failures() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(
                backoff.record_failure(Failure::Poisoned, now, &POLICY),
                AfterFailure::Rebuild(Duration::ZERO)
            );
            backoff.clear();
        }
    }

    #[test]
    fn failures_outside_the_window_do_not_trip_and_delays_stay_bounded() {
        let (mut backoff, start) = (RestartBackoff::default(), Instant::now());
        for minute in 0..40u32 {
            let now = start + Duration::from_secs(61) * minute;
            let after = backoff.record_failure(Failure::Poisoned, now, &POLICY);
            let AfterFailure::Rebuild(wait) = after else {
                panic!("tripped by failures a minute apart");
            };
            assert!(wait <= MAX_DELAY);
        }
    }

    #[test]
    fn creations_that_fail_never_trip_and_their_delay_grows_to_half_a_minute() {
        let (mut backoff, now) = (RestartBackoff::default(), Instant::now());
        let mut fails = |failure| backoff.record_failure(failure, now, &POLICY);
        let delays: Vec<_> = (0..1_000).map(|_| fails(Failure::Unavailable)).collect();
        let wait = |ms| AfterFailure::Rebuild(Duration::from_millis(ms));
        assert_eq!(delays[..4], [wait(0), wait(10), wait(20), wait(40)]);
        assert_eq!(delays.last(), Some(&wait(30_000)));
        // What panics still counts.
        let after: Vec<_> = (0..4).map(|_| fails(Failure::Poisoned)).collect();
        assert_eq!(after[2..], [wait(5_000), AfterFailure::Trip]);
    }
}
