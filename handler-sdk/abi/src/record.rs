//! A record as it crosses the border, and what comes back for it.

use abi_stable::StableAbi;

/// A borrowed view of one Kafka record.
///
/// The pointers stay valid until the call that received the view returns. Whoever builds a view keeps the memory
/// alive for at least that long; whoever reads it goes through a safe wrapper (the SDK's `Record`).
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct RawRecord {
    /// Topic name, UTF-8.
    pub topic: *const u8,
    /// Key bytes; meaningless when [`record_flag::KEY_NULL`] is set.
    pub key: *const u8,
    /// Value bytes; meaningless when [`record_flag::VALUE_NULL`] is set.
    pub value: *const u8,
    /// Header block in Kafka's record format v2 (see [`crate::header_block`]).
    pub headers: *const u8,
    /// Bytes at `topic`.
    pub topic_len: u32,
    /// Bytes at `key`.
    pub key_len: u32,
    /// Bytes at `value`.
    pub value_len: u32,
    /// Bytes at `headers`; 0 means no headers.
    pub headers_len: u32,
    /// Kafka offset.
    pub offset: i64,
    /// Kafka timestamp in milliseconds since the epoch, -1 when there is none.
    pub timestamp_ms: i64,
    /// Records of one lane must not overtake each other; 0 is no lane (unordered).
    pub lane: u64,
    /// Kafka partition.
    pub partition: i32,
    /// The assignment's fencing number (G5).
    pub epoch: u32,
    /// Which call this is for this record in this handler, from 1.
    pub attempt: u32,
    /// Bits of [`record_flag`].
    pub flags: u32,
}

// SAFETY: a view is read-only data plus the promise above that the memory behind it outlives the call; nothing in
// it is bound to a thread.
unsafe impl Send for RawRecord {}
// SAFETY: as above; shared reading of immutable bytes.
unsafe impl Sync for RawRecord {}

/// Bits of [`RawRecord::flags`].
pub mod record_flag {
    /// The key is null, not empty.
    pub const KEY_NULL: u32 = 1;
    /// The value is null (a tombstone), not empty.
    pub const VALUE_NULL: u32 = 2;
}

/// What a handler made of one record; 16 bytes, written into memory of the service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, StableAbi)]
pub struct RawOutcome {
    /// One of [`outcome_code`]; an unknown code counts as a failure, never as an acknowledgement.
    pub code: u16,
    /// Bits of [`outcome_flag`].
    pub flags: u16,
    /// Index + 1 of the text (reason, panic message) in the call's details; 0 is none.
    pub detail: u32,
    /// For a retry: the wished delay in milliseconds, 0 for the spec's backoff.
    pub arg: u64,
}

/// Values of [`RawOutcome::code`].
pub mod outcome_code {
    /// The handler did not get to this record (it follows a panic, or an earlier record of its lane is unsettled).
    pub const NOT_RUN: u16 = 0;
    /// Done.
    pub const ACK: u16 = 1;
    /// Give up on purpose; counted with the reason, not sent anywhere.
    pub const DROP: u16 = 2;
    /// Call again later (a retryable error is this too, with its message as detail).
    pub const RETRY: u16 = 3;
    /// Send to the dead-letter topic (a terminal error is this too).
    pub const DEAD_LETTER: u16 = 4;
    /// The handler panicked on this record; the detail has message and place. The instance must not be used again.
    pub const PANICKED: u16 = 5;
}

/// Bits of [`RawOutcome::flags`].
pub mod outcome_flag {
    /// The handler emitted at least one record for this one.
    pub const EMITTED: u16 = 1;
}
