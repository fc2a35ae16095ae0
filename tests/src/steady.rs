//! Numbers at a steady rate, and records that are written by them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(feature = "client")]
use crate::client::{Client, Outgoing};

/// How much earlier than due a number may come: a wait for each of them would cost more than writing its record.
const SLACK: Duration = Duration::from_millis(5);

/// A steady rate, until it is stopped. Clones share the stop and the count.
#[derive(Clone, Debug)]
pub struct Steady {
    per_second: u64,
    least: u64,
    shared: Arc<Shared>,
}

/// Stops the numbers when it is dropped, also by a failed check.
#[derive(Debug)]
pub struct Stop(Steady);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[derive(Debug, Default)]
struct Shared {
    stopped: Mutex<bool>,
    stop: Condvar,
    made: AtomicU64,
}

impl Steady {
    /// So many numbers per second.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self {
            per_second,
            least: 0,
            shared: Arc::default(),
        }
    }

    /// A stop takes effect after so many numbers.
    #[must_use]
    pub fn at_least(self, least: u64) -> Self {
        Self { least, ..self }
    }

    /// Stops them when it is dropped.
    #[must_use]
    pub fn stops(&self) -> Stop {
        Stop(self.clone())
    }

    /// The numbers from 0, each when it is due; ends once stopped.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + Send + 'static {
        let (begun, steady) = (Instant::now(), self.clone());
        (0u64..).take_while(move |number| {
            let due = Duration::from_nanos(number * 1_000_000_000 / steady.per_second);
            let left = due.saturating_sub(begun.elapsed());
            let continues = steady.wait(*number, left);
            if continues {
                steady.shared.made.store(number + 1, Ordering::Relaxed);
            }
            continues
        })
    }

    /// Waits for the stop, at most until the number is due; `false`: it is over.
    fn wait(&self, number: u64, left: Duration) -> bool {
        let is_over = |stopped: &mut bool| *stopped && number >= self.least;
        let stopped = self.shared.stopped.lock();
        let mut stopped = stopped.unwrap_or_else(PoisonError::into_inner);
        if left < SLACK {
            return !is_over(&mut stopped);
        }
        let stop = &self.shared.stop;
        let waited = stop.wait_timeout_while(stopped, left, |stopped| !is_over(stopped));
        !is_over(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// How many numbers there have been.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.shared.made.load(Ordering::Relaxed)
    }

    /// Ends the numbers.
    pub fn stop(&self) {
        *self
            .shared
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.stop.notify_all();
    }
}

/// Records that a thread writes at a steady rate, until it is stopped or dropped.
#[cfg(feature = "client")]
pub struct Load {
    numbers: Steady,
    producer: Option<std::thread::JoinHandle<u64>>,
    _stop: Stop,
}

#[cfg(feature = "client")]
impl Load {
    /// Begins to write `record` of each number to the topic.
    #[must_use]
    pub fn start(
        client: &Client,
        topic: &str,
        numbers: Steady,
        record: impl Fn(u64) -> Outgoing + Send + 'static,
    ) -> Self {
        let (client, topic) = (client.clone(), topic.to_owned());
        let records = numbers.numbers().map(record);
        Self {
            producer: Some(std::thread::spawn(move || client.produce(&topic, records))),
            _stop: numbers.stops(),
            numbers,
        }
    }

    /// How many numbers there have been.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.numbers.made()
    }

    /// Stops it and returns the number of records, all of which are written.
    ///
    /// # Panics
    /// If they cannot be written, or it has ended before.
    pub fn end(&mut self) -> u64 {
        self.numbers.stop();
        let producer = self.producer.take().expect("it has not ended");
        producer.join().expect("the records are produced")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_rate_and_end_when_stopped() {
        let steady = Steady::new(1_000);
        let begun = Instant::now();
        let mut numbers = steady.numbers();
        assert_eq!(numbers.by_ref().take(101).last(), Some(100));
        assert!(begun.elapsed() >= Duration::from_millis(100) - SLACK);
        assert_eq!(steady.made(), 101);
        // The next one of a slow rate is due in a quarter of an hour.
        let slow = Steady::new(1);
        let mut numbers = slow.numbers().skip(1).step_by(900);
        let waiting = std::thread::spawn(move || numbers.nth(1));
        drop(slow.stops());
        assert_eq!(waiting.join().expect("it ends"), None);
        let some = Steady::new(1_000).at_least(3);
        some.stop();
        assert_eq!(some.numbers().count(), 3);
    }
}
