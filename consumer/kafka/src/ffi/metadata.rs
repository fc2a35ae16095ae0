//! A client's metadata about topics that librdkafka has no public calls for.

use std::ffi::c_int;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::ConsumerContext;
use rdkafka_sys as sys;

#[cfg(raw_headers)]
use sluicegate_engine::partition::commit::TopicUuid;
use sluicegate_engine::source::FetchState;

use super::{Connection, TopicId, sluicegate_headers_shim_fits};

#[cfg(raw_headers)]
unsafe extern "C" {
    fn sluicegate_topic_state(
        topic: *const sys::rd_kafka_topic_t,
        high: *mut i64,
        low: *mut i64,
        partitions: *mut i32,
    ) -> c_int;
    fn sluicegate_leader(topic: *const sys::rd_kafka_topic_t, partition: i32) -> i32;
    fn sluicegate_fetch_error(topic: *const sys::rd_kafka_topic_t, partition: i32) -> c_int;
}

/// Whether a broker answers a request for the list of brokers within `timeout`.
pub(crate) fn brokers_answer<C: ClientContext>(client: &Client<C>, timeout: Duration) -> bool {
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let mut found = std::ptr::null();
    // SAFETY: the client is alive; on success the metadata is ours and destroyed once, on failure there is none.
    unsafe {
        let error = sys::rd_kafka_metadata(
            client.native_ptr(),
            0,
            std::ptr::null_mut(),
            &mut found,
            timeout_ms,
        );
        if found.is_null() || error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return false;
        }
        sys::rd_kafka_metadata_destroy(found);
    }
    true
}

/// A topic according to a client's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicState {
    /// Nothing is known yet.
    Unknown,
    /// It exists.
    Exists {
        /// Its id, which identifies one creation of the topic.
        id: TopicUuid,
        /// Its partition count.
        partitions: i32,
    },
    /// It does not exist, or the client may not describe it.
    Missing,
}

/// A partition has no leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoLeader;

impl<C: ConsumerContext> Connection<C> {
    /// The topic according to the client's current metadata; always "exists" if the shim is not built.
    ///
    /// librdkafka fetches by the id (Kafka 3.1 and later), so a record that was fetched under another id entered the
    /// queue after the id had changed.
    pub(crate) fn topic_state(&self, id: TopicId) -> TopicState {
        #[cfg(raw_headers)]
        if sluicegate_headers_shim_fits() != 0
            && let Some(known) = self.known(id)
        {
            let (mut high, mut low, mut partitions) = (0, 0, 0);
            // SAFETY: the topic is kept alive by `known`; the shim takes its lock.
            let state = unsafe {
                sluicegate_topic_state(known.handle.as_ptr(), &mut high, &mut low, &mut partitions)
            };
            return match state {
                0 => TopicState::Unknown,
                1 => TopicState::Exists {
                    id: TopicUuid::of_halves(high, low),
                    partitions,
                },
                _ => TopicState::Missing,
            };
        }
        let _ = id;
        TopicState::Exists {
            id: TopicUuid::default(),
            partitions: 0,
        }
    }

    /// The leader of a partition according to the client's metadata. An error means that it has none; `None` means
    /// unknown, if the shim is not built.
    pub(crate) fn leader(&self, id: TopicId, partition: i32) -> Result<Option<i32>, NoLeader> {
        #[cfg(raw_headers)]
        if sluicegate_headers_shim_fits() != 0
            && let Some(known) = self.known(id)
        {
            // SAFETY: the topic is kept alive by `known`; the shim takes the locks.
            let leader = unsafe { sluicegate_leader(known.handle.as_ptr(), partition) };
            return if leader >= 0 {
                Ok(Some(leader))
            } else {
                Err(NoLeader)
            };
        }
        let _ = (id, partition);
        Ok(None)
    }

    /// State of the fetching of a partition; unknown if the shim is not built.
    pub(crate) fn fetch_state(&self, id: TopicId, partition: i32) -> FetchState {
        #[cfg(raw_headers)]
        if sluicegate_headers_shim_fits() != 0
            && let Some(known) = self.known(id)
        {
            if self.leader(id, partition) == Err(NoLeader) {
                return FetchState::NoLeader;
            }
            // SAFETY: the topic is kept alive by `known`; the shim takes the locks.
            let error = unsafe { sluicegate_fetch_error(known.handle.as_ptr(), partition) };
            return match error {
                0 => FetchState::Fetching,
                _ => FetchState::Refused,
            };
        }
        let _ = (id, partition);
        FetchState::Unknown
    }
}
