//! The fields of a handler spec, each declared once: name, type, bounds, default and doc.

use std::time::Duration;

use serde_json::json;

use super::rules::{DEAD_LETTER_TOPIC, NAME, PLUGIN, POOL, TOPIC, VERSION};
use super::{HandlerConfig, OnFailure, Order, Route, VersionRequirement, predicate_schema};
use crate::document::{
    ChoiceValue, Node, Reserved, choice, count, custom, flag, millis, number, object, only, size,
    text, texts,
};
use crate::section;

impl ChoiceValue for Order {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("key", Self::Key),
        ("partition", Self::Partition),
        ("unordered", Self::Unordered),
    ];
}

impl ChoiceValue for OnFailure {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hold", Self::Hold), ("dead_letter", Self::DeadLetter)];
}

const NOT_YET: &str = "is not available yet; leave it out";

const fn later(name: &'static str) -> Reserved {
    Reserved {
        name,
        reason: NOT_YET,
    }
}

const HOUR_MS: u64 = 3_600_000;

section! {
    /// Spec of one handler.
    #[derive(Clone, Debug, PartialEq)]
    pub struct HandlerSpec {
        /// Unique name of the handler: lower-case letters, digits and -.
        name: String = text(&NAME), required;
        /// Catalogue name of the plugin, or NAME/HANDLER for one of several handlers that it exports.
        plugin: String = text(&PLUGIN), required;
        /// Accepted plugin versions: exact (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *; the newest match serves.
        version: VersionRequirement = text(&VERSION), default "*";
        /// The gate: true is open, false is closed.
        enabled: bool = flag(), default "true";
        /// Records that the handler receives.
        route as RouteFields => Route = object(), required;
        /// Ordering guarantee.
        order: Order = choice(&[]), default "key";
        /// Worker threads of the pool, with one instance each.
        workers: usize = count(1, 1024), default "4";
        /// Shared pool: handlers of one plugin version with the same pool name share its threads; their `workers` and `max_in_flight` must be equal.
        pool: String = text(&POOL), optional;
        /// Consumer group of the handler.
        group = only(|| vec!["shared"], &[Reserved {
            name: "dedicated",
            reason: "is not available yet; leave `group` out",
        }]), default "shared";
        /// Treatment of records while the gate is closed.
        gate_closed = only(|| vec!["skip"], &[Reserved {
            name: "hold",
            reason: "is not available yet: it requires `group: dedicated`; leave `gate_closed` out",
        }]), default "skip";
        /// Limits on in-flight records of this handler, per Kafka client.
        max_in_flight: InFlightLimit = object(), default "{}";
        /// Maximum time on one record (for a batch handler: since the last record that it reached), after which the call is cancelled and its worker quarantined.
        timeout: Duration = millis(1, 24 * HOUR_MS), default "5s";
        /// Retries of failed attempts.
        retry: Retry = object(), default "{}";
        /// Destination of records whose attempts are exhausted.
        dead_letter: DeadLetter = object(), default "{}";
        /// Treatment of a tripped handler's records.
        on_failure: OnFailure = choice(&[]), default "hold";
        /// When instance failures, with no acked record in between, trip the handler.
        restart: Restart = object(), default "{}";
        /// The handler's own config; ${env:NAME} and ${file:PATH} are resolved in it.
        config as Node => HandlerConfig = custom(|| json!({ "type": "object" })), default "{}";
    }
    reserved &[
        later("cel"),
        later("canary"),
        later("rate_limit"),
        later("shadow"),
        later("concurrency"),
        later("unload"),
        later("start"),
    ]
}

section! {
    /// Records that the handler receives.
    pub(crate) keys RouteFields {
        /// Topics: exact names, globs (* and ?) or /regexes/.
        topics: Vec<String> = texts(&TOPIC, 1, 1000), required;
        /// Condition on headers, key and partition. Default: all records of the topics.
        when: Node = custom(predicate_schema::reference), optional;
    }
    reserved &[later("cel")]
}

section! {
    /// Limits on in-flight records of this handler, per Kafka client.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InFlightLimit {
        /// Maximum records.
        records: u64 = count(1, 10_000_000), default "4096";
        /// Maximum bytes.
        bytes: u64 = size(1, 1 << 44), default "16MiB";
    }
}

section! {
    /// Retries of failed attempts.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Retry {
        /// Maximum attempts, including the first.
        max_attempts: u32 = count(1, 1_000_000), default "5";
        /// Delay between attempts.
        backoff: Backoff = object(), default "{}";
        /// Treatment of parked records beyond the limit.
        overflow = only(|| vec!["hold"], &[Reserved {
            name: "topic",
            reason: "is not available yet; leave `overflow` out",
        }]), default "hold";
    }
}

section! {
    /// Delay between attempts.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Backoff {
        /// Delay before the second attempt.
        delay: Duration = millis(0, HOUR_MS), default "100ms";
        /// Growth factor from one delay to the next.
        multiplier: f64 = number(1.0, 1000.0), default "2";
        /// Maximum delay.
        max_delay: Duration = millis(0, 24 * HOUR_MS), default "30s";
        /// Random share of each delay.
        jitter: f64 = number(0.0, 1.0), default "0.2";
    }
}

section! {
    /// Destination of records whose attempts are exhausted.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct DeadLetter {
        /// Topic name; {topic} is replaced by the record's topic.
        topic: String = text(&DEAD_LETTER_TOPIC), default "{topic}.dlt";
        /// Create a missing topic with the source topic's partition count, if the source topic exists.
        create: bool = flag(), default "true";
    }
    reserved &[
        later("compat"),
        later("max_ratio"),
        later("max_consecutive"),
    ]
}

section! {
    /// When instance failures, with no acked record in between, trip the handler.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Restart {
        /// Instance failures tolerated within the window without an acknowledged record in between; one more trips the handler.
        max_restarts: u32 = count(0, 1_000_000), default "10";
        /// Time window in which failures are counted.
        restart_window: Duration = millis(1, 24 * HOUR_MS), default "1m";
    }
}
