//! What the copies tell: which records were handled, in which order, how soon, and how long nothing was.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use e2e::client::{Client, Read};

use super::{BURST, PARTITIONS};

/// One copy, in the order of its output partition.
struct Copy {
    sent_ms: i64,
    appended_ms: i64,
}

/// The copies of one handler.
pub(crate) struct Copies {
    /// The first copy of each record.
    first: BTreeMap<u64, Copy>,
    /// Number of further copies.
    pub(crate) repeated: u64,
    /// By key: the records in the order of their last copies.
    last: BTreeMap<String, BTreeMap<i64, u64>>,
}

/// Number of a record and when it was sent.
fn origin(copy: &Read) -> (u64, i64) {
    let text = copy.text();
    let (number, sent) = text.split_once(' ').expect("a number and a time");
    (
        number.parse().expect("a number"),
        sent.parse().expect("milliseconds"),
    )
}

/// The numbers of the records of a dead-letter topic.
pub(crate) fn numbers(client: &Client, topic: &str) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    client.for_each(topic, |letter| {
        numbers.insert(origin(&letter).0);
    });
    numbers
}

impl Copies {
    pub(crate) fn read(client: &Client, topic: &str) -> Self {
        let mut copies = Self {
            first: BTreeMap::new(),
            repeated: 0,
            last: BTreeMap::new(),
        };
        // By record: where its last copy is. A key has one output partition.
        let mut last: BTreeMap<u64, (String, i64)> = BTreeMap::new();
        client.for_each(topic, |copy| {
            let (number, sent_ms) = origin(&copy);
            let known = copies.first.entry(number).or_insert_with(|| Copy {
                sent_ms,
                appended_ms: copy.timestamp_ms,
            });
            known.appended_ms = known.appended_ms.min(copy.timestamp_ms);
            let before = last.insert(number, (copy.key_text(), copy.offset));
            copies.repeated += u64::from(before.is_some());
        });
        for (number, (key, offset)) in last {
            copies.last.entry(key).or_default().insert(offset, number);
        }
        copies
    }

    /// The records below `end` that are neither copied nor in `letters`.
    pub(crate) fn missing(&self, end: u64, letters: &BTreeSet<u64>) -> Vec<u64> {
        let settled = |number: &u64| self.first.contains_key(number) || letters.contains(number);
        (0..end).filter(|number| !settled(number)).collect()
    }

    /// A key whose last copies are not in order, with the records (G4). Not those in `letters`: a later owner may have
    /// dead-lettered what an earlier one has copied.
    pub(crate) fn out_of_order(&self, letters: &BTreeSet<u64>) -> Option<String> {
        self.last.iter().find_map(|(key, copies)| {
            let copied = copies.values().copied();
            let order: Vec<u64> = copied.filter(|number| !letters.contains(number)).collect();
            let wrong = order.windows(2).find(|pair| pair[0] > pair[1])?;
            Some(format!("{key}: {} before {}", wrong[0], wrong[1]))
        })
    }

    /// The pace within a window of milliseconds since the epoch.
    pub(crate) fn pace(&self, window: &Range<i64>) -> Pace {
        let mut latencies = Vec::new();
        let mut handled = 0;
        let mut moments: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
        for (number, copy) in &self.first {
            if window.contains(&copy.appended_ms) {
                handled += 1;
                moments
                    .entry(number % PARTITIONS)
                    .or_default()
                    .push(copy.appended_ms);
            }
            if window.contains(&copy.sent_ms) {
                latencies.push((copy.appended_ms - copy.sent_ms).max(0) as u64);
            }
        }
        latencies.sort_unstable();
        let quantile = |percent: usize| {
            let at = latencies.len() * percent / 100;
            Duration::from_millis(latencies.get(at).copied().unwrap_or(u64::MAX / 2))
        };
        let gaps = (0..PARTITIONS).map(|partition| {
            let mut all = moments.remove(&partition).unwrap_or_default();
            all.extend([window.start, window.end]);
            all.sort_unstable();
            let gaps = all.windows(2).map(|pair| pair[1] - pair[0]);
            gaps.max().unwrap_or_default()
        });
        Pace {
            per_second: f64::from(handled) * 1_000.0 / (window.end - window.start) as f64,
            median: quantile(50),
            late: quantile(90),
            longest_gap: Duration::from_millis(gaps.max().unwrap_or_default() as u64),
        }
    }

    /// The median of the records per second of these bursts, from the first that was sent to the last that was handled.
    pub(crate) fn burst_pace(&self, bursts: Range<u64>) -> f64 {
        let mut rates: Vec<f64> = bursts
            .map(|index| {
                let copies = self.first.range(index * BURST..(index + 1) * BURST);
                let sent = copies.clone().map(|(_, copy)| copy.sent_ms).min();
                let handled = copies.map(|(_, copy)| copy.appended_ms).max();
                let took = handled.zip(sent).map_or(i64::MAX, |(to, from)| to - from);
                BURST as f64 * 1_000.0 / took.max(1) as f64
            })
            .collect();
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

/// How a handler kept up with its topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Records handled per second.
    pub(crate) per_second: f64,
    /// Median of the time from the write of a record to its copy.
    pub(crate) median: Duration,
    /// The 90th percentile.
    pub(crate) late: Duration,
    /// The longest time in which a partition had no copy.
    pub(crate) longest_gap: Duration,
}
