//! A Kafka record as seen by a handler: borrowed, with lazily parsed headers.

use serde::de::DeserializeOwned;
use sluicegate_abi::header_block::Headers;
use sluicegate_abi::view::RecordView;

use crate::json;
use crate::outcome::HandlerError;

/// One Kafka record, borrowed from the service for the duration of the call.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    view: RecordView<'a>,
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(view: RecordView<'a>) -> Self {
        Self { view }
    }

    /// Topic name.
    pub fn topic(&self) -> &'a str {
        self.view.topic()
    }

    /// The topic's id. A recreated topic has another id and its offsets restart, so a sink that identifies records by topic,
    /// partition and offset needs the id too. `None` with brokers before Kafka 2.8, and if the service cannot determine it.
    pub fn topic_id(&self) -> Option<[u8; 16]> {
        self.view.topic_id()
    }

    /// Partition.
    pub fn partition(&self) -> i32 {
        self.view.raw().partition
    }

    /// Offset.
    pub fn offset(&self) -> i64 {
        self.view.raw().offset
    }

    /// Timestamp in milliseconds since the epoch, if the record has one.
    pub fn timestamp_ms(&self) -> Option<i64> {
        Some(self.view.raw().timestamp_ms).filter(|&ms| ms >= 0)
    }

    /// Key; `None` is null, which differs from empty.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.view.key()
    }

    /// The key as text; `None` also when it is not UTF-8.
    pub fn key_text(&self) -> Option<&'a str> {
        self.key().and_then(|key| std::str::from_utf8(key).ok())
    }

    /// The value as text; `None` also when it is not UTF-8.
    pub fn value_text(&self) -> Option<&'a str> {
        self.value()
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Value; `None` is null (a tombstone).
    pub fn value(&self) -> Option<&'a [u8]> {
        self.view.value()
    }

    /// Names and values of the headers, in order. Names may repeat and values may be null.
    pub fn headers(&self) -> Headers<'a> {
        self.view.headers()
    }

    /// Value of the first header with that name; `None` if there is none, or if its value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .find(|(n, _)| *n == name.as_bytes())
            .and_then(|(_, value)| value)
    }

    /// [`Record::header`] as text; `None` also when it is not UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&'a str> {
        self.header(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The value, read from JSON: structs from objects only, never from a list of their fields.
    ///
    /// # Errors
    /// A terminal error if the value is null, not JSON, or does not match the type. The message has the position and never
    /// quotes the value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        let value = self
            .value()
            .ok_or_else(|| HandlerError::terminal("the value is null, expected JSON"))?;
        json::from_slice(value).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = match error.classify() {
                serde_json::error::Category::Data => {
                    "the JSON value does not have the expected structure"
                }
                _ => "the value is not JSON",
            };
            HandlerError::terminal(format!("{what} (line {line}, column {column})"))
        })
    }

    /// Attempt number of this record in this handler, from 1.
    pub fn attempt(&self) -> u32 {
        self.view.raw().attempt
    }

    /// The assignment's fencing number.
    pub fn epoch(&self) -> u64 {
        self.view.raw().epoch
    }

    pub(crate) fn lane(&self) -> u64 {
        self.view.raw().lane
    }

    pub(crate) fn header_block(&self) -> &'a [u8] {
        self.view.header_block()
    }
}
