//! Creates topics, with the broker's own error text for those that it rejects: the bindings omit it.

use std::ffi::{CStr, CString, c_char, c_int};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::describe;

// librdkafka's codes, read as numbers: a newer broker may send one that the bindings' enum does not have.
unsafe extern "C" {
    #[link_name = "rd_kafka_event_error"]
    fn event_error(event: *mut sys::rd_kafka_event_t) -> c_int;
    #[link_name = "rd_kafka_topic_result_error"]
    fn topic_result_error(result: *const sys::rd_kafka_topic_result_t) -> c_int;
}

/// A topic to create, with the broker's default replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Number of its partitions.
    pub partitions: i32,
}

/// The client's code for a request without a response.
const TIMED_OUT: c_int = -185;
/// The broker's code for a topic that already exists.
const TOPIC_ALREADY_EXISTS: c_int = 36;

/// Whether a topic was created (`false`: it existed).
type TopicAnswer = Result<bool, TopicNotCreated>;

/// Why a topic was not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicNotCreated {
    /// The client cannot request such a topic.
    #[error("its name or partition count is invalid")]
    Invalid,
    /// The response does not name the topic.
    #[error("the broker returned no result for this topic")]
    NoResult,
    /// The broker's own error text, which the bindings omit.
    #[error("{0}")]
    Refused(String),
}

/// Creates topics and waits for the results, in the order of `topics`.
///
/// # Errors
/// If the cluster does not respond in time.
pub fn create_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[NewTopic],
    timeout: Duration,
) -> Result<Vec<TopicAnswer>, KafkaError> {
    let client = client.native_ptr();
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let mut error = [0 as c_char; 512];
    let mut answers = vec![Err(TopicNotCreated::NoResult); topics.len()];
    let mut wanted = Vec::with_capacity(topics.len());
    for (topic, answer) in topics.iter().zip(&mut answers) {
        match new_topic(topic) {
            Some(made) => wanted.push(made),
            None => *answer = Err(TopicNotCreated::Invalid),
        }
    }
    // SAFETY: the client is alive for the borrow. What is created here is destroyed here, once; the results are read
    // before their event is destroyed.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(
            client,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS,
        );
        for set in [
            sys::rd_kafka_AdminOptions_set_request_timeout,
            sys::rd_kafka_AdminOptions_set_operation_timeout,
        ] {
            set(options, timeout_ms, error.as_mut_ptr(), error.len());
        }
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_CreateTopics(client, wanted.as_mut_ptr(), wanted.len(), options, queue);
        // The request's own timeout ends the wait; the response gets another second.
        let event = sys::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(1_000));
        let read = read_answers(event, topics, &mut answers);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        for topic in wanted {
            sys::rd_kafka_NewTopic_destroy(topic);
        }
        read.map(|()| answers)
            .map_err(|code| KafkaError::AdminOp(code_of(code)))
    }
}

/// librdkafka's form of a topic to create; the caller destroys it.
fn new_topic(topic: &NewTopic) -> Option<*mut sys::rd_kafka_NewTopic_t> {
    let name = CString::new(topic.name.as_str()).ok()?;
    let mut error = [0 as c_char; 512];
    // SAFETY: name and error buffer are valid for the call, which copies the name.
    let made = unsafe {
        sys::rd_kafka_NewTopic_new(
            name.as_ptr(),
            topic.partitions,
            -1,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    (!made.is_null()).then_some(made)
}

/// Stores the event's result of each topic, or else the error of the request as a whole.
///
/// # Safety
/// `event` is null or alive.
unsafe fn read_answers(
    event: *mut sys::rd_kafka_event_t,
    topics: &[NewTopic],
    answers: &mut [TopicAnswer],
) -> Result<(), c_int> {
    if event.is_null() {
        return Err(TIMED_OUT);
    }
    // SAFETY: the event is alive and owns its results; names are C strings.
    unsafe {
        let result = sys::rd_kafka_event_CreateTopics_result(event);
        let code = event_error(event);
        if code != 0 || result.is_null() {
            return Err(code);
        }
        let mut count = 0;
        let results = sys::rd_kafka_CreateTopics_result_topics(result, &mut count);
        for at in 0..count {
            let result = *results.add(at);
            let name = CStr::from_ptr(sys::rd_kafka_topic_result_name(result)).to_bytes();
            let mut places = topics.iter().map(|topic| topic.name.as_bytes());
            if let Some(place) = places.position(|topic| topic == name) {
                answers[place] = topic_answer(result);
            }
        }
    }
    Ok(())
}

/// An error code that the bindings may lack, as theirs.
fn code_of(code: c_int) -> RDKafkaErrorCode {
    match code {
        TIMED_OUT => RDKafkaErrorCode::OperationTimedOut,
        -195 => RDKafkaErrorCode::BrokerTransportFailure,
        _ => RDKafkaErrorCode::Fail,
    }
}

/// # Safety
/// `result` belongs to an event that is alive.
unsafe fn topic_answer(result: *const sys::rd_kafka_topic_result_t) -> TopicAnswer {
    // SAFETY: as the caller promises; the text is a C string, null for none.
    unsafe {
        match topic_result_error(result) {
            0 => Ok(true),
            TOPIC_ALREADY_EXISTS => Ok(false),
            code => {
                let text = sys::rd_kafka_topic_result_error_string(result);
                let own = match text.is_null() {
                    true => String::new(),
                    false => CStr::from_ptr(text).to_string_lossy().into_owned(),
                };
                let described = describe(code);
                Err(TopicNotCreated::Refused(
                    match own.is_empty() || own == described {
                        true => described,
                        false => format!("{described} ({own})"),
                    },
                ))
            }
        }
    }
}
