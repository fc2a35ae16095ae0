//! The bytes of a record, independent of what keeps them.
//!
//! The engine lends them to calls ([`sluicegate_abi::lend`]) and drops them once every call has returned them; a record
//! that is lent when its pump ends is leaked (G14). The Kafka client's records stay in its fetch buffers, which a
//! record keeps alive: [`Record::detach`] copies one that will be kept for long.

use std::fmt::Debug;

use sluicegate_abi::lend::{OwnedRecord, RecordBytes};

/// A record's key, value and headers; freed when dropped.
pub trait Record: RecordBytes + Debug + Sized {
    /// A record that holds a copy of the given bytes. `headers` is a block in Kafka's format, empty for none.
    fn copied(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) -> Self;

    /// Key; `None` means null.
    fn key(&self) -> Option<&[u8]>;

    /// Value; `None` means a tombstone.
    fn value(&self) -> Option<&[u8]>;

    /// Header block in Kafka's format; empty means none. Read it with [`sluicegate_abi::header_block::Headers`].
    fn headers(&self) -> &[u8];

    /// Prefetches memory that dropping the record will touch, without waiting for it.
    fn prefetch(&self) {}

    /// Prefetches its key, which is read soon, without waiting for it.
    fn prefetch_key(&self) {}

    /// Whether it keeps more memory alive than its own bytes, such as a whole fetch buffer.
    fn pins_client_memory(&self) -> bool {
        false
    }

    /// Its share of the memory that it keeps alive together with other records, such as those of one fetch buffer: the
    /// shares add up to that memory. 0 if it is unknown, and for a copy. Reads what the records share, so not for every record.
    fn pinned_bytes(&self) -> usize {
        0
    }

    /// Bytes of key, value and headers.
    fn size(&self) -> usize {
        self.key().map_or(0, <[u8]>::len)
            + self.value().map_or(0, <[u8]>::len)
            + self.headers().len()
    }

    /// A copy that pins no other memory.
    fn detach(&self) -> Self {
        Self::copied(self.key(), self.value(), self.headers())
    }
}

impl Record for OwnedRecord {
    fn copied(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) -> Self {
        Self::new(key, value, headers)
    }

    fn key(&self) -> Option<&[u8]> {
        OwnedRecord::key(self)
    }

    fn value(&self) -> Option<&[u8]> {
        OwnedRecord::value(self)
    }

    fn headers(&self) -> &[u8] {
        OwnedRecord::headers(self)
    }
}
