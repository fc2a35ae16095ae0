//! Asynchronous queries of the cluster: the result arrives as an event in a queue of its own.
//!
//! Each request carries a token, which is returned with its result. A request that the cluster does not answer in time
//! gets an error from librdkafka.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka_sys as sys;
use sluicegate_engine::source::TopicPartition;

#[cfg(raw_headers)]
use super::sluicegate_headers_shim_fits;
use super::{Connection, ListEntry, describe, entry_of, list_entries_at};

#[cfg(raw_headers)]
unsafe extern "C" {
    fn sluicegate_find_coordinators_again(client: *mut sys::rd_kafka_t);
}

// Codes are read as numbers: a newer broker may send one that the bindings' enums do not have.
unsafe extern "C" {
    #[link_name = "rd_kafka_event_error"]
    fn event_error(event: *mut sys::rd_kafka_event_t) -> c_int;
    #[link_name = "rd_kafka_error_code"]
    fn error_code(error: *const sys::rd_kafka_error_t) -> c_int;
}

/// The result of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Committed offsets; negative if there is none.
    Committed(Vec<ListEntry>),
    /// Offsets that were queried; negative without a record at or after the time.
    Offsets(Vec<ListEntry>),
    /// The request as a whole failed, with librdkafka's error.
    Failed(String),
}

/// The position to query in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffsetSpec {
    Earliest,
    Latest,
    /// Milliseconds.
    Time(i64),
}

impl OffsetSpec {
    fn number(self) -> i64 {
        match self {
            // RD_KAFKA_OFFSET_SPEC_EARLIEST and _LATEST; a time is itself.
            Self::Earliest => -2,
            Self::Latest => -1,
            Self::Time(ms) => ms.max(0),
        }
    }
}

/// Options of one request, freed with the value.
struct Options(NonNull<sys::rd_kafka_AdminOptions_t>);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by `options` and destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) }
    }
}

