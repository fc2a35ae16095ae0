//! Records emitted by a handler.

use sluicegate_abi::header_block;
use sluicegate_abi::record::ProducerRecord;

use crate::record::Record;

/// Name and value.
type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// Builder of a record to produce. Key and value are null unless set.
///
/// ```
/// use sluicegate_sdk::Emit;
/// let emit = Emit::to("alerts").key(b"k").value(b"{}").header("severity", b"high");
/// ```
#[derive(Clone, Debug)]
pub struct Emit<'a> {
    topic: &'a str,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    /// Unchanged headers of a copied record.
    block: &'a [u8],
    /// The headers after a change; replaces `block`.
    changed: Option<Vec<Header<'a>>>,
}

impl<'a> Emit<'a> {
    /// A record for `topic`.
    pub fn to(topic: &'a str) -> Self {
        Self {
            topic,
            partition: None,
            timestamp_ms: None,
            key: None,
            value: None,
            block: &[],
            changed: None,
        }
    }

    /// A copy of `record` for `topic`: key, value, headers and timestamp; the partition follows from the key.
    pub fn copy_of(record: &Record<'a>, topic: &'a str) -> Self {
        Self {
            topic,
            partition: None,
            timestamp_ms: record.timestamp_ms(),
            key: record.key(),
            value: record.value(),
            block: record.header_block(),
            changed: None,
        }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the key or makes it null.
    #[must_use]
    pub fn key_or_null(mut self, key: Option<&'a [u8]>) -> Self {
        self.key = key;
        self
    }

    /// Sets the value.
    #[must_use]
    pub fn value(mut self, value: &'a [u8]) -> Self {
        self.value = Some(value);
        self
    }

    /// Sets the value or makes it null (a tombstone).
    #[must_use]
    pub fn value_or_null(mut self, value: Option<&'a [u8]>) -> Self {
        self.value = value;
        self
    }

    /// Sets the partition; by default it follows from the key.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the timestamp in milliseconds since the epoch; by default the time of producing.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'a str, value: &'a [u8]) -> Self {
        self.list().push((name.as_bytes(), Some(value)));
        self
    }

    /// Removes all headers with that name.
    #[must_use]
    pub fn without_header(mut self, name: &str) -> Self {
        self.list().retain(|(n, _)| *n != name.as_bytes());
        self
    }

    fn list(&mut self) -> &mut Vec<Header<'a>> {
        let block = self.block;
        self.changed
            .get_or_insert_with(|| header_block::Headers::new(block).collect())
    }

    /// Passes it on in the ABI's form.
    pub(crate) fn with<T>(&self, hand_over: impl FnOnce(&ProducerRecord<'_>) -> T) -> T {
        let mut built = Vec::new();
        let headers = match &self.changed {
            None => self.block,
            Some(list) if list.is_empty() => &[],
            Some(list) => {
                header_block::write(&mut built, list.iter().copied());
                built.as_slice()
            }
        };
        hand_over(&ProducerRecord {
            topic: self.topic,
            partition: self.partition,
            timestamp_ms: self.timestamp_ms,
            key: self.key,
            value: self.value,
            headers,
        })
    }
}
