//! The plain meaning of a route, evaluated directly from the spec: the reference that the index is tested against.

use regex::Regex;
use sluicegate_abi::header_block::Headers;
use sluicegate_config::spec::{PartitionTest, Predicate, Route, Test, TopicPattern};

/// The parts of a record that a route can test.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Partition number.
    pub partition: i32,
    /// Key; `None` means null.
    pub key: Option<&'a [u8]>,
    /// Header block in Kafka's format.
    pub headers: &'a [u8],
}

/// Whether `route` matches the record. Patterns that do not compile match nothing; validated specs contain none.
pub fn matches(route: &Route, record: &RecordView<'_>) -> bool {
    route
        .topics
        .iter()
        .any(|pattern| topic_matches(pattern, record.topic))
        && holds(&route.when, record)
}

/// Whether `pattern` matches `topic`.
pub fn topic_matches(pattern: &TopicPattern, topic: &str) -> bool {
    pattern.matches(topic)
}

/// Whether `predicate` holds for the record.
pub fn holds(predicate: &Predicate, record: &RecordView<'_>) -> bool {
    match predicate {
        Predicate::All(children) => children.iter().all(|child| holds(child, record)),
        Predicate::Any(children) => children.iter().any(|child| holds(child, record)),
        Predicate::Not(child) => !holds(child, record),
        Predicate::Header { name, test } => {
            let mut values = Headers::new(record.headers)
                .filter(|(header, _)| *header == name.as_bytes())
                .map(|(_, value)| value);
            match test {
                Test::Exists(wanted) => values.next().is_some() == *wanted,
                test => values.flatten().any(|value| value_passes(test, value)),
            }
        }
        Predicate::Key(Test::Exists(wanted)) => record.key.is_some() == *wanted,
        Predicate::Key(test) => record.key.is_some_and(|key| value_passes(test, key)),
        Predicate::Partition(test) => partition_passes(test, record.partition),
    }
}

fn value_passes(test: &Test, value: &[u8]) -> bool {
    match test {
        Test::Equals(wanted) => value == wanted,
        Test::In(wanted) => wanted.iter().any(|one| value == one),
        Test::Exists(wanted) => *wanted,
        Test::Prefix(prefix) => value.starts_with(prefix),
        Test::Suffix(suffix) => value.ends_with(suffix),
        Test::Regex(pattern) => str::from_utf8(value)
            .is_ok_and(|text| Regex::new(pattern).is_ok_and(|regex| regex.is_match(text))),
        Test::Lt(bound) => number(value).is_some_and(|n| n < *bound),
        Test::Le(bound) => number(value).is_some_and(|n| n <= *bound),
        Test::Gt(bound) => number(value).is_some_and(|n| n > *bound),
        Test::Ge(bound) => number(value).is_some_and(|n| n >= *bound),
    }
}

fn partition_passes(test: &PartitionTest, partition: i32) -> bool {
    match test {
        PartitionTest::Equals(wanted) => partition == *wanted,
        PartitionTest::In(wanted) => wanted.contains(&partition),
        PartitionTest::Lt(bound) => partition < *bound,
        PartitionTest::Le(bound) => partition <= *bound,
        PartitionTest::Gt(bound) => partition > *bound,
        PartitionTest::Ge(bound) => partition >= *bound,
    }
}

/// The number that a value contains in decimal text, without surrounding spaces; `None` for anything else and for NaN.
pub(super) fn number(value: &[u8]) -> Option<f64> {
    let number: f64 = str::from_utf8(value).ok()?.parse().ok()?;
    (!number.is_nan()).then_some(number)
}