impl<C: ConsumerContext> Connection<C> {
    fn options(
        &self,
        operation: sys::rd_kafka_admin_op_t,
        token: usize,
        timeout: Duration,
    ) -> Option<Options> {
        let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the client is alive; the token is a number that librdkafka returns unread.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(self.client(), operation);
            let options = Options(NonNull::new(options)?);
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options.0.as_ptr(),
                timeout,
                std::ptr::null_mut(),
                0,
            );
            sys::rd_kafka_AdminOptions_set_opaque(
                options.0.as_ptr(),
                std::ptr::without_provenance_mut::<c_void>(token),
            );
            Some(options)
        }
    }

    fn client(&self) -> *mut sys::rd_kafka_t {
        self.consumer().client().native_ptr()
    }

    /// Lets requests that wait, and the next ones, find their group's coordinator, which can have moved since an earlier one.
    pub(crate) fn find_coordinators_again(&self) {
        #[cfg(raw_headers)]
        if sluicegate_headers_shim_fits() != 0 {
            // SAFETY: the client is alive.
            unsafe { sluicegate_find_coordinators_again(self.client()) }
        }
    }

    /// Requests the offsets that `group` has committed for partitions; offsets of open transactions are an error until
    /// they are decided.
    pub(crate) fn ask_committed(
        &self,
        group: &str,
        partitions: &TopicPartitionList,
        token: usize,
        timeout: Duration,
    ) -> bool {
        let Ok(group) = CString::new(group) else {
            return false;
        };
        self.find_coordinators_again();
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
        let Some(options) = self.options(operation, token, timeout) else {
            return false;
        };
        // SAFETY: client, queue and list are alive; request and options are copied before the call returns, and the
        // setter's error, which is null for a valid value, may be destroyed either way.
        unsafe {
            sys::rd_kafka_error_destroy(sys::rd_kafka_AdminOptions_set_require_stable_offsets(
                options.0.as_ptr(),
                1,
            ));
            let mut request =
                sys::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), partitions.ptr());
            sys::rd_kafka_ListConsumerGroupOffsets(
                self.client(),
                &mut request,
                1,
                options.0.as_ptr(),
                self.answers.as_ptr(),
            );
            sys::rd_kafka_ListConsumerGroupOffsets_destroy(request);
        }
        true
    }

    /// Requests offsets of partitions. With `read_committed` the end is where open transactions start.
    pub(crate) fn ask_offsets(
        &self,
        wanted: &[(TopicPartition, OffsetSpec)],
        read_committed: bool,
        token: usize,
        timeout: Duration,
    ) -> bool {
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        let Some(options) = self.options(operation, token, timeout) else {
            return false;
        };
        let level = match read_committed {
            true => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
            false => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
        };
        let mut list = TopicPartitionList::with_capacity(wanted.len());
        for (at, _) in wanted {
            list.add_partition(&at.topic, at.partition);
        }
        // SAFETY: client and queue are alive; the list has the elements that were just added, in their order; list and
        // options are copied before the call returns.
        unsafe {
            for (index, (_, spec)) in wanted.iter().enumerate() {
                (*(*list.ptr()).elems.add(index)).offset = spec.number();
            }
            sys::rd_kafka_error_destroy(sys::rd_kafka_AdminOptions_set_isolation_level(
                options.0.as_ptr(),
                level,
            ));
            sys::rd_kafka_ListOffsets(
                self.client(),
                list.ptr(),
                options.0.as_ptr(),
                self.answers.as_ptr(),
            );
        }
        true
    }

    /// The next available result, with the token of its request.
    pub(crate) fn next_answer(&self) -> Option<(usize, Answer)> {
        // SAFETY: the queue is alive; the event is ours until it is destroyed, and everything read from it is copied.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.answers.as_ptr(), 0);
            if event.is_null() {
                return None;
            }
            let token = sys::rd_kafka_event_opaque(event).addr();
            let answer = match event_error(event) {
                0 => answer_of(event),
                code => Answer::Failed(words_of(event, code)),
            };
            sys::rd_kafka_event_destroy(event);
            Some((token, answer))
        }
    }

    /// The generation (classic protocol) or member epoch (KIP-848) of the client's group membership.
    pub(crate) fn generation(&self) -> Option<i32> {
        // SAFETY: the client is alive; the metadata is ours until it is destroyed.
        unsafe {
            let metadata = NonNull::new(sys::rd_kafka_consumer_group_metadata(self.client()))?;
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata.as_ptr());
            sys::rd_kafka_consumer_group_metadata_destroy(metadata.as_ptr());
            (generation >= 0).then_some(generation)
        }
    }

    /// The id of the cluster that responded last, if any has.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        // SAFETY: the client is alive; without a timeout the call only reads what is known. The string is ours.
        unsafe {
            let id = NonNull::new(sys::rd_kafka_clusterid(self.client(), 0))?;
            let text = CStr::from_ptr(id.as_ptr()).to_string_lossy().into_owned();
            sys::rd_kafka_mem_free(self.client(), id.as_ptr().cast());
            Some(text)
        }
    }
}

/// # Safety
/// `event` is alive and has no error.
unsafe fn answer_of(event: *mut sys::rd_kafka_event_t) -> Answer {
    // SAFETY: the result belongs to the event; each accessor gives what an event of its type has, and null otherwise.
    unsafe {
        match sys::rd_kafka_event_type(event) {
            sys::RD_KAFKA_EVENT_LISTCONSUMERGROUPOFFSETS_RESULT => {
                let mut count = 0;
                let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(event);
                let groups =
                    sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count);
                let Some(group) = (count > 0).then(|| *groups) else {
                    return Answer::Failed("the response contains no group".into());
                };
                match error_code(sys::rd_kafka_group_result_error(group)) {
                    0 => {
                        let list = sys::rd_kafka_group_result_partitions(group);
                        Answer::Committed(list_entries_at(list))
                    }
                    code => Answer::Failed(describe(code)),
                }
            }
            sys::RD_KAFKA_EVENT_LISTOFFSETS_RESULT => {
                let mut count = 0;
                let result = sys::rd_kafka_event_ListOffsets_result(event);
                let infos = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
                let entries = (0..count).map(|index| {
                    entry_of(sys::rd_kafka_ListOffsetsResultInfo_topic_partition(
                        *infos.add(index),
                    ))
                });
                Answer::Offsets(entries.collect())
            }
            other => Answer::Failed(format!("unexpected event of type {other}")),
        }
    }
}

/// # Safety
/// `event` is alive.
unsafe fn words_of(event: *mut sys::rd_kafka_event_t, code: c_int) -> String {
    // SAFETY: the text belongs to the event and is copied.
    let text = unsafe {
        let text = sys::rd_kafka_event_error_string(event);
        NonNull::new(text.cast_mut())
            .map(|text| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    };
    text.unwrap_or_else(|| describe(code))
}
