//! A record's bytes and their ownership.
//!
//! A [`RecordBuf`] keeps a fetched record alive. Batches carry plain pointers into it, which are lent
//! ([`sluicegate_abi::lend`]): it is kept until every batch that points into it has been returned, also while a worker
//! hangs, and leaked if the pump ends before that (G14).

use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::record::Record;

use super::message::Message;

/// A record's key, value and headers; frees them when dropped.
#[derive(Debug)]
pub struct RecordBuf(Bytes);

#[derive(Debug)]
enum Bytes {
    Owned(OwnedRecord),
    Kafka(Message),
    /// A client's record without headers, according to the public call.
    Bare(Message),
    /// A client's record whose headers were read through the public call.
    Reencoded(Box<(Message, Box<[u8]>)>),
}

// A tag and a pointer: the pump's slab holds one per record.
const _: () = assert!(size_of::<RecordBuf>() <= 16);

impl RecordBuf {
    /// Wraps a fetched record. `check_headers` compares both ways to read its headers.
    pub(crate) fn of(message: Message, check_headers: bool) -> Self {
        match message.headers_are_in_place(check_headers) {
            true => Self(Bytes::Kafka(message)),
            false => Self::of_public(message),
        }
    }

    /// Wraps a record whose headers must not be read in place, not even to see that there are none.
    fn of_public(message: Message) -> Self {
        let headers = message.public_header_block();
        Self(match headers.is_empty() {
            true => Bytes::Bare(message),
            false => Bytes::Reencoded(Box::new((message, headers.into()))),
        })
    }

    /// The same record with its headers from the public call.
    #[cfg(test)]
    pub(crate) fn into_public(self) -> Self {
        match self.0 {
            Bytes::Kafka(message) => Self::of_public(message),
            other => Self(other),
        }
    }

    /// The client's record, if its headers are read in place.
    #[cfg(test)]
    pub(crate) fn message(&self) -> Option<&Message> {
        match &self.0 {
            Bytes::Kafka(message) => Some(message),
            _ => None,
        }
    }
}

impl Record for RecordBuf {
    fn copied(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) -> Self {
        Self(Bytes::Owned(OwnedRecord::new(key, value, headers)))
    }

    #[inline]
    fn key(&self) -> Option<&[u8]> {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.key(),
            Bytes::Kafka(message) | Bytes::Bare(message) => message.key(),
            Bytes::Reencoded(both) => both.0.key(),
        }
    }

    #[inline]
    fn value(&self) -> Option<&[u8]> {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.value(),
            Bytes::Kafka(message) | Bytes::Bare(message) => message.value(),
            Bytes::Reencoded(both) => both.0.value(),
        }
    }

    #[inline]
    fn headers(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.headers(),
            Bytes::Kafka(message) => message.header_block(),
            Bytes::Bare(_) => &[],
            Bytes::Reencoded(both) => &both.1,
        }
    }

    #[inline]
    fn prefetch(&self) {
        if let Bytes::Kafka(message) | Bytes::Bare(message) = &self.0 {
            message.prefetch();
        }
    }

    #[inline]
    fn prefetch_key(&self) {
        if let Bytes::Kafka(message) | Bytes::Bare(message) = &self.0 {
            message.prefetch_key();
        }
    }

    #[inline]
    fn pins_client_memory(&self) -> bool {
        !matches!(&self.0, Bytes::Owned(_))
    }

    fn pinned_bytes(&self) -> usize {
        match &self.0 {
            Bytes::Owned(_) => 0,
            Bytes::Kafka(message) | Bytes::Bare(message) => message.buffer_share(),
            Bytes::Reencoded(both) => both.0.buffer_share(),
        }
    }
}
