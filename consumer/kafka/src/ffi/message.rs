//! A message in the client's memory: in-place access to its parts, and its release.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka_sys as sys;
use sluicegate_abi::header_block;

use super::headers::{PublicHeaders, agree};
#[cfg(raw_headers)]
use super::{LIVE, TopicId, bytes, describe, sluicegate_headers_shim_fits};

#[cfg(raw_headers)]
unsafe extern "C" {
    fn sluicegate_header_block(
        message: *const sys::rd_kafka_message_t,
        block: *mut *const c_void,
    ) -> usize;
    fn sluicegate_buffer_share(message: *const sys::rd_kafka_message_t) -> usize;
}

/// Set once the shim and the public call have disagreed on a record: from then on headers are re-encoded.
static PUBLIC_HEADERS: AtomicBool = AtomicBool::new(!cfg!(raw_headers));

/// A message that this thread owns: a fetched record, or a partition's error entry.
#[derive(Debug)]
pub(crate) struct Message(NonNull<sys::rd_kafka_message_t>);

impl Message {
    /// Takes ownership of a message that was taken from a queue; it is already counted in [`LIVE`].
    pub(super) fn owned(message: NonNull<sys::rd_kafka_message_t>) -> Self {
        Self(message)
    }

    /// The error code of an error entry; 0 for a record.
    pub(crate) fn error_code(&self) -> i32 {
        // SAFETY: the message is alive; the field is a C enum, read as the integer that it is.
        unsafe { (&raw const (*self.0.as_ptr()).err).cast::<i32>().read() }
    }

    /// The text of an error entry.
    pub(crate) fn error_text(&self) -> String {
        let words = self
            .value()
            .map(|text| String::from_utf8_lossy(text).into_owned());
        words.unwrap_or_else(|| describe(self.error_code()))
    }

    pub(crate) fn topic(&self) -> TopicId {
        // SAFETY: the message is alive.
        TopicId(unsafe { (*self.0.as_ptr()).rkt } as usize)
    }

    pub(crate) fn partition(&self) -> i32 {
        // SAFETY: the message is alive.
        unsafe { (*self.0.as_ptr()).partition }
    }

    pub(crate) fn offset(&self) -> i64 {
        // SAFETY: the message is alive.
        unsafe { (*self.0.as_ptr()).offset }
    }

    /// Milliseconds; -1 if there is none.
    pub(crate) fn timestamp_ms(&self) -> i64 {
        // SAFETY: the message is alive; a null type pointer is allowed.
        unsafe { sys::rd_kafka_message_timestamp(self.0.as_ptr(), std::ptr::null_mut()) }
    }

    /// Epoch of the leader that appended it; -1 if the broker provides none.
    pub(crate) fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is alive and consumed.
        unsafe { sys::rd_kafka_message_leader_epoch(self.0.as_ptr()) }
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its key, null for a null key.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).key, (*message).key_len)
        }
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its value, null for a null value.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).payload, (*message).len)
        }
    }

    /// Prefetches the message and librdkafka's data around it.
    pub(crate) fn prefetch(&self) {
        prefetch(self.0.as_ptr());
    }

    /// Prefetches the first line of the key.
    pub(crate) fn prefetch_key(&self) {
        // SAFETY: the message is alive.
        prefetch_line(unsafe { (*self.0.as_ptr()).key }.cast());
    }

    /// Its share of the fetch buffer that it keeps alive together with the other records of it; 0 if the shim does not fit.
    pub(crate) fn buffer_share(&self) -> usize {
        #[cfg(raw_headers)]
        if sluicegate_headers_shim_fits() != 0 {
            // SAFETY: the message is alive and consumed, and with it the buffer; its reference count is atomic.
            return unsafe { sluicegate_buffer_share(self.0.as_ptr()) };
        }
        0
    }

    /// The header block in place; empty if the shim is not built.
    pub(crate) fn header_block(&self) -> &[u8] {
        #[cfg(raw_headers)]
        {
            let mut block = std::ptr::null();
            // SAFETY: the message is alive and consumed; the block lives in its fetch buffer, as key and value do.
            unsafe {
                let len = sluicegate_header_block(self.0.as_ptr(), &mut block);
                bytes(block.cast_mut(), len).unwrap_or_default()
            }
        }
        #[cfg(not(raw_headers))]
        &[]
    }

    /// Whether [`Self::header_block`] can be trusted. `check` compares it with the public call; if the two differ for a
    /// reason that does not lie in the record, the public call is used from then on.
    pub(crate) fn headers_are_in_place(&self, check: bool) -> bool {
        if check && !PUBLIC_HEADERS.load(Ordering::Relaxed) {
            #[cfg(raw_headers)]
            let fits = sluicegate_headers_shim_fits() != 0;
            #[cfg(not(raw_headers))]
            let fits = false;
            // With a library of another version, headers are never read in place.
            if !(fits && agree(self.header_block(), &self.public_headers())) {
                tracing::warn!(
                    offset = self.offset(),
                    "record headers cannot be read in place with this librdkafka; falling back to its slower public call"
                );
                PUBLIC_HEADERS.store(true, Ordering::Relaxed);
            }
        }
        !PUBLIC_HEADERS.load(Ordering::Relaxed)
    }

    /// The header block, encoded from the result of librdkafka's public call; empty if there are none.
    pub(crate) fn public_header_block(&self) -> Vec<u8> {
        match self.public_headers() {
            PublicHeaders::Block(block) => block,
            PublicHeaders::None | PublicHeaders::Malformed => Vec::new(),
        }
    }

    /// The result of librdkafka's public call, encoded.
    fn public_headers(&self) -> PublicHeaders {
        let mut out = Vec::new();
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message is alive; the list belongs to it and is only read; names are C strings.
        unsafe {
            match sys::rd_kafka_message_headers(self.0.as_ptr(), &mut headers) {
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__NOENT => return PublicHeaders::None,
                _ => return PublicHeaders::Malformed,
            }
            let pairs = (0..sys::rd_kafka_header_cnt(headers)).map(|index| {
                let mut name = std::ptr::null();
                let mut value = std::ptr::null();
                let mut len = 0;
                sys::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut len);
                let name = CStr::from_ptr(name).to_bytes();
                (name, bytes(value.cast_mut(), len))
            });
            header_block::write(&mut out, pairs);
        }
        PublicHeaders::Block(out)
    }
}

/// Prefetch distance in messages: another core wrote their memory last.
pub(super) const PREFETCH: usize = 8;

/// Prefetches the cache lines of a message that are read later. A no-op except on x86-64.
pub(super) fn prefetch(message: *const sys::rd_kafka_message_t) {
    #[cfg(target_arch = "x86_64")]
    for line in LINES {
        prefetch_line(message.cast::<i8>().wrapping_offset(line * 64));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = message;
}

/// Prefetches the line at an address, which may be any.
#[inline]
fn prefetch_line(address: *const i8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing as far as the program can see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The cache lines of librdkafka's operation around a message: its head lies before the message.
#[cfg(target_arch = "x86_64")]
const LINES: [isize; 6] = [-2, -1, 0, 1, 2, 3];

impl Drop for Message {
    fn drop(&mut self) {
        LIVE.set(LIVE.get().wrapping_sub(1));
        // SAFETY: this was the only owner, and the client is alive: `Connection` outlives its messages.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}
