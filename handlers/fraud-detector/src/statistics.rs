//! Running mean and variance of a key's values (Welford's algorithm), and a bounded map of keys.

use std::collections::HashMap;

/// Count, mean and variance of the values so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Statistics {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Statistics {
    fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// How many values.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Their mean.
    pub(crate) fn mean(&self) -> f64 {
        self.mean
    }

    /// Their sample standard deviation; 0 below two values.
    pub(crate) fn standard_deviation(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        (self.squares / (self.count - 1) as f64).sqrt()
    }
}

#[derive(Clone, Copy, Debug)]
struct Key {
    /// Without the last record.
    before: Statistics,
    now: Statistics,
    last_offset: i64,
}

/// The keys of a partition in two generations: recently used keys, and keys unused since `young` was last started, which
/// are evicted together.
#[derive(Debug)]
pub(crate) struct Keys {
    young: HashMap<Box<[u8]>, Key>,
    old: HashMap<Box<[u8]>, Key>,
    max: usize,
}

impl Keys {
    /// Remembers at least the last `max` keys, and at most twice as many.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            max,
        }
    }

    /// Changes the bound; excess keys are evicted as new ones arrive.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Adds a key's value once per offset, and returns the statistics before that offset.
    pub(crate) fn see(&mut self, name: &[u8], offset: i64, value: f64) -> Statistics {
        if !self.young.contains_key(name) {
            let key = self.old.remove(name).unwrap_or(Key {
                before: Statistics::default(),
                now: Statistics::default(),
                last_offset: -1,
            });
            if self.young.len() >= self.max {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(name.into(), key);
        }
        let Some(key) = self.young.get_mut(name) else {
            return Statistics::default();
        };
        if offset > key.last_offset {
            key.before = key.now;
            key.now.add(value);
            key.last_offset = offset;
        }
        key.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_figures_equal_those_of_two_passes() {
        let values = [10.0, 12.5, 9.0, 40.0, -3.0, 1e6];
        let mut running = Statistics::default();
        values.iter().for_each(|&value| running.add(value));
        let mean = values.iter().sum::<f64>() / 6.0;
        let variance = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / 5.0;
        assert!((running.mean() - mean).abs() < 1e-6);
        assert!((running.standard_deviation() - variance.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn a_redelivered_record_counts_once() {
        let mut keys = Keys::new(10);
        keys.see(b"k", 1, 5.0);
        let first = keys.see(b"k", 2, 7.0);
        assert_eq!(keys.see(b"k", 2, 7.0), first);
        assert_eq!(keys.see(b"k", 3, 7.0).count(), 2);
    }

    #[test]
    fn memory_is_bounded_and_recently_used_keys_are_kept() {
        let mut keys = Keys::new(4);
        for offset in 0..100 {
            keys.see(b"used", offset * 2, 1.0);
            keys.see(format!("k{offset}").as_bytes(), offset * 2 + 1, 1.0);
            assert!(keys.young.len() + keys.old.len() <= 8);
        }
        assert_eq!(keys.see(b"used", 1000, 1.0).count(), 100);
        assert_eq!(keys.see(b"k0", 1001, 1.0).count(), 0);
    }
}
