//! How often instances may die: when the next one is built, and when a handler is tripped. Pure; time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// First wait after an immediate rebuild that died as well.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// When a handler whose instances keep dying is tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Deaths within the window, none of them followed by an acknowledged record, that are borne: one more trips the handler.
    pub max_restarts: u32,
    /// The window.
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

/// What follows a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDeath {
    /// Build another instance, not before this much time has passed.
    Rebuild(Duration),
    /// Build no more.
    Trip,
}

/// The deaths of one handler's instances since it last did good work.
#[derive(Debug, Default)]
pub struct Restarts {
    deaths: VecDeque<Instant>,
    streak: u32,
}

impl Restarts {
    /// Whether there is a death to forget.
    pub fn any(&self) -> bool {
        self.streak > 0
    }

    /// A record was settled well: one poison record among good ones never trips a handler.
    pub fn worked(&mut self) {
        self.deaths.clear();
        self.streak = 0;
    }

    /// An instance died, or was not built.
    pub fn died(&mut self, now: Instant, policy: &RestartPolicy) -> AfterDeath {
        while self
            .deaths
            .front()
            .is_some_and(|&first| now.duration_since(first) > policy.restart_window)
        {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        self.streak = self.streak.saturating_add(1);
        if self.deaths.len() > policy.max_restarts as usize {
            return AfterDeath::Trip;
        }
        let doublings = match self.streak {
            1 => return AfterDeath::Rebuild(Duration::ZERO),
            streak => (streak - 2).min(16),
        };
        AfterDeath::Rebuild((FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT))
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
    fn waits_grow_and_the_last_allowed_death_trips() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let seen: Vec<_> = (0..4).map(|_| restarts.died(now, &POLICY)).collect();
        let wait = |ms| AfterDeath::Rebuild(Duration::from_millis(ms));
        assert_eq!(seen, [wait(0), wait(10), wait(20), AfterDeath::Trip]);
    }

    #[test]
    fn good_work_in_between_forgets_the_deaths() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(
                restarts.died(now, &POLICY),
                AfterDeath::Rebuild(Duration::ZERO)
            );
            restarts.worked();
        }
    }

    #[test]
    fn deaths_outside_the_window_do_not_trip_but_waits_stay_bounded() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        for minute in 0..40u32 {
            let after = restarts.died(start + Duration::from_secs(61) * minute, &POLICY);
            let AfterDeath::Rebuild(wait) = after else {
                panic!("tripped by deaths a minute apart");
            };
            assert!(wait <= LONGEST_WAIT);
        }
    }
}
