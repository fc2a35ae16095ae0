//! Handler specs: plugin, route and limits of a handler. A [`HandlerSpec`] is valid by construction.

mod circles;
mod dead_letter;
mod handler_config;
mod plugin;
mod predicate;
mod predicate_read;
mod predicate_schema;
mod read;
mod route;
mod rules;
mod table;
mod version;
mod write;

pub use circles::{Circle, circles};
pub use dead_letter::{DeadLetterSource, dead_letter_source, dead_letter_topic};
pub use handler_config::HandlerConfig;
pub use plugin::plugin_and_handler;
pub use predicate::{PartitionTest, Predicate, Test};
pub(crate) use predicate_schema::definitions;
pub use read::read_spec;
pub use read::{LocatedSpec, Origin, read_config, read_from, read_located};
use route::exact_names;
pub use route::{Route, TopicMatcher, TopicPattern, is_internal_topic};
pub use rules::NameError;
pub(crate) use rules::check_name;
pub use table::{Backoff, DeadLetter, HandlerSpec, InFlightLimit, Restart, Retry};
pub use version::{VersionRequirement, VersionRequirementError};

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

/// Treatment of a tripped handler's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Hold the handler's partitions until an operator or a new generation resets it.
    #[default]
    Hold,
    /// Send the records to the dead-letter topic.
    DeadLetter,
}
