//! How many records a call gets: enough that what a call costs besides its records hardly matters, and no more.
//!
//! ```text
//!  elapsed = fixed + records × each        learned from the calls, the last ones count most
//!  fixed is a transaction, a round trip or the longest of overlapping waits
//!  duration aimed at = 10 × fixed, at least 2 ms, at most 200 ms ─► records = (duration − fixed) / each
//! ```
//!
//! Sized by the time per record alone, a call with a fixed cost would get fewer and fewer records: the smaller it is, the dearer
//! each of them seems.

/// Duration that calls without a fixed cost aim at, in microseconds.
const SHORT_CALL_US: f64 = 2_000.0;
/// What a call aims at in multiples of its fixed cost: 10 means that nine tenths of it are its records'.
const FIXED_COSTS: f64 = 10.0;
/// Longest duration aimed at, in microseconds, unless the fixed cost is half of it already.
const LONG_CALL_US: f64 = 200_000.0;
/// Of so many slow calls of one record, one gets two.
const CALLS_PER_TRIAL: u32 = 8;
/// Weight of what was learned before, at each call.
const MEMORY: f64 = 0.9;
/// Maximum number of records per call. Cheap handlers need this many to amortize a wake-up: 512 halved the throughput.
pub(crate) const MAX_BATCH: u32 = 4096;
/// As [`MAX_BATCH`], of a handler that waits for many records at a time.
const MAX_OVERLAPPING: u32 = 4 * MAX_BATCH;

/// What a handler says about its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// Records that it handles at a time.
    pub(crate) concurrency: u32,
    /// Maximum number of records that it wishes for.
    pub(crate) wish: u32,
    /// Timeout of a whole call in microseconds; 0 means none.
    pub(crate) timeout_us: u64,
    /// Records that one call may have of those that its handler may have in flight, so that they suffice for every worker.
    pub(crate) share: u32,
}

impl Declared {
    fn max_batch(self) -> u32 {
        let most = match self.concurrency {
            0 | 1 => MAX_BATCH,
            _ => MAX_OVERLAPPING,
        };
        most.min(self.wish)
    }
}

/// Learns from calls how many records the next one gets.
#[derive(Debug)]
pub(crate) struct CallSize {
    limit: u32,
    // Weighted sums over the calls: of 1, and with x = 1 / records and y = microseconds / records, of x, y, x² and x × y. A call of many
    // records weighs no more than one of few, so that what was learned before is forgotten at the same pace.
    calls: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    /// Of the duration in microseconds.
    elapsed: f64,
    /// Calls of one record since the last of several, while the costs are unknown.
    alone: u32,
}

impl CallSize {
    /// Of a handler whose first calls get so many records.
    pub(crate) fn new(first: u32) -> Self {
        Self {
            limit: first.clamp(1, MAX_BATCH),
            calls: 0.0,
            x: 0.0,
            y: 0.0,
            xx: 0.0,
            xy: 0.0,
            elapsed: 0.0,
            alone: 0,
        }
    }

    /// Maximum number of records of the next call.
    pub(crate) fn limit(&self, declared: Declared) -> u32 {
        let limit = match declared.concurrency {
            0 | 1 => self.limit,
            // While the last records of a call are waited for, others could be started.
            several => self.limit.max(several.saturating_mul(2)),
        };
        // Calls that are over at once keep no worker waiting.
        match self.elapsed > SHORT_CALL_US * self.calls {
            true => limit.min(declared.max_batch()).min(declared.share.max(1)),
            false => limit.min(declared.max_batch()),
        }
    }

    /// A call of so many records took so long. Returns whether calls get twice as many from now on.
    pub(crate) fn learn(&mut self, records: u32, elapsed_us: u64, declared: Declared) -> bool {
        if records == 0 {
            return false;
        }
        let before = self.limit;
        let (n, us) = (f64::from(records), elapsed_us as f64);
        let (x, y) = (1.0 / n, us / n);
        self.calls = self.calls * MEMORY + 1.0;
        self.x = self.x * MEMORY + x;
        self.y = self.y * MEMORY + y;
        self.xx = self.xx * MEMORY + x * x;
        self.xy = self.xy * MEMORY + x * y;
        self.elapsed = self.elapsed * MEMORY + us;
        let wanted = self.wanted(declared);
        // Growth is limited to doubling, so that one outlier does not send hundreds of slow records to one worker.
        let most = self.limit.saturating_mul(2).min(declared.max_batch());
        self.limit = (wanted as u32).clamp(1, most);
        // Two instead of one, tried again and again for a slow handler, is not worth filling all batches again.
        self.limit > 2 && self.limit >= 2 * before
    }

