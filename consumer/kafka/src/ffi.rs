//! librdkafka's memory and queues: the only module of the service with calls into the C library.
//!
//! Numbers in `consumer` such as "rule 1" are the five rules under which reading batches from an application queue is
//! correct: 1 forward before every assign, start offset in the list; 2 after a partition's error entry seek back once
//! instead of trusting a gap; 3 drop redeliveries; 4 serve events until their queue is empty; 5 drop partition lists
//! before the client.

mod abandoned;
mod admin;
mod create_topics;
mod headers;
mod message;
mod metadata;
pub(super) mod mock;
mod produce;
mod record;
mod reports;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use sluicegate_abi::lend::RecordBytes;
use sluicegate_abi::record::Parts;
use sluicegate_engine::record::Record;

pub use record::RecordBuf;

pub(super) use admin::{Answer, OffsetSpec};
pub use create_topics::{NewTopic, TopicNotCreated, create_topics};
pub(super) use message::Message;
use message::{PREFETCH, prefetch};
pub(super) use metadata::{NoLeader, TopicState, brokers_answer};
pub(super) use produce::{Handle, Topic, produce};
#[cfg(test)]
pub(super) use reports::break_for_test;
pub(super) use reports::{ReportQueue, Reported, Reports, flush};

thread_local! {
    /// Records in the client's memory that this thread holds. A client must not be destroyed while one is alive: its
    /// destructor would wait forever.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Identity of a topic inside one client; it stays the same while a [`Connection`] knows the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicId(pub(super) usize);

// librdkafka's codes, read as numbers: a newer broker may send one that the bindings' enum does not have.
unsafe extern "C" {
    #[link_name = "rd_kafka_err2str"]
    safe fn error_text(code: c_int) -> *const c_char;
    #[cfg(raw_headers)]
    safe fn sluicegate_headers_shim_fits() -> c_int;
}

// SAFETY: the parts of a record lie behind boxes that are boxed themselves, and so do not move with it, or in the fetch
// buffer of a message, which librdkafka keeps as long as the message. Nothing writes to them.
unsafe impl RecordBytes for RecordBuf {
    #[inline]
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

/// librdkafka's text for an error code.
pub(super) fn describe(code: i32) -> String {
    let text = error_text(code);
    // SAFETY: a static string (or one of a static ring for unknown codes), never null.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// One element of a partition list.
#[derive(Debug)]
pub(super) struct ListEntry {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) leader_epoch: Option<i32>,
    pub(super) metadata: String,
    /// 0 if there is none.
    pub(super) error_code: i32,
}

/// Reads a partition list. Metadata that is not UTF-8 (from another application) is read as far as it is valid.
pub(super) fn list_entries(list: &TopicPartitionList) -> Vec<ListEntry> {
    // SAFETY: the list is alive for the borrow.
    unsafe { list_entries_at(list.ptr()) }
}

/// # Safety
/// `list` is alive.
unsafe fn list_entries_at(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<ListEntry> {
    // SAFETY: the list holds `cnt` initialised elements.
    unsafe {
        let count = (*list).cnt as usize;
        (0..count)
            .map(|index| entry_of((*list).elems.add(index)))
            .collect()
    }
}

/// # Safety
/// `element` is alive.
unsafe fn entry_of(element: *const sys::rd_kafka_topic_partition_t) -> ListEntry {
    // SAFETY: the element is alive and everything is copied; the error is read as a number.
    unsafe {
        let metadata = bytes((*element).metadata, (*element).metadata_size);
        let leader_epoch = sys::rd_kafka_topic_partition_get_leader_epoch(element);
        ListEntry {
            topic: CStr::from_ptr((*element).topic)
                .to_string_lossy()
                .into_owned(),
            partition: (*element).partition,
            offset: (*element).offset,
            leader_epoch: (leader_epoch >= 0).then_some(leader_epoch),
            metadata: String::from_utf8_lossy(metadata.unwrap_or_default()).into_owned(),
            error_code: (&raw const (*element).err).cast::<i32>().read(),
        }
    }
}

/// Sets the leader epochs of a list's elements, in order.
pub(super) fn set_leader_epochs(
    list: &mut TopicPartitionList,
    epochs: impl Iterator<Item = Option<i32>>,
) {
    let list = list.ptr();
    // SAFETY: the list is ours to change for the borrow, and `zip` stays within its elements.
    unsafe {
        let count = (*list).cnt as usize;
        for (index, epoch) in (0..count).zip(epochs) {
            let element = (*list).elems.add(index);
            sys::rd_kafka_topic_partition_set_leader_epoch(element, epoch.unwrap_or(-1));
        }
    }
}

/// A topic handle that keeps the topic's identity in the client alive.
struct KnownTopic {
    handle: NonNull<sys::rd_kafka_topic_t>,
    name: CString,
}

/// A client with an application queue and one for responses; all its queues wake one descriptor.
pub(super) struct Connection<C: ConsumerContext> {
    consumer: ManuallyDrop<BaseConsumer<C>>,
    records: NonNull<sys::rd_kafka_queue_t>,
    events: NonNull<sys::rd_kafka_queue_t>,
    answers: NonNull<sys::rd_kafka_queue_t>,
    topics: Vec<KnownTopic>,
    buffer: Vec<*mut sys::rd_kafka_message_t>,
    wake: Arc<OwnedFd>,
    left_group: bool,
}

impl<C: ConsumerContext> Connection<C> {
    /// Creates the application queue; `wake` gets an 8-byte 1 whenever an empty queue gets an entry.
    pub(super) fn new(consumer: BaseConsumer<C>, wake: Arc<OwnedFd>, batch: usize) -> Option<Self> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client is alive; each call gives a handle that is destroyed in `drop`.
        let (records, events, answers) = unsafe {
            (
                NonNull::new(sys::rd_kafka_queue_new(client))?,
                NonNull::new(sys::rd_kafka_queue_get_consumer(client))?,
                NonNull::new(sys::rd_kafka_queue_new(client))?,
            )
        };
        let connection = Self {
            consumer: ManuallyDrop::new(consumer),
            records,
            events,
            answers,
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
        for queue in [self.records, self.events, self.answers] {
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

    /// Number of events that [`BaseConsumer::poll`] has yet to serve (rule 4).
    pub(super) fn events_waiting(&self) -> usize {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_length(self.events.as_ptr()) }
    }

    /// The id that the group's coordinator gave this client, empty while it is not a member, and its generation (member
    /// epoch), not above zero before the first join has succeeded. Queries librdkafka's main thread.
    pub(super) fn membership(&self) -> (String, i32) {
        // SAFETY: the client is alive; the metadata is ours, its id a C string that is copied before it is destroyed.
        unsafe {
            let metadata =
                sys::rd_kafka_consumer_group_metadata(self.consumer.client().native_ptr());
            if metadata.is_null() {
                return (String::new(), 0);
            }
            let id = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
            let id = CStr::from_ptr(id).to_string_lossy().into_owned();
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            (id, generation)
        }
    }

    /// Forwards the records of a partition to the application queue. Rule 1: to be called before every assign, because
    /// stopping a fetch removes the forward and leaves the partition without deliveries.
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

    /// The identity by which messages refer to a topic.
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

    /// Name of a topic whose identity was requested with [`Self::topic_id`].
    pub(super) fn topic_name(&self, id: TopicId) -> Option<&str> {
        self.topics
            .iter()
            .find(|known| known.handle.as_ptr() as usize == id.0)
            .and_then(|known| known.name.to_str().ok())
    }

    #[cfg(raw_headers)]
    fn known(&self, id: TopicId) -> Option<&KnownTopic> {
        let mut topics = self.topics.iter();
        topics.find(|known| known.handle.as_ptr() as usize == id.0)
    }

    /// The log end offset of a partition, as of the last fetch.
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

    /// Sets the consumed position of each partition of the list: one past the last record or control record taken from
    /// a queue; no offset if there was none since the fetch started or was sought. It lags behind what is fetched and
    /// queued, and error entries move it too.
    pub(super) fn consumed_positions(&self, list: &mut TopicPartitionList) {
        // SAFETY: client and list are alive; the call only writes offset and error of the list's elements.
        unsafe {
            sys::rd_kafka_position(self.consumer.client().native_ptr(), list.ptr());
        }
    }

    /// Passes up to `max` messages to `each`, without blocking; returns their number.
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
                each(Message::owned(message));
            }
        }
        taken
    }

    /// Sends a commit; its result arrives as an event, in the context's `commit_callback`. (librdkafka's plain commit
    /// reports an asynchronous result only to a callback that the bindings do not set.)
    ///
    /// # Errors
    /// librdkafka's code, if it could not be sent.
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

    /// Notes that the consumer has left its group, so that its destructor has nothing to wait for.
    pub(super) fn set_left_group(&mut self) {
        self.left_group = true;
    }
}

/// Releases the queues, then the client. A client with a live record (in a hung worker) is leaked instead, because its
/// destructor would wait forever; so is one that could not leave its group in time.
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
                "the Kafka client is leaked: it cannot be closed cleanly"
            );
            for queue in [self.records, self.events, self.answers] {
                abandoned::drain(queue);
            }
            return;
        }
        for queue in [self.records, self.events, self.answers] {
            // SAFETY: made in `new` and destroyed once: nothing uses `self` after this.
            unsafe { sys::rd_kafka_queue_destroy(queue.as_ptr()) }
        }
        // SAFETY: dropped once; nothing uses `self` after this.
        unsafe { ManuallyDrop::drop(&mut self.consumer) }
    }
}

#[cfg(test)]
#[path = "ffi_tests.rs"]
mod tests;
