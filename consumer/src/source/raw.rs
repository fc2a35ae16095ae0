//! librdkafka's memory and queues: the one place of the service with calls into the C library.
//!
//! Numbers in `source` such as "rule 1" are the five rules under which batches from an application queue are sound:
//! 1 forward before every assign, start offset in the list; 2 after a partition's error entry seek back once instead
//! of believing a jump; 3 drop repeats; 4 serve events until their queue is empty; 5 drop partition lists before the
//! client.

mod create_topics;
mod headers;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::TopicPartitionList;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{PARTITION_UA, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use sluicegate_abi::header_block;
use sluicegate_abi::lend::RecordBytes;
use sluicegate_abi::record::Parts;

use super::Lease;
use crate::emit::{EmitGroup, Outgoing};

pub(crate) use create_topics::{NewTopic, create_topics};
use headers::{PublicHeaders, agree};

thread_local! {
    /// Records of the client's memory that this thread holds. A client must not be destroyed while one is alive: its
    /// destructor would wait for ever.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Set once the shim and the public call have disagreed on a record: from then on headers are re-encoded.
static PUBLIC_HEADERS: AtomicBool = AtomicBool::new(!cfg!(raw_headers));

/// Identity of a topic inside one client; it stays the same while a [`Connection`] knows the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicId(pub(super) usize);

/// A message that this thread owns: a fetched record, or a partition's error entry.
#[derive(Debug)]
pub(super) struct Message(NonNull<sys::rd_kafka_message_t>);

// librdkafka's codes, read as numbers: a newer broker may send one that the bindings' enum does not have.
unsafe extern "C" {
    #[link_name = "rd_kafka_err2str"]
    safe fn error_text(code: c_int) -> *const c_char;
    #[cfg(raw_headers)]
    fn sluicegate_header_block(
        message: *const sys::rd_kafka_message_t,
        block: *mut *const c_void,
    ) -> usize;
    #[cfg(raw_headers)]
    safe fn sluicegate_headers_shim_fits() -> c_int;
}

impl Message {
    /// The error code of an error entry; 0 for a record.
    pub(super) fn error_code(&self) -> i32 {
        // SAFETY: the message is alive; the field is a C enum, read as the integer that it is.
        unsafe { (&raw const (*self.0.as_ptr()).err).cast::<i32>().read() }
    }

    /// The words of an error entry.
    pub(super) fn error_text(&self) -> String {
        let words = self
            .value()
            .map(|text| String::from_utf8_lossy(text).into_owned());
        words.unwrap_or_else(|| describe(self.error_code()))
    }

    pub(super) fn topic(&self) -> TopicId {
        // SAFETY: the message is alive.
        TopicId(unsafe { (*self.0.as_ptr()).rkt } as usize)
    }

    pub(super) fn partition(&self) -> i32 {
        // SAFETY: the message is alive.
        unsafe { (*self.0.as_ptr()).partition }
    }

    pub(super) fn offset(&self) -> i64 {
        // SAFETY: the message is alive.
        unsafe { (*self.0.as_ptr()).offset }
    }

    /// Milliseconds, -1 when there is none.
    pub(super) fn timestamp_ms(&self) -> i64 {
        // SAFETY: the message is alive; a null type pointer is allowed.
        unsafe { sys::rd_kafka_message_timestamp(self.0.as_ptr(), std::ptr::null_mut()) }
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its key, null for a null key.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).key, (*message).key_len)
        }
    }

    pub(super) fn value(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its value, null for a null value.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).payload, (*message).len)
        }
    }

    /// Asks the processor to fetch the message and what librdkafka keeps around it.
    pub(super) fn prefetch(&self) {
        prefetch(self.0.as_ptr());
    }

    /// The header block in place, or nothing where the shim is not built.
    pub(super) fn header_block(&self) -> &[u8] {
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

    /// Whether [`Self::header_block`] can be believed. `check` compares it with the public call; where the two differ for
    /// no reason that lies in the record, the public call is used for good.
    pub(super) fn headers_are_in_place(&self, check: bool) -> bool {
        if check && !PUBLIC_HEADERS.load(Ordering::Relaxed) {
            #[cfg(raw_headers)]
            let fits = sluicegate_headers_shim_fits() != 0;
            #[cfg(not(raw_headers))]
            let fits = false;
            // A library of another version is not read in place even once.
            if !(fits && agree(self.header_block(), &self.public_headers())) {
                tracing::warn!(
                    offset = self.offset(),
                    "record headers cannot be read in place with this librdkafka; reading them the slow way"
                );
                PUBLIC_HEADERS.store(true, Ordering::Relaxed);
            }
        }
        !PUBLIC_HEADERS.load(Ordering::Relaxed)
    }

    /// The header block, encoded from what librdkafka's public call gives; empty for none.
    pub(super) fn public_header_block(&self) -> Vec<u8> {
        match self.public_headers() {
            PublicHeaders::Block(block) => block,
            PublicHeaders::None | PublicHeaders::Malformed => Vec::new(),
        }
    }

    /// What librdkafka's public call gives, encoded.
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

/// Messages between the one that is taken and the one whose memory is fetched ahead: another core wrote them last.
const PREFETCH: usize = 8;

/// Asks the processor for the cache lines of a message that are read later. Elsewhere than on x86-64 it does nothing.
fn prefetch(message: *const sys::rd_kafka_message_t) {
    #[cfg(target_arch = "x86_64")]
    for line in LINES {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = message.cast::<i8>().wrapping_offset(line * 64);
        // SAFETY: a prefetch reads nothing as far as the program can see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = message;
}

/// The cache lines around a message that librdkafka's operation of it takes up: its head lies before the message.
#[cfg(target_arch = "x86_64")]
const LINES: [isize; 6] = [-2, -1, 0, 1, 2, 3];

impl Drop for Message {
    fn drop(&mut self) {
        LIVE.set(LIVE.get().wrapping_sub(1));
        // SAFETY: this was the only owner, and the client is alive: `Connection` outlives its messages.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

// SAFETY: what a lease gives lies behind boxes that are boxed themselves, and so does not move with it, or in the fetch
// buffer of a message, which librdkafka keeps as long as the message. Nothing writes to it.
unsafe impl RecordBytes for Lease {
    fn parts(&self) -> Parts<'_> {
        (self.key(), self.value(), self.headers())
    }
}

/// # Safety
/// `data` is null or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(data: *mut c_void, len: usize) -> Option<&'a [u8]> {
    let data = NonNull::new(data.cast::<u8>())?;
    // SAFETY: as the caller promises.
    Some(unsafe { std::slice::from_raw_parts(data.as_ptr(), len) })
}

/// librdkafka's words for an error code.
pub(super) fn describe(code: i32) -> String {
    let text = error_text(code);
    // SAFETY: a static string (or one of a static ring for unknown codes), never null.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Lets the groups of a client's mock cluster form without their usual delay of 3 s.
pub(super) fn form_groups_at_once<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client is alive and owns the cluster, if it has one.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
    }
}

/// One element of a partition list.
pub(super) struct ListEntry {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) metadata: String,
    /// 0 when there is none.
    pub(super) error_code: i32,
}

