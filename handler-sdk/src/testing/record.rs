//! Input records for tests.

use sluicegate_abi::record::TopicName;
use sluicegate_abi::view::RecordParts;

/// A test record. Defaults: partition 0, offset 0, null key and value, attempt 1, epoch 1.
#[derive(Clone, Debug)]
pub struct TestRecord {
    parts: RecordParts,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A record of `topic`.
pub fn record(topic: &str) -> TestRecord {
    let parts = RecordParts {
        topic: topic.to_string(),
        timestamp_ms: -1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    };
    TestRecord {
        parts,
        headers: Vec::new(),
    }
}

impl TestRecord {
    /// Sets the key, and with it the lane, as `order: key` does.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref().to_vec();
        self.parts.lane = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }) | 1;
        self.parts.key = Some(key);
        self
    }

    /// Sets the value.
    #[must_use]
    pub fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        self.parts.value = Some(value.as_ref().to_vec());
        self
    }

    /// Sets the value to JSON.
    #[must_use]
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.value(value.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers
            .push((name.as_bytes().to_vec(), Some(value.as_ref().to_vec())));
        self
    }

    /// Sets the topic's id.
    #[must_use]
    pub fn topic_id(mut self, id: [u8; 16]) -> Self {
        self.parts.topic_with_id = TopicName::joined(&self.parts.topic, id);
        self
    }

    /// Sets partition and offset.
    #[must_use]
    pub fn at(mut self, partition: i32, offset: i64) -> Self {
        self.parts.partition = partition;
        self.parts.offset = offset;
        self
    }

    /// Sets the timestamp, in milliseconds since the epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.parts.timestamp_ms = timestamp_ms;
        self
    }

    /// Sets the attempt number, from 1.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.parts.attempt = attempt;
        self
    }

    /// Sets the assignment's fencing number.
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.parts.epoch = epoch;
        self
    }

    /// Sets the lane: records of one lane must not overtake each other; 0 is none.
    #[must_use]
    pub fn lane(mut self, lane: u64) -> Self {
        self.parts.lane = lane;
        self
    }

    pub(super) fn attempts(&self) -> u32 {
        self.parts.attempt
    }

    /// Counts an attempt. Returns whether it is within the bound.
    pub(super) fn next_attempt(&mut self, max: u32) -> bool {
        self.parts.attempt += 1;
        self.parts.attempt <= max
    }

    pub(super) fn finish(mut self) -> RecordParts {
        if !self.headers.is_empty() {
            self.parts.set_headers(
                self.headers
                    .iter()
                    .map(|(name, value)| (name.as_slice(), value.as_deref())),
            );
        }
        self.parts
    }
}
