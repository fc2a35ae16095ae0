//! A record's bytes and who owns them, and the queue they come from: the one place of the service that touches the
//! Kafka client's memory.
//!
//! A [`Lease`] keeps a fetched record alive. Batches carry plain pointers into it ([`Lease::view`]); the pump holds
//! the lease until every batch that points into it has come back, also when the worker hangs (G14).
//!
//! Numbers in `source` such as "rule 1" are the five rules under which batches from an application queue are sound:
//! 1 forward before every assign, start offset in the list; 2 after a partition's error entry seek back once instead
//! of believing a jump; 3 drop repeats; 4 serve events until their queue is empty; 5 drop partition lists before the
//! client.

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
use rdkafka_sys as sys;
use sluicegate_abi::{RawRecord, header_block, record_flag};

thread_local! {
    /// Records of the client's memory that this thread holds. A client must not be destroyed while one is alive: its
    /// destructor would wait for ever.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Set once the shim and the public call have disagreed on a record: from then on headers are re-encoded.
static PUBLIC_HEADERS: AtomicBool = AtomicBool::new(!cfg!(raw_headers));

/// A record's key, value and headers; frees them when dropped.
#[derive(Debug)]
pub struct Lease(Bytes);

#[derive(Debug)]
enum Bytes {
    Owned(Box<OwnedBytes>),
    Kafka(Message),
    /// A client's record whose headers went through the public call.
    Reencoded(Box<(Message, Box<[u8]>)>),
}

// A lease is a tag and a pointer: the pump's slab holds one a record.
const _: () = assert!(size_of::<Lease>() <= 16);

#[derive(Debug, Clone)]
struct OwnedBytes {
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
    headers: Box<[u8]>,
}

impl Lease {
    /// A lease on copies of the given bytes. `headers` is a block in Kafka's format, empty for none.
    pub fn owned(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) -> Self {
        Self(Bytes::Owned(Box::new(OwnedBytes {
            key: key.map(Into::into),
            value: value.map(Into::into),
            headers: headers.into(),
        })))
    }

    /// A lease on a fetched record. `check_headers` compares both ways to its headers.
    pub(super) fn of(message: Message, check_headers: bool) -> Self {
        if check_headers && !PUBLIC_HEADERS.load(Ordering::Relaxed) {
            check_header_block(&message);
        }
        if PUBLIC_HEADERS.load(Ordering::Relaxed) {
            let headers = message.public_header_block();
            if !headers.is_empty() {
                return Self(Bytes::Reencoded(Box::new((message, headers.into()))));
            }
        }
        Self(Bytes::Kafka(message))
    }

    /// Key; `None` is null.
    pub fn key(&self) -> Option<&[u8]> {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.key.as_deref(),
            Bytes::Kafka(message) => message.key(),
            Bytes::Reencoded(both) => both.0.key(),
        }
    }

    /// Value; `None` is a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.value.as_deref(),
            Bytes::Kafka(message) => message.value(),
            Bytes::Reencoded(both) => both.0.value(),
        }
    }

    /// Header block in Kafka's format; empty for none. Read it with `sluicegate_abi::header_block::Headers`.
    pub fn headers(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => &bytes.headers,
            Bytes::Kafka(message) => message.header_block(),
            Bytes::Reencoded(both) => &both.1,
        }
    }

    /// Whether it still holds memory of the Kafka client (a whole fetch buffer can hang on one record).
    pub fn pins_client_memory(&self) -> bool {
        !matches!(&self.0, Bytes::Owned(_))
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        self.key().map_or(0, <[u8]>::len)
            + self.value().map_or(0, <[u8]>::len)
            + self.headers().len()
    }

    /// A lease on a copy of the bytes, which holds no memory of the Kafka client.
    pub fn detach(&self) -> Self {
        Self::owned(self.key(), self.value(), self.headers())
    }

    /// Pointers to the bytes for a batch. The caller keeps the lease until the batch is back. `with_headers` says
    /// whether the reader wants the header block; without, it is left empty.
    pub fn view(&self, with_headers: bool) -> RawRecord {
        let key = self.key();
        let value = self.value();
        let headers = if with_headers { self.headers() } else { &[] };
        let mut flags = 0;
        if key.is_none() {
            flags |= record_flag::KEY_NULL;
        }
        if value.is_none() {
            flags |= record_flag::VALUE_NULL;
        }
        RawRecord {
            topic: std::ptr::null(),
            key: key.map_or(std::ptr::null(), <[u8]>::as_ptr),
            value: value.map_or(std::ptr::null(), <[u8]>::as_ptr),
            headers: headers.as_ptr(),
            topic_len: 0,
            key_len: key.map_or(0, |k| k.len() as u32),
            value_len: value.map_or(0, |v| v.len() as u32),
            headers_len: headers.len() as u32,
            offset: 0,
            timestamp_ms: 0,
            lane: 0,
            partition: 0,
            epoch: 0,
            attempt: 1,
            flags,
        }
    }
}

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

    fn key(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its key, null for a null key.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).key, (*message).key_len)
        }
    }

    fn value(&self) -> Option<&[u8]> {
        // SAFETY: the message is alive; pointer and length describe its value, null for a null value.
        unsafe {
            let message = self.0.as_ptr();
            bytes((*message).payload, (*message).len)
        }
    }

    /// The header block in place, or nothing where the shim is not built.
    fn header_block(&self) -> &[u8] {
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

    /// The header block, encoded from what librdkafka's public call gives.
    fn public_header_block(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message is alive; the list belongs to it and is only read; names are C strings.
        unsafe {
            let found = sys::rd_kafka_message_headers(self.0.as_ptr(), &mut headers);
            if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return out;
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
        out
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        LIVE.set(LIVE.get().wrapping_sub(1));
        // SAFETY: this was the only owner, and the client is alive: `Connection` outlives its messages.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// # Safety
/// `data` is null or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(data: *mut c_void, len: usize) -> Option<&'a [u8]> {
    let data = NonNull::new(data.cast::<u8>())?;
    // SAFETY: as the caller promises.
    Some(unsafe { std::slice::from_raw_parts(data.as_ptr(), len) })
}

/// Compares the block in place with the public call; on the first difference the public call is used for good.
fn check_header_block(message: &Message) {
    #[cfg(raw_headers)]
    let fits = sluicegate_headers_shim_fits() != 0;
    #[cfg(not(raw_headers))]
    let fits = false;
    if !(fits && message.header_block() == message.public_header_block()) {
        tracing::warn!(
            offset = message.offset(),
            "record headers cannot be read in place with this librdkafka; reading them the slow way"
        );
        PUBLIC_HEADERS.store(true, Ordering::Relaxed);
    }
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
        for &message in &self.buffer[..taken] {
            if let Some(message) = NonNull::new(message) {
                each(Message(message));
            }
        }
        taken
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

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