/// Reads a partition list. Metadata that is not text (somebody else's) is read as far as it is.
pub(super) fn list_entries(list: &TopicPartitionList) -> Vec<ListEntry> {
    let list = list.ptr();
    // SAFETY: the list is alive for the borrow and holds `cnt` initialised elements; the error is read as a number.
    unsafe {
        let count = (*list).cnt as usize;
        (0..count)
            .map(|index| {
                let element = (*list).elems.add(index);
                let metadata = bytes((*element).metadata, (*element).metadata_size);
                ListEntry {
                    topic: CStr::from_ptr((*element).topic)
                        .to_string_lossy()
                        .into_owned(),
                    partition: (*element).partition,
                    offset: (*element).offset,
                    metadata: String::from_utf8_lossy(metadata.unwrap_or_default()).into_owned(),
                    error_code: (&raw const (*element).err).cast::<i32>().read(),
                }
            })
            .collect()
    }
}

/// A topic that the client keeps alive for us, so that its identity stays ours.
struct KnownTopic {
    handle: NonNull<sys::rd_kafka_topic_t>,
    name: CString,
}

/// A client with an application queue, both of whose queues wake one descriptor.
pub(super) struct Connection<C: ConsumerContext> {
    consumer: ManuallyDrop<BaseConsumer<C>>,
    records: NonNull<sys::rd_kafka_queue_t>,
    events: NonNull<sys::rd_kafka_queue_t>,
    topics: Vec<KnownTopic>,
    buffer: Vec<*mut sys::rd_kafka_message_t>,
    wake: Arc<OwnedFd>,
    left_group: bool,
}

