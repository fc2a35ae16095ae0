//! Records given to a producer.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::producer::PARTITION_UA;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use sluicegate_abi::header_block;
use sluicegate_engine::emit::ProducerRecord;

/// A topic of a producer. A record that names its topic costs a lock of the whole producer and a search of its topics. Must be
/// dropped before the producer.
pub(crate) struct Handle(NonNull<sys::rd_kafka_topic_t>);

// SAFETY: librdkafka's topics may be used and released by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above; they have locks of their own.
unsafe impl Sync for Handle {}

impl Handle {
    /// The topic of this name in a producer; `None` if librdkafka cannot have one of that name.
    pub(crate) fn of<C: ClientContext>(client: &Client<C>, name: &CStr) -> Option<Self> {
        // SAFETY: the client is alive, the name is copied; without a config, the topic has that of the client.
        let topic = unsafe {
            sys::rd_kafka_topic_new(client.native_ptr(), name.as_ptr(), std::ptr::null_mut())
        };
        NonNull::new(topic).map(Self)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is released once, before its producer.
        unsafe { sys::rd_kafka_topic_destroy(self.0.as_ptr()) }
    }
}

/// The topic of a record.
pub(crate) enum Topic<'a> {
    /// Of the producer that is given the record.
    Known(&'a Handle),
    /// By its name.
    Named(&'a CString),
}

/// Queues a record with a producer, which returns `opaque` with the answer; librdkafka copies the bytes. Header names and
/// values pass through unchanged, whether or not they are text (G7). The record's topic is not read: it is `topic`.
///
/// # Errors
/// librdkafka's code.
pub(crate) fn produce<C: ClientContext>(
    client: &Client<C>,
    topic: &Topic<'_>,
    record: &ProducerRecord<'_>,
    opaque: u64,
) -> Result<(), RDKafkaErrorCode> {
    let (kind, topic): (_, *const c_void) = match topic {
        Topic::Known(handle) => (
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
            handle.0.as_ptr().cast(),
        ),
        Topic::Named(name) => (
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            name.as_ptr().cast(),
        ),
    };
    let (key, key_len) = parts(record.key);
    let (value, value_len) = parts(record.value);
    // SAFETY: the client is alive; all pointers are valid for the call, which copies key and value (F_COPY); on success
    // it owns the headers, on failure they are still ours. The opaque is a number to librdkafka.
    unsafe {
        let headers = native_headers(record.headers);
        let error = sys::rd_kafka_producev(
            client.native_ptr(),
            kind,
            topic,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            record.partition.unwrap_or(PARTITION_UA),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            sys::RD_KAFKA_MSG_F_COPY,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            value,
            value_len,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP,
            record.timestamp_ms.unwrap_or(0),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
            opaque as *mut c_void,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            headers,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        if !headers.is_null() {
            sys::rd_kafka_headers_destroy(headers);
        }
        Err(error.into())
    }
}

/// Pointer and length in librdkafka's form: null for null.
fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((std::ptr::null(), 0), |bytes| {
        (bytes.as_ptr().cast(), bytes.len())
    })
}

/// A librdkafka header list with the headers of a block; null if there are none.
fn native_headers(block: &[u8]) -> *mut sys::rd_kafka_headers_t {
    if block.is_empty() {
        return std::ptr::null_mut();
    }
    // SAFETY: the list is fresh; names and values are copied into it.
    unsafe {
        let list = sys::rd_kafka_headers_new(8);
        for (name, value) in header_block::Headers::new(block) {
            let (value, len) = parts(value);
            sys::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len() as isize,
                value,
                len as isize,
            );
        }
        list
    }
}
