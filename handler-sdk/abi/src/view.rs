//! Safe reading of a [`RawRecord`], and records built from owned parts.

use std::marker::PhantomData;

use crate::header_block::{self, Headers};
use crate::record::{RawRecord, record_flag};

/// A record whose memory is known to live for `'a`.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    raw: &'a RawRecord,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> RecordView<'a> {
    /// Trusts `raw`.
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

    /// The header block as it came.
    #[inline]
    pub fn header_block(&self) -> &'a [u8] {
        self.slice(self.raw.headers, self.raw.headers_len)
    }

    /// Headers, first to last, read on the way.
    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.header_block())
    }

    #[inline]
    fn slice(&self, ptr: *const u8, len: u32) -> &'a [u8] {
        if len == 0 {
            return &[];
        }
        // SAFETY: whoever built this view promised that the memory is readable and unchanged for `'a`.
        unsafe { std::slice::from_raw_parts(ptr, len as usize) }
    }
}

/// A record that owns its parts, for tests and for records that outlive their source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordParts {
    /// Topic name.
    pub topic: String,
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
    pub epoch: u32,
    /// Which call for this record, from 1.
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

    /// A view in C layout; its pointers are valid as long as `self` is borrowed and unchanged.
    ///
    /// # Panics
    /// When a part is 4 GiB or longer.
    #[must_use]
    pub fn as_raw(&self) -> RawRecord {
        let len = |n: usize| u32::try_from(n).expect("a record's part is below 4 GiB");
        let key = self.key.as_deref().unwrap_or_default();
        let value = self.value.as_deref().unwrap_or_default();
        let mut flags = 0;
        if self.key.is_none() {
            flags |= record_flag::KEY_NULL;
        }
        if self.value.is_none() {
            flags |= record_flag::VALUE_NULL;
        }
        RawRecord {
            topic: self.topic.as_ptr(),
            key: key.as_ptr(),
            value: value.as_ptr(),
            headers: self.headers.as_ptr(),
            topic_len: len(self.topic.len()),
            key_len: len(key.len()),
            value_len: len(value.len()),
            headers_len: len(self.headers.len()),
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            lane: self.lane,
            partition: self.partition,
            epoch: self.epoch,
            attempt: self.attempt,
            flags,
        }
    }
}