impl<C: ConsumerContext> Connection<C> {
    /// Makes the application queue; `wake` gets an 8-byte 1 whenever an empty queue gets something.
    pub(super) fn new(consumer: BaseConsumer<C>, wake: Arc<OwnedFd>, batch: usize) -> Option<Self> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client is alive; both calls give a handle that is destroyed in `drop`.
        let (records, events) = unsafe {
            (
                NonNull::new(sys::rd_kafka_queue_new(client))?,
                NonNull::new(sys::rd_kafka_queue_get_consumer(client))?,
            )
        };
        let connection = Self {
            consumer: ManuallyDrop::new(consumer),
            records,
            events,
            topics: Vec::new(),
            buffer: vec![std::ptr::null_mut(); batch],
            wake,
            left_group: false,
        };
        connection.wake_on_events(connection.wake.as_raw_fd());
        Some(connection)
    }

    fn wake_on_events(&self, descriptor: c_int) {
        let one = 1u64.to_ne_bytes();
        for queue in [self.records, self.events] {
            // SAFETY: the queues are alive and the payload is copied; the descriptor is held by `self.wake` and
            // taken from the queues in `drop`.
            unsafe {
                sys::rd_kafka_queue_io_event_enable(
                    queue.as_ptr(),
                    descriptor,
                    one.as_ptr().cast(),
                    one.len(),
                );
            }
        }
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<C> {
        &self.consumer
    }

    /// Events that [`BaseConsumer::poll`] has still to serve (rule 4).
    pub(super) fn events_waiting(&self) -> usize {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_length(self.events.as_ptr()) }
    }

    /// Sends the records of a partition to the application queue. Rule 1: to be called before every assign, since a
    /// fetch stop takes the forward away and leaves the partition silent.
    pub(super) fn forward(&self, topic: &str, partition: i32) -> bool {
        let client = self.consumer.client().native_ptr();
        let Ok(topic) = CString::new(topic) else {
            return false;
        };
        // SAFETY: client and queue are alive; the partition's handle is only needed for the call.
        unsafe {
            let queue = sys::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
            if queue.is_null() {
                return false;
            }
            sys::rd_kafka_queue_forward(queue, self.records.as_ptr());
            sys::rd_kafka_queue_destroy(queue);
        }
        true
    }

    /// The identity under which messages of a topic name it.
    pub(super) fn topic_id(&mut self, name: &str) -> Option<TopicId> {
        let name = CString::new(name).ok()?;
        if let Some(known) = self.topics.iter().find(|known| known.name == name) {
            return Some(TopicId(known.handle.as_ptr() as usize));
        }
        // SAFETY: the client is alive; the handle is destroyed in `drop`, before the client.
        let handle = NonNull::new(unsafe {
            sys::rd_kafka_topic_new(
                self.consumer.client().native_ptr(),
                name.as_ptr(),
                std::ptr::null_mut(),
            )
        })?;
        self.topics.push(KnownTopic { handle, name });
        Some(TopicId(handle.as_ptr() as usize))
    }

    /// Name of a topic that was asked for with [`Self::topic_id`].
    pub(super) fn topic_name(&self, id: TopicId) -> Option<&str> {
        self.topics
            .iter()
            .find(|known| known.handle.as_ptr() as usize == id.0)
            .and_then(|known| known.name.to_str().ok())
    }

    /// One past the newest offset of a partition, as the last fetch said.
    pub(super) fn end_offset(&self, topic: TopicId, partition: i32) -> Option<i64> {
        let known = self
            .topics
            .iter()
            .find(|known| known.handle.as_ptr() as usize == topic.0)?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client is alive, the name is a C string.
        unsafe {
            sys::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                known.name.as_ptr(),
                partition,
                &mut low,
                &mut high,
            );
        }
        (high >= 0).then_some(high)
    }

    /// Fills in how far each partition of the list was read: one past the last record or control record that was taken
    /// out of a queue; no offset where nothing was since the fetch began or was sought. It runs behind what is fetched
    /// and queued, and error entries move it too.
    pub(super) fn consumed_positions(&self, list: &mut TopicPartitionList) {
        // SAFETY: client and list are alive; the call only writes offset and error of the list's elements.
        unsafe {
            sys::rd_kafka_position(self.consumer.client().native_ptr(), list.ptr());
        }
    }

    /// Gives up to `max` messages to `each`, without waiting; returns how many there were.
    pub(super) fn take(&mut self, max: usize, mut each: impl FnMut(Message)) -> usize {
        let room = max.min(self.buffer.len());
        // SAFETY: the queue is alive and the buffer has room; this is the only thread that takes from the queue, and
        // the queue is not the consumer's own (whose rebalance events the call would swallow).
        let taken = unsafe {
            sys::rd_kafka_consume_batch_queue(
                self.records.as_ptr(),
                0,
                self.buffer.as_mut_ptr(),
                room,
            )
        };
        let taken = usize::try_from(taken).unwrap_or(0);
        LIVE.set(LIVE.get() + taken);
        for (place, &message) in self.buffer[..taken].iter().enumerate() {
            if let Some(&later) = self.buffer[..taken].get(place + PREFETCH) {
                prefetch(later);
            }
            if let Some(message) = NonNull::new(message) {
                each(Message(message));
            }
        }
        taken
    }

    /// Sends a commit; its answer comes as an event, to the context's `commit_callback`. (librdkafka's plain commit
    /// answers an asynchronous caller only through a callback that the bindings do not set.)
    ///
    /// # Errors
    /// librdkafka's code, when it could not be sent.
    pub(super) fn commit(&self, list: &TopicPartitionList) -> Result<(), RDKafkaErrorCode> {
        // SAFETY: client, list and queue are alive; the list is copied.
        let error = unsafe {
            sys::rd_kafka_commit_queue(
                self.consumer.client().native_ptr(),
                list.ptr(),
                self.events.as_ptr(),
                None,
                std::ptr::null_mut(),
            )
        };
        match error {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(error.into()),
        }
    }

    /// Says that the consumer has left its group, so that its destructor has nothing to wait for.
    pub(super) fn set_left_group(&mut self) {
        self.left_group = true;
    }
}

