//! Handler specs: plugin, route and limits of a handler. A [`HandlerSpec`] is valid by construction.

mod circles;
mod dead_letter;
mod handler_config;
mod predicate;
mod predicate_read;
mod predicate_schema;
mod read;
mod route;
mod rules;
mod table;
mod version;
mod write;

use std::time::Duration;

pub use circles::{Circle, circles};
pub use dead_letter::{DeadLetter, DeadLetterSource, dead_letter_source, dead_letter_topic};
pub use handler_config::HandlerConfig;
pub use predicate::{PartitionTest, Predicate, Test};
pub(crate) use predicate_schema::definitions;
pub use read::read_spec;
pub use read::{LocatedSpec, Origin, read_config, read_from, read_located};
pub use route::{Route, TopicMatcher, TopicPattern, is_internal_topic};
pub(crate) use rules::check_name;
pub(crate) use table::SPEC;
pub use version::{VersionRequirement, VersionRequirementError};

/// A handler as declared by an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct HandlerSpec {
    /// Unique name: lower-case letters, digits and `-`, at most 63.
    pub name: String,
    /// Catalogue name of the plugin, or of a handler that a plugin exports; never a path.
    pub plugin: String,
    /// Accepted plugin versions; the newest match serves.
    pub version: VersionRequirement,
    /// Declared gate state.
    pub enabled: bool,
    /// Records that the handler receives.
    pub route: Route,
    /// Ordering guarantee.
    pub order: Order,
    /// Worker threads of the pool, with one instance each; at least 1.
    pub workers: usize,
    /// Shared pool: handlers of one plugin version with the same pool name share its threads.
    pub pool: Option<String>,
    /// Limits on in-flight records of this handler, per Kafka client.
    pub max_in_flight: InFlightLimit,
    /// Maximum time on one record, after which the call is cancelled and its worker quarantined (G14).
    pub timeout: Duration,
    /// Retries of failed attempts.
    pub retry: Retry,
    /// Destination of records whose attempts are exhausted.
    pub dead_letter: DeadLetter,
    /// Treatment of a tripped handler's records.
    pub on_failure: OnFailure,
    /// Number of instance failures that trip the handler.
    pub restart: Restart,
    /// The handler's own config.
    pub config: HandlerConfig,
}

/// Ordering guarantee (G4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Per key: records of one key are processed one at a time.
    #[default]
    Key,
    /// Per partition: records of one partition are processed one at a time.
    Partition,
    /// No ordering.
    Unordered,
}

/// Limits on in-flight records of one handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightLimit {
    /// Maximum records; at least 1.
    pub records: u64,
    /// Maximum bytes; at least 1.
    pub bytes: u64,
}

/// Retries of failed attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Maximum attempts, including the first; at least 1.
    pub max_attempts: u32,
    /// Delay between attempts.
    pub backoff: Backoff,
}

/// Exponential backoff.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay before the second attempt.
    pub delay: Duration,
    /// Growth factor from one delay to the next; at least 1.
    pub multiplier: f64,
    /// Maximum delay; at least `delay`.
    pub max_delay: Duration,
    /// Random share of each delay, 0 to 1.
    pub jitter: f64,
}

/// Treatment of a tripped handler's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Hold the handler's partitions until an operator or a new generation resets it.
    #[default]
    Hold,
    /// Send the records to the dead-letter topic.
    DeadLetter,
}

/// When instance failures, with no acked record in between, trip the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Failures tolerated within the window; one more trips the handler, so that 0 trips at the first.
    pub max_restarts: u32,
    /// Time window in which failures are counted.
    pub restart_window: Duration,
}