    fn wanted(&mut self, declared: Declared) -> f64 {
        let timeout = match declared.timeout_us {
            0 => f64::INFINITY,
            timeout_us => timeout_us as f64,
        };
        // A call that is a few times slower than usual must not be abandoned.
        let longest = timeout / 4.0;
        let Some((fixed, each)) = self.costs() else {
            let duration = self.elapsed / self.calls;
            if self.limit == 1 && duration <= longest {
                // Single records do not tell whether it is the call or the record that takes so long.
                self.alone += 1;
                if self.alone >= CALLS_PER_TRIAL {
                    self.alone = 0;
                    return 2.0;
                }
            }
            return match 2.0 * duration > LONG_CALL_US.min(longest) {
                true => f64::from(self.limit) / 2.0,
                // What larger calls cost is found out by one of them.
                false => 2.0 * f64::from(self.limit),
            };
        };
        // Of a call that takes so long anyway, a few records more hardly matter.
        let longest = longest.max((fixed + timeout / 16.0).min(timeout / 2.0));
        let at_most = LONG_CALL_US.max(2.0 * fixed).min(longest);
        let duration = (FIXED_COSTS * fixed).max(SHORT_CALL_US).min(at_most);
        (duration - fixed).max(0.0) / each
    }

    /// The fixed cost of a call, and that of each record, in microseconds: the line y = each + fixed × x that is closest to the calls. `None`
    /// if they all had about the same number of records.
    fn costs(&self) -> Option<(f64, f64)> {
        let (x, y) = (self.x / self.calls, self.y / self.calls);
        let spread = self.xx / self.calls - x * x;
        if spread < 0.01 * x * x {
            return None;
        }
        let fixed = ((self.xy / self.calls - x * y) / spread).max(0.0);
        let least = (y / 1_000.0).max(f64::MIN_POSITIVE);
        let each = (y - fixed * x).max(least);
        // What is not the records' is the call's.
        Some(((y - each).max(0.0) / x, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Declared = Declared {
        concurrency: 1,
        wish: u32::MAX,
        timeout_us: 0,
        share: u32::MAX,
    };

    /// Runs full calls, of which each takes `cost`; the last limit, and the records of all calls per second and worker.
    fn run(declared: Declared, cost: impl Fn(u32) -> u64) -> (u32, f64) {
        let mut size = CallSize::new(1);
        let (mut records, mut elapsed) = (0, 0);
        for call in 0..300 {
            let n = size.limit(declared);
            let us = cost(n);
            size.learn(n, us, declared);
            if call >= 100 {
                (records, elapsed) = (records + u64::from(n), elapsed + us);
            }
        }
        (size.limit(declared), records as f64 * 1e6 / elapsed as f64)
    }

    #[test]
    fn calls_with_a_fixed_cost_grow_until_it_hardly_matters() {
        for (fixed_us, each_us) in [(5_000, 20), (3_000, 5), (20_000, 100), (2_000, 1_000)] {
            let (limit, rate) = run(PLAIN, |n| fixed_us + each_us * u64::from(n));
            let ideal = 1e6 / each_us as f64;
            let of_all = (fixed_us + each_us * u64::from(MAX_BATCH)) as f64;
            let possible = f64::from(MAX_BATCH) * 1e6 / of_all;
            assert!(
                rate > 0.85 * ideal.min(possible),
                "{fixed_us} {each_us}: {limit}, {rate}"
            );
            let duration_us = fixed_us + each_us * u64::from(limit);
            assert!(
                duration_us <= 210_000,
                "{fixed_us} {each_us}: {duration_us} µs"
            );
        }
    }

    #[test]
    fn a_fixed_cost_of_any_size_is_found() {
        for fixed_ms in [99_u64, 101, 120, 150, 300, 1_000, 1_200] {
            let declared = Declared {
                timeout_us: 5_000_000,
                ..PLAIN
            };
            let cost = |n: u32| fixed_ms * 1_000 + 1_000 * u64::from(n);
            let (limit, rate) = run(declared, cost);
            let half = 1e6 / 2_000.0;
            let alone = 1e3 / (fixed_ms as f64 + 1.0);
            let least = match fixed_ms {
                // Limited by the timeout.
                1_000.. => 100.0 * alone,
                _ => half * 0.9,
            };
            assert!(rate > least, "{fixed_ms} ms: {limit}, {rate}");
            assert!(cost(limit) <= 2_500_000, "{fixed_ms} ms: {limit}");
        }
        // Where there is none, hardly a call has more than one record.
        let (_, rate) = run(PLAIN, |n| 2_000_000 * u64::from(n));
        assert!((rate - 0.5).abs() < 0.01, "{rate}");
    }

    #[test]
    fn calls_without_a_fixed_cost_are_short() {
        for (each_ns, expected) in [
            (200, MAX_BATCH),
            (20_000, 100),
            (1_000_000, 2),
            (2_000_000_000, 1),
        ] {
            let (limit, _) = run(PLAIN, |n| (5 + each_ns * u64::from(n) / 1_000).max(1));
            let around = expected - expected / 4..=expected.max(expected + expected / 4).max(2);
            assert!(
                around.contains(&limit),
                "{each_ns} ns: {limit}, not {expected}"
            );
        }
    }

    #[test]
    fn the_first_calls_of_a_slow_handler_leave_records_to_other_workers() {
        let mut size = CallSize::new(1);
        assert_eq!(size.limit(PLAIN), 1);
        size.learn(1, 2_000_000, PLAIN);
        assert_eq!(size.limit(PLAIN), 1);
        // And those of a cheap one are soon large.
        let mut size = CallSize::new(1);
        for _ in 0..12 {
            let n = size.limit(PLAIN);
            size.learn(n, 1 + u64::from(n) / 10, PLAIN);
        }
        assert_eq!(size.limit(PLAIN), MAX_BATCH);
    }

    #[test]
    fn overlapping_records_get_at_least_twice_as_many_as_run_at_a_time() {
        for (concurrency, wait_us) in [(64, 20_000_u64), (256, 1_000), (4_096, 1_000), (8, 100)] {
            let declared = Declared {
                concurrency,
                ..PLAIN
            };
            // As many as the concurrency wait at a time, and all are started again as they end.
            let cost = |n: u32| wait_us * u64::from(n.div_ceil(concurrency));
            let (limit, rate) = run(declared, cost);
            assert!(limit >= 2 * concurrency, "{limit}");
            let ideal = f64::from(concurrency) * 1e6 / wait_us as f64;
            assert!(
                rate >= 0.9 * ideal,
                "{concurrency} × {wait_us} µs: {rate} of {ideal}"
            );
        }
    }

    #[test]
    fn a_call_that_takes_time_gets_no_more_than_its_share() {
        let declared = Declared {
            share: 100,
            ..PLAIN
        };
        let (limit, _) = run(declared, |n| 5_000 + 20 * u64::from(n));
        assert_eq!(limit, 100);
        // One that is over before another worker has begun gets more.
        let (limit, _) = run(declared, |n| 5 + u64::from(n) / 10);
        assert_eq!(limit, MAX_BATCH);
    }

    #[test]
    fn a_call_gets_no_more_than_its_handler_wishes_for() {
        for (wish, concurrency) in [(1, 1), (50, 1), (50, 64)] {
            let declared = Declared {
                wish,
                concurrency,
                ..PLAIN
            };
            let (limit, _) = run(declared, |n| 1 + u64::from(n) / 10);
            assert_eq!(limit, wish, "{concurrency}");
            let (limit, _) = run(declared, |n| 20_000 + u64::from(n));
            assert_eq!(limit, wish, "{concurrency}, with a fixed cost");
        }
    }

    #[test]
    fn a_call_stays_well_within_its_timeout() {
        let declared = Declared {
            timeout_us: 400_000,
            ..PLAIN
        };
        let cost = |n: u32| 60_000 + 50 * u64::from(n);
        let (limit, _) = run(declared, cost);
        assert!(cost(limit) <= 100_000, "{limit}");
        // A fixed cost beyond that leaves single records.
        let (limit, _) = run(declared, |n| 300_000 + 50 * u64::from(n));
        assert_eq!(limit, 1);
    }

    #[test]
    fn noise_and_partial_calls_do_not_shrink_calls_to_nothing() {
        let mut size = CallSize::new(1);
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let mut limits = Vec::new();
        for _ in 0..2_000 {
            let n = 1 + random(u64::from(size.limit(PLAIN))) as u32;
            let us = (5_000 + 20 * u64::from(n)) * (80 + random(41)) / 100;
            size.learn(n, us, PLAIN);
            limits.push(size.limit(PLAIN));
        }
        let small = limits[200..].iter().filter(|limit| **limit < 200).count();
        assert!(small < 100, "{small} of {}", limits.len());
    }

    #[test]
    fn a_handler_that_becomes_slow_gets_fewer_records_soon() {
        let mut size = CallSize::new(1);
        for _ in 0..50 {
            let n = size.limit(PLAIN);
            size.learn(n, 1 + u64::from(n) / 10, PLAIN);
        }
        for _ in 0..60 {
            let n = size.limit(PLAIN);
            size.learn(n, 10_000 * u64::from(n), PLAIN);
        }
        assert!(size.limit(PLAIN) <= 8, "{}", size.limit(PLAIN));
    }
}