/// Releases the queues, then the client. A client with a record alive somewhere (in a worker that hangs) is left
/// behind instead, since its destructor would wait for ever; so is one that could not leave its group in time.
impl<C: ConsumerContext> Drop for Connection<C> {
    fn drop(&mut self) {
        self.wake_on_events(-1);
        for known in self.topics.drain(..) {
            // SAFETY: made by `topic_id` and destroyed once.
            unsafe { sys::rd_kafka_topic_destroy(known.handle.as_ptr()) }
        }
        let records = LIVE.get();
        if !self.left_group || records > 0 {
            let left_group = self.left_group;
            tracing::warn!(
                records,
                left_group,
                "the Kafka client is left behind: it cannot end cleanly"
            );
            return;
        }
        for queue in [self.records, self.events] {
            // SAFETY: made in `new` and destroyed once: nothing uses `self` after this.
            unsafe { sys::rd_kafka_queue_destroy(queue.as_ptr()) }
        }
        // SAFETY: dropped once; nothing uses `self` after this.
        unsafe { ManuallyDrop::drop(&mut self.consumer) }
    }
}

/// Queues a record with a producer whose delivery opaque is the group; librdkafka copies the bytes. Header names and
/// values go through as they are, text or not (G7).
///
/// # Errors
/// librdkafka's code; the group is then not told anything.
pub(crate) fn produce<C>(
    client: &Client<C>,
    record: &Outgoing<'_>,
    group: &Arc<EmitGroup>,
) -> Result<(), RDKafkaErrorCode>
where
    C: ProducerContext<DeliveryOpaque = Arc<EmitGroup>>,
{
    let topic = CString::new(record.topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    let (key, key_len) = parts(record.key);
    let (value, value_len) = parts(record.value);
    let group = Arc::into_raw(Arc::clone(group));
    // SAFETY: the client is alive; all pointers are valid for the call, which copies key and value (F_COPY); on success
    // it owns the headers, and the group comes back once, to the context's `delivery`; on failure both are still ours.
    unsafe {
        let headers = native_headers(record.headers);
        let error = sys::rd_kafka_producev(
            client.native_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
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
            group.cast::<c_void>().cast_mut(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            headers,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        drop(Arc::from_raw(group));
        if !headers.is_null() {
            sys::rd_kafka_headers_destroy(headers);
        }
        Err(error.into())
    }
}

/// Pointer and length as librdkafka wants them: null for null.
fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((std::ptr::null(), 0), |bytes| {
        (bytes.as_ptr().cast(), bytes.len())
    })
}

/// A header list of librdkafka's with the headers of a block; null for none.
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

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
