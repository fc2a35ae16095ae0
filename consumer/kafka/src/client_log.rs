//! Forwards librdkafka's own log lines: lines repeated by every connection attempt are logged once per minute, with
//! their number.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use rdkafka::config::RDKafkaLogLevel;
use sluicegate_engine::partition::trouble::LogLimit;

/// Maximum number of line kinds tracked; beyond it all are dropped and start again.
const MAX_KINDS: usize = 256;
/// Number of characters of a line that identify its kind.
const KIND_CHARS: usize = 160;

/// When each kind of line was last logged, for all clients of the process.
struct Lines {
    started: Instant,
    kinds: Mutex<BTreeMap<String, LogLimit>>,
}

static LINES: LazyLock<Lines> = LazyLock::new(|| Lines {
    started: Instant::now(),
    kinds: Mutex::default(),
});

/// A line without its numbers: ports, durations and counts differ between attempts.
fn kind_of(facility: &str, text: &str) -> String {
    let text = text.split(" (after ").next().unwrap_or(text);
    let words = text
        .chars()
        .filter(|c| !c.is_ascii_digit())
        .take(KIND_CHARS);
    format!("{facility} {}", words.collect::<String>())
}

fn count(kinds: &mut BTreeMap<String, LogLimit>, kind: String, now_ms: u64) -> Option<u64> {
    if kinds.len() >= MAX_KINDS && !kinds.contains_key(&kind) {
        kinds.clear();
    }
    kinds.entry(kind).or_default().count(now_ms)
}

/// Forwards a line of librdkafka's log.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    use RDKafkaLogLevel as Level;
    match level {
        Level::Notice | Level::Info => {
            tracing::info!(target: "librdkafka", facility, "{text}");
            return;
        }
        Level::Debug => {
            tracing::debug!(target: "librdkafka", facility, "{text}");
            return;
        }
        // The client's error callback reports a failed connection with the same text.
        Level::Error if facility == "FAIL" => {
            tracing::debug!(target: "librdkafka", facility, "{text}");
            return;
        }
        _ => {}
    }
    let lines = &*LINES;
    let now_ms = lines.started.elapsed().as_millis() as u64;
    let told = {
        let mut kinds = lines.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut kinds, kind_of(facility, text), now_ms)
    };
    let Some(times) = told else {
        tracing::debug!(target: "librdkafka", facility, "{text}");
        return;
    };
    match level {
        Level::Warning => tracing::warn!(target: "librdkafka", facility, times, "{text}"),
        _ => tracing::error!(target: "librdkafka", facility, times, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_in_numbers_only_are_of_one_kind_and_kinds_are_bounded() {
        let first = "[thrd:127.0.0.1:9092/1]: Connect to ipv4#127.0.0.1:9092 failed: refused (after 0ms in state CONNECT)";
        let later = "[thrd:127.0.0.1:9093/2]: Connect to ipv4#127.0.0.1:9093 failed: refused (after 3ms in state CONNECT, 5 identical error(s) suppressed)";
        assert_eq!(kind_of("FAIL", first), kind_of("FAIL", later));
        assert_ne!(kind_of("FAIL", first), kind_of("ERROR", first));
        let mut kinds = BTreeMap::new();
        for number in 0..10_000_u32 {
            let letters = number
                .to_string()
                .replace(|c: char| c.is_ascii_digit(), "x");
            let kind = format!(
                "{letters}{}",
                char::from_u32(0x4e00 + number).unwrap_or('x')
            );
            assert_eq!(count(&mut kinds, kind, 0), Some(1));
            assert!(kinds.len() <= MAX_KINDS);
        }
        assert_eq!(count(&mut kinds, "same".to_owned(), 0), Some(1));
        assert_eq!(count(&mut kinds, "same".to_owned(), 59_999), None);
        assert_eq!(count(&mut kinds, "same".to_owned(), 60_000), Some(2));
    }
}
