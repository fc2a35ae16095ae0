//! How a handler is run, as its spec and generation say.

use std::sync::Arc;

use super::targets::Target;
use crate::settlement::RetryPolicy;

/// Ordering guarantee of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Records with the same key in the same partition are handled in order.
    Key,
    /// Records of a partition are handled in order.
    Partition,
    /// No order.
    Unordered,
}

/// What happens to the records of a failed handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are held (G1).
    Hold,
    /// They go to the dead-letter topic.
    DeadLetter,
}

/// How a handler is run; replaced as a whole by each plan.
#[derive(Clone)]
pub struct HandlerSettings {
    /// The spec's name.
    pub name: Arc<str>,
    /// What runs its records; none while its gate has been closed since it was declared.
    pub targets: Vec<Target>,
    /// Whether its gate is open.
    pub gate_open: bool,
    /// Its ordering guarantee.
    pub order: Order,
    /// Its retry policy.
    pub retry: RetryPolicy,
    /// Its dead-letter topic; `{topic}` stands for the record's topic.
    pub dead_letter_topic: Arc<str>,
    /// What happens to its records while it is failed.
    pub on_failure: OnFailure,
    /// Number of records of its first calls, of which the cost is not known: with one, a slow handler's are spread over its workers.
    pub first_call: u32,
    /// Maximum number of records in flight.
    pub max_in_flight_records: u32,
    /// Maximum number of bytes in flight.
    pub max_in_flight_bytes: u64,
}
