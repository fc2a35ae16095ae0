//! The C layout of records and outcomes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::view::RecordView;

/// A view of one Kafka record, whose memory outlives this value.
///
/// This is its safety invariant: the code that creates a view (unsafe, only in [`crate::lend`] and [`crate::view`]) keeps
/// the memory readable and unchanged while the view exists, and a view cannot be copied. It is read through
/// [`crate::view::RecordView`].
#[repr(C)]
#[derive(Debug)]
pub struct RawRecord {
    /// Topic name, UTF-8; with [`record_flag::TOPIC_ID`] followed by the 16-byte topic id.
    pub(crate) topic: *const u8,
    /// Key bytes; meaningless when [`record_flag::KEY_NULL`] is set.
    pub(crate) key: *const u8,
    /// Value bytes; meaningless when [`record_flag::VALUE_NULL`] is set.
    pub(crate) value: *const u8,
    /// Header block in Kafka's record format v2 (see [`crate::header_block`]).
    pub(crate) headers: *const u8,
    /// Bytes at `topic`.
    pub(crate) topic_len: u32,
    /// Bytes at `key`.
    pub(crate) key_len: u32,
    /// Bytes at `value`.
    pub(crate) value_len: u32,
    /// Bytes at `headers`; 0 means no headers.
    pub(crate) headers_len: u32,
    /// Kafka offset.
    pub offset: i64,
    /// Kafka timestamp in milliseconds since the epoch, -1 when there is none.
    pub timestamp_ms: i64,
    /// Records of one lane must not overtake each other; 0 means no lane (unordered).
    pub lane: u64,
    /// The assignment's fencing number (G5).
    pub epoch: u64,
    /// The fencing number under which the partition may be handled now; null if it is not fenced.
    pub(crate) fence: *const AtomicU64,
    /// Kafka partition.
    pub partition: i32,
    /// Attempt number of this record in this handler, from 1.
    pub attempt: u32,
    /// Bits of [`record_flag`].
    pub(crate) flags: u32,
    /// Zero.
    pub(crate) reserved: u32,
}

/// Size of a topic id in bytes.
const ID: usize = 16;

/// A topic's name and, if known, its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicName<'a> {
    bytes: &'a [u8],
    name_len: usize,
}

impl<'a> TopicName<'a> {
    /// A name without an id.
    pub fn plain(name: &'a str) -> Self {
        Self {
            bytes: name.as_bytes(),
            name_len: name.len(),
        }
    }

    /// Parses the output of [`TopicName::joined`]; `None` for other bytes.
    pub fn from_joined(bytes: &'a [u8]) -> Option<Self> {
        let name_len = bytes.len().checked_sub(ID)?;
        std::str::from_utf8(&bytes[..name_len]).ok()?;
        Some(Self { bytes, name_len })
    }

    /// Concatenates name and id.
    pub fn joined(name: &str, id: [u8; ID]) -> Vec<u8> {
        [name.as_bytes(), &id].concat()
    }

    /// The name.
    pub fn name(&self) -> &'a str {
        std::str::from_utf8(&self.bytes[..self.name_len]).unwrap_or_default()
    }

    fn has_id(&self) -> bool {
        self.bytes.len() == self.name_len + ID
    }
}

/// Origin of a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlace<'a> {
    /// Topic.
    pub topic: TopicName<'a>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Timestamp in milliseconds since the epoch, -1 for none.
    pub timestamp_ms: i64,
    /// The assignment's fencing number (G5).
    pub epoch: u64,
    /// The number under which its partition may be handled now, wherever that is written.
    pub fence: Option<&'static Fence>,
}

/// The fencing number under which a partition may be handled; 0 if it may not. Shared by all records of the partition, and never
/// freed: a call that hangs can read it at any time.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Fence(AtomicU64);

impl Fence {
    /// Admits no records yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Admits the records of this assignment, and no others.
    pub fn admit(&self, epoch: u64) {
        self.0.store(epoch, Ordering::Release);
    }

    /// Admits no records, if it admitted those of this assignment: none of them may start any more.
    pub fn close(&self, epoch: u64) {
        // If it fails, a later assignment has it already.
        let _ = (self.0).compare_exchange(epoch, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether it admits the records of this assignment.
    pub fn admits(&self, epoch: u64) -> bool {
        self.0.load(Ordering::Acquire) == epoch
    }
}

/// A record to produce, borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerRecord<'a> {
    /// Target topic.
    pub topic: &'a str,
    /// Target partition; `None` lets the producer choose by key.
    pub partition: Option<i32>,
    /// Timestamp in milliseconds since the epoch; `None` is now.
    pub timestamp_ms: Option<i64>,
    /// Key; `None` is null.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Header block in Kafka's format (see [`crate::header_block`]); empty is none.
    pub headers: &'a [u8],
}

/// Key, value and header block of a record; `None` is null.
pub type Parts<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [u8]);

