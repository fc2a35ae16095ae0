//! A handler's spec: which plugin, which records, with what bounds; validated, so that whoever holds one need not check.

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
pub(crate) use read::{LocatedSpec, Origin, read_config, read_from, read_located};
pub use route::{Route, TopicMatcher, TopicPattern, is_internal_topic};
pub(crate) use rules::check_name;
pub(crate) use table::SPEC;
pub use version::{VersionRequirement, VersionRequirementError};

/// One handler as an operator declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct HandlerSpec {
    /// Unique name: lower-case letters, digits and `-`, at most 63.
    pub name: String,
    /// Catalogue name of the plugin, or of a handler that a plugin exports; never a path.
    pub plugin: String,
    /// Which versions may serve; the newest match does.
    pub version: VersionRequirement,
    /// The gate as the spec declares it.
    pub enabled: bool,
    /// Which records it wants.
    pub route: Route,
    /// What is kept in order.
    pub order: Order,
    /// Threads of its pool, one instance on each; at least 1.
    pub workers: usize,
    /// Handlers of one plugin version that name the same pool share its threads and bounds.
    pub pool: Option<String>,
    /// Bounds on what is in flight in this handler.
    pub max_in_flight: InFlightLimit,
    /// Longest that one call may take before its worker is quarantined (G14).
    pub timeout: Duration,
    /// How failed attempts are repeated.
    pub retry: Retry,
    /// Where what was given up goes.
    pub dead_letter: DeadLetter,
    /// What becomes of a tripped handler's records.
    pub on_failure: OnFailure,
    /// How many deaths of its instances trip it.
    pub restart: Restart,
    /// The handler's own config.
    pub config: HandlerConfig,
}

/// What is kept in order (G4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Records of one key, one at a time.
    #[default]
    Key,
    /// Records of one partition, one at a time.
    Partition,
    /// Nothing.
    Unordered,
}

/// Bounds on what is in flight in one handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightLimit {
    /// Records; at least 1.
    pub records: u64,
    /// Bytes; at least 1.
    pub bytes: u64,
}

/// How failed attempts are repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Attempts in all, the first one included; at least 1.
    pub max_attempts: u32,
    /// The wait between them.
    pub backoff: Backoff,
}

/// Waits that grow from one attempt to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Before the second attempt.
    pub delay: Duration,
    /// What each wait is multiplied by for the next; at least 1.
    pub multiplier: f64,
    /// No wait is longer; at least `delay`.
    pub max_delay: Duration,
    /// Share of each wait that is random, 0 to 1.
    pub jitter: f64,
}

/// What becomes of the records of a tripped handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Its partitions are held until an operator or a new generation resets it.
    #[default]
    Hold,
    /// They go to the dead-letter topic.
    DeadLetter,
}

/// How many deaths of its instances, with no record acked in between, trip a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Deaths within the window that trip it; 0 is the same as 1.
    pub max_restarts: u32,
    /// The window.
    pub restart_window: Duration,
}
