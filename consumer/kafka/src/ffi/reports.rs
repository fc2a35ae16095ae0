//! A producer's delivery reports, taken from its queue in batches: one report has the records of one request to a broker.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka_sys as sys;

/// A record of which the outcome is known.
pub(crate) struct Reported<'r> {
    /// What [`super::produce()`] was given.
    pub(crate) opaque: u64,
    /// librdkafka's code; 0 if the record is acknowledged.
    pub(crate) code: i32,
    /// Its topic; empty for an acknowledged one.
    pub(crate) topic: &'r str,
    /// Bytes of its key and value.
    pub(crate) bytes: u64,
}

/// What a producer's queue has.
pub(crate) trait Reports {
    /// The outcome of a record.
    fn record(&mut self, record: &Reported<'_>);
    /// The report has no further record; what it has is over for [`flush`] from now on.
    fn end(&mut self);
    /// An error of the client.
    fn error(&mut self, code: i32, is_fatal: bool, reason: &str);
    /// A log line of the client, with syslog's level.
    fn log(&mut self, level: i32, facility: &str, text: &str);
}

// librdkafka's code, read as a number: a newer one may not be in the bindings' enum.
unsafe extern "C" {
    #[link_name = "rd_kafka_event_error"]
    fn event_error(event: *mut sys::rd_kafka_event_t) -> c_int;
}

// An opaque has a pump's number in its upper byte.
const _: () = assert!(size_of::<*mut c_void>() == size_of::<u64>());

/// The queue of a producer. Must be dropped before the producer.
pub(crate) struct ReportQueue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// The records of a report; kept for its memory.
    records: Vec<*const sys::rd_kafka_message_t>,
}

// SAFETY: librdkafka's queues may be polled from any thread; the pointers in `records` are used within one call only.
unsafe impl Send for ReportQueue {}

impl ReportQueue {
    /// The queue of a producer whose delivery reports are events.
    pub(crate) fn of<C: ClientContext>(client: &Client<C>) -> Option<Self> {
        // SAFETY: the client is alive; the reference to its queue is released in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_main(client.native_ptr()) };
        Some(Self {
            queue: NonNull::new(queue)?,
            records: Vec::new(),
        })
    }

    /// Waits for an event and handles it. Returns `false` if there was none.
    pub(crate) fn poll(&mut self, timeout: Duration, reports: &mut impl Reports) -> bool {
        let timeout_ms = timeout.as_millis().min(60_000) as c_int;
        // SAFETY: the queue is alive; the event is destroyed below, after its last use.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), timeout_ms) };
        if event.is_null() {
            return false;
        }
        // SAFETY: the event is alive and of the type that is asked for.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_DR => {
                    self.report(event, reports);
                    reports.end();
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let reason = CStr::from_ptr(sys::rd_kafka_event_error_string(event));
                    let is_fatal = sys::rd_kafka_event_error_is_fatal(event) != 0;
                    let reason = reason.to_string_lossy();
                    reports.error(event_error(event), is_fatal, reason.trim());
                }
                sys::RD_KAFKA_EVENT_LOG => log(event, reports),
                _ => {}
            }
            sys::rd_kafka_event_destroy(event);
        }
        true
    }

    /// # Safety
    /// The event is alive and a delivery report.
    unsafe fn report(&mut self, event: *mut sys::rd_kafka_event_t, reports: &mut impl Reports) {
        // SAFETY: the array has room for as many records as the event has; the records live as long as the event.
        unsafe {
            let count = sys::rd_kafka_event_message_count(event);
            self.records.resize(count, std::ptr::null());
            let count = sys::rd_kafka_event_message_array(event, self.records.as_mut_ptr(), count);
            for &record in &self.records[..count] {
                // Read as a number: the bindings' enum may not have it.
                let code = (&raw const (*record).err).cast::<i32>().read();
                let name = match code == 0 || (*record).rkt.is_null() {
                    true => "".into(),
                    false => {
                        CStr::from_ptr(sys::rd_kafka_topic_name((*record).rkt)).to_string_lossy()
                    }
                };
                reports.record(&Reported {
                    opaque: (*record)._private as u64,
                    code,
                    topic: &name,
                    bytes: ((*record).len + (*record).key_len) as u64,
                });
            }
        }
    }
}

/// # Safety
/// The event is alive and a log line.
unsafe fn log(event: *mut sys::rd_kafka_event_t, reports: &mut impl Reports) {
    let (mut facility, mut text, mut level) = (std::ptr::null(), std::ptr::null(), 0);
    // SAFETY: the strings live as long as the event.
    unsafe {
        if sys::rd_kafka_event_log(event, &mut facility, &mut text, &mut level) == 0 {
            let facility = CStr::from_ptr(facility).to_string_lossy();
            let text = CStr::from_ptr(text).to_string_lossy();
            reports.log(level, facility.trim(), text.trim());
        }
    }
}

impl Drop for ReportQueue {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and the client is alive.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// Sends what the producer has queued, and waits until every report of it has ended ([`Reports::end`]); another thread takes them
/// from the producer's queue. Returns whether that is so.
pub(crate) fn flush<C: ClientContext>(client: &Client<C>, timeout: Duration) -> bool {
    let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as c_int;
    // SAFETY: the client is alive.
    let error = unsafe { sys::rd_kafka_flush(client.native_ptr(), timeout_ms) };
    error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Makes a producer report a fatal error.
#[cfg(test)]
pub(crate) fn break_for_test<C: ClientContext>(client: &Client<C>, reason: &CStr) {
    let error = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    // SAFETY: the client is alive; the reason is copied.
    unsafe { sys::rd_kafka_test_fatal_error(client.native_ptr(), error, reason.as_ptr()) };
}
