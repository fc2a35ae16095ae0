//! Safe access to a [`RawRecord`], and records built from owned parts.

use std::marker::PhantomData;

use crate::header_block::{self, Headers};
use crate::record::{RawRecord, RecordPlace, TopicName, record_flag};

/// A record whose memory is known to live for `'a`.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    raw: &'a RawRecord,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> RecordView<'a> {
    /// Creates a view of `raw`.
    ///
    /// # Safety
    /// The memory that `raw` points to is readable and unchanged for `'a`.
    #[inline]
    pub unsafe fn new(raw: &'a RawRecord) -> Self {
        Self {
            raw,
            bytes: PhantomData,
        }
    }

    /// The plain fields.
    #[inline]
    pub fn raw(&self) -> &'a RawRecord {
        self.raw
    }

    /// Topic name.
    pub fn topic(&self) -> &'a str {
        std::str::from_utf8(self.slice(self.raw.topic, self.raw.topic_len)).unwrap_or_default()
    }

    /// The topic's id; `None` if the cluster does not assign topic ids.
    pub fn topic_id(&self) -> Option<[u8; 16]> {
        if self.raw.flags & record_flag::TOPIC_ID == 0 {
            return None;
        }
        let len = self.raw.topic_len as usize;
        let behind = self.slice(self.raw.topic, self.raw.topic_len + 16);
        behind[len..].try_into().ok()
    }

    /// Key; `None` is null.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        (self.raw.flags & record_flag::KEY_NULL == 0)
            .then(|| self.slice(self.raw.key, self.raw.key_len))
    }

    /// Value; `None` is null.
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        (self.raw.flags & record_flag::VALUE_NULL == 0)
            .then(|| self.slice(self.raw.value, self.raw.value_len))
    }

    /// The raw header block.
    #[inline]
    pub fn header_block(&self) -> &'a [u8] {
        self.slice(self.raw.headers, self.raw.headers_len)
    }

    /// Headers in order, parsed lazily.
    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.header_block())
    }

    #[inline]
    fn slice(&self, ptr: *const u8, len: u32) -> &'a [u8] {
        if len == 0 {
            return &[];
        }
        // SAFETY: the creator of this view guaranteed that the memory is readable and unchanged for `'a`.
        unsafe { std::slice::from_raw_parts(ptr, len as usize) }
    }
}

/// A record that owns its parts, for tests and for records that outlive their source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordParts {
    /// Topic name.
    pub topic: String,
    /// Name and id of the topic in the format of [`TopicName::joined`]; empty without an id.
    pub topic_with_id: Vec<u8>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Timestamp in milliseconds, -1 for none.
    pub timestamp_ms: i64,
    /// Key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// Value; `None` is null.
    pub value: Option<Vec<u8>>,
    /// Header block.
    pub headers: Vec<u8>,
    /// Lane; 0 is none.
    pub lane: u64,
    /// Fencing number.
    pub epoch: u64,
    /// Attempt number, from 1.
    pub attempt: u32,
}

impl RecordParts {
    /// Sets the headers.
    pub fn set_headers<'h>(
        &mut self,
        headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
    ) {
        self.headers.clear();
        header_block::write(&mut self.headers, headers);
    }

    /// A C-layout view of leaked parts: for tests in which a call may last arbitrarily long.
    ///
    /// # Panics
    /// When a part is 4 GiB or longer.
    #[must_use]
    pub fn leaked(self) -> RawRecord {
        // SAFETY: leaked memory stays readable and unchanged forever.
        unsafe { Box::leak(Box::new(self)).as_raw() }
    }

    /// # Safety
    /// `self` stays where it is, unchanged, as long as the view exists.
    unsafe fn as_raw(&self) -> RawRecord {
        let place = RecordPlace {
            topic: TopicName::from_joined(&self.topic_with_id)
                .unwrap_or(TopicName::plain(&self.topic)),
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            epoch: self.epoch,
            fence: None,
        };
        let parts = (self.key.as_deref(), self.value.as_deref(), &*self.headers);
        // SAFETY: the caller keeps the borrowed parts alive.
        let view = unsafe { RawRecord::new(place, parts) };
        // SAFETY: as above; the first view is dropped.
        unsafe { view.another(self.lane, self.attempt) }
    }
}

/// C-layout views of borrowed parts.
#[derive(Debug)]
pub struct BorrowedRecords<'a> {
    records: Vec<RawRecord>,
    parts: PhantomData<&'a [RecordParts]>,
}

impl<'a> BorrowedRecords<'a> {
    /// Views of `parts`.
    ///
    /// # Panics
    /// When a part is 4 GiB or longer.
    #[must_use]
    pub fn new(parts: &'a [RecordParts]) -> Self {
        // SAFETY: the parts are borrowed as long as `Self` lives, and no view can be taken out of it.
        let views = parts.iter().map(|parts| unsafe { parts.as_raw() });
        Self {
            records: views.collect(),
            parts: PhantomData,
        }
    }
}

impl std::ops::Deref for BorrowedRecords<'_> {
    type Target = [RawRecord];

    fn deref(&self) -> &[RawRecord] {
        &self.records
    }
}