impl RawRecord {
    /// A view of these parts, in no lane, for a first attempt.
    ///
    /// # Safety
    /// The topic's name and the parts stay readable and unchanged as long as the view exists.
    ///
    /// # Panics
    /// When a part is 4 GiB or longer, which Kafka rules out.
    pub(crate) unsafe fn new(place: RecordPlace<'_>, (key, value, headers): Parts<'_>) -> Self {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a part is below 4 GiB");
        let mut flags = 0;
        if place.topic.has_id() {
            flags |= record_flag::TOPIC_ID;
        }
        if key.is_none() {
            flags |= record_flag::KEY_NULL;
        }
        if value.is_none() {
            flags |= record_flag::VALUE_NULL;
        }
        let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
        Self {
            topic: place.topic.bytes.as_ptr(),
            key: key.as_ptr(),
            value: value.as_ptr(),
            headers: headers.as_ptr(),
            topic_len: len(&place.topic.bytes[..place.topic.name_len]),
            key_len: len(key),
            value_len: len(value),
            headers_len: len(headers),
            offset: place.offset,
            timestamp_ms: place.timestamp_ms,
            lane: 0,
            epoch: place.epoch,
            fence: place
                .fence
                .map_or(std::ptr::null(), |fence| std::ptr::from_ref(&fence.0)),
            partition: place.partition,
            attempt: 1,
            flags,
            reserved: 0,
        }
    }

    /// Another view of the same record, for one call of one handler.
    ///
    /// # Safety
    /// The memory stays readable and unchanged as long as the new view exists.
    #[inline]
    pub(crate) unsafe fn another(&self, lane: u64, attempt: u32) -> Self {
        Self {
            lane,
            attempt,
            ..*self
        }
    }

    /// Whether both are views of the same memory.
    #[inline]
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (self.key, self.value, self.headers) == (other.key, other.value, other.headers)
    }

    /// Whether it may still be handled: its partition has not been revoked or lost since it was delivered (G5).
    #[inline]
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        // SAFETY: the word is in a `Fence` that is never freed.
        NonNull::new(self.fence.cast_mut())
            .is_none_or(|fence| unsafe { fence.as_ref() }.load(Ordering::Acquire) == self.epoch)
    }

    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn view(&self) -> RecordView<'_> {
        // SAFETY: the memory is alive as long as `self` is, and so as the borrow.
        unsafe { RecordView::new(self) }
    }
}

// SAFETY: a view is read-only data plus the invariant above that its memory outlives it; nothing in it is bound
// to a thread.
unsafe impl Send for RawRecord {}
// SAFETY: as above; shared reading of immutable bytes.
unsafe impl Sync for RawRecord {}

/// Bits of a record's flags.
pub mod record_flag {
    /// The key is null, not empty.
    pub const KEY_NULL: u32 = 1;
    /// The value is null (a tombstone), not empty.
    pub const VALUE_NULL: u32 = 2;
    /// The topic's id follows its name in memory.
    pub const TOPIC_ID: u32 = 4;
}

/// Outcome of one record; 16 bytes, written into the service's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOutcome {
    /// One of [`outcome_code`]; an unknown code counts as a failure, never as an acknowledgement.
    pub code: u16,
    /// Bits of [`outcome_flag`].
    pub flags: u16,
    /// Index + 1 of the text (reason, panic message) in the call's details; 0 is none.
    pub detail: u32,
    /// For a retry: the requested delay in milliseconds, 0 for the spec's backoff.
    pub arg: u64,
}

impl RawOutcome {
    /// Whether its handler is done with the record: it is acknowledged or dropped.
    #[inline]
    pub fn succeeds(&self) -> bool {
        matches!(self.code, outcome_code::ACK | outcome_code::DROP)
    }

    /// Whether no other attempt follows, so that what this one has emitted is produced.
    #[inline]
    pub fn is_final(&self) -> bool {
        matches!(
            self.code,
            outcome_code::ACK | outcome_code::DROP | outcome_code::DEAD_LETTER
        )
    }
}

/// Values of [`RawOutcome::code`].
pub mod outcome_code {
    /// The record was not handled: it follows a panic or a cancellation, or an earlier record of its lane is to be retried or
    /// dead-lettered.
    pub const NOT_RUN: u16 = 0;
    /// Processed.
    pub const ACK: u16 = 1;
    /// Discarded; counted with the reason, not sent anywhere.
    pub const DROP: u16 = 2;
    /// To be retried; also a retryable error, with its message as detail.
    pub const RETRY: u16 = 3;
    /// To be sent to the dead-letter topic; also a terminal error.
    pub const DEAD_LETTER: u16 = 4;
    /// The handler panicked on this record; the detail has message and location. The instance must not be used again.
    pub const PANICKED: u16 = 5;
}

/// Bits of [`RawOutcome::flags`].
pub mod outcome_flag {
    /// The handler emitted at least one record for this one.
    pub const EMITTED: u16 = 1;
}
