//! The fields of a handler spec: names, docs, bounds and defaults.

use std::time::Duration;

use serde_json::json;

use super::rules::{DEAD_LETTER_TOPIC, NAME, PLUGIN, POOL, TOPIC, VERSION};
use super::{OnFailure, Order, predicate_schema};
use crate::document::{ChoiceValue, Field, FieldType, Presence, Reserved, SectionType, words};

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

const fn millis(min: u64, max: u64) -> FieldType {
    FieldType::Duration {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
    }
}

const HOUR_MS: u64 = 3_600_000;

/// The whole spec.
pub(crate) static SPEC: SectionType = SectionType {
    doc: "Spec of one handler.",
    fields: &[
        Field {
            name: "name",
            doc: "Unique name of the handler: lower-case letters, digits and -.",
            kind: FieldType::Text(&NAME),
            need: Presence::Required,
        },
        Field {
            name: "plugin",
            doc: "Catalogue name of the plugin, or of a handler that a plugin exports.",
            kind: FieldType::Text(&PLUGIN),
            need: Presence::Required,
        },
        Field {
            name: "version",
            doc: "Accepted plugin versions: exact (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *; the newest match serves.",
            kind: FieldType::Text(&VERSION),
            need: Presence::Default("*"),
        },
        Field {
            name: "enabled",
            doc: "The gate: true is open, false is closed.",
            kind: FieldType::Flag,
            need: Presence::Default("true"),
        },
        Field {
            name: "route",
            doc: "Records that the handler receives.",
            kind: FieldType::Object(&ROUTE),
            need: Presence::Required,
        },
        Field {
            name: "order",
            doc: "Ordering guarantee.",
            kind: FieldType::Choice {
                words: words::<Order>,
                later: &[],
            },
            need: Presence::Default("key"),
        },
        Field {
            name: "workers",
            doc: "Worker threads of the pool, with one instance each.",
            kind: FieldType::Count { min: 1, max: 1024 },
            need: Presence::Default("4"),
        },
        Field {
            name: "pool",
            doc: "Shared pool: handlers of one plugin version with the same pool name share its threads; their `workers` and `max_in_flight` must be equal.",
            kind: FieldType::Text(&POOL),
            need: Presence::Optional,
        },
        Field {
            name: "group",
            doc: "Consumer group of the handler.",
            kind: FieldType::Choice {
                words: || vec!["shared"],
                later: &[Reserved {
                    name: "dedicated",
                    reason: "is not available yet; leave `group` out",
                }],
            },
            need: Presence::Default("shared"),
        },
        Field {
            name: "gate_closed",
            doc: "Treatment of records while the gate is closed.",
            kind: FieldType::Choice {
                words: || vec!["skip"],
                later: &[Reserved {
                    name: "hold",
                    reason: "is not available yet: it requires `group: dedicated`; leave `gate_closed` out",
                }],
            },
            need: Presence::Default("skip"),
        },
        Field {
            name: "max_in_flight",
            doc: "Limits on in-flight records of this handler, per Kafka client.",
            kind: FieldType::Object(&MAX_IN_FLIGHT),
            need: Presence::Default("{}"),
        },
        Field {
            name: "timeout",
            doc: "Maximum time on one record (for a batch handler: since the last record that it reached), after which the call is cancelled and its worker quarantined.",
            kind: millis(1, 24 * HOUR_MS),
            need: Presence::Default("5s"),
        },
        Field {
            name: "retry",
            doc: "Retries of failed attempts.",
            kind: FieldType::Object(&RETRY),
            need: Presence::Default("{}"),
        },
        Field {
            name: "dead_letter",
            doc: "Destination of records whose attempts are exhausted.",
            kind: FieldType::Object(&DEAD_LETTER),
            need: Presence::Default("{}"),
        },
        Field {
            name: "on_failure",
            doc: "Treatment of a tripped handler's records.",
            kind: FieldType::Choice {
                words: words::<OnFailure>,
                later: &[],
            },
            need: Presence::Default("hold"),
        },
        Field {
            name: "restart",
            doc: "When instance failures, with no acked record in between, trip the handler.",
            kind: FieldType::Object(&RESTART),
            need: Presence::Default("{}"),
        },
        Field {
            name: "config",
            doc: "The handler's own config; ${env:NAME} and ${file:PATH} are resolved in it.",
            kind: FieldType::Custom {
                schema: || json!({ "type": "object" }),
            },
            need: Presence::Default("{}"),
        },
    ],
    later: &[
        later("cel"),
        later("canary"),
        later("rate_limit"),
        later("shadow"),
        later("concurrency"),
        later("unload"),
        later("start"),
    ],
};

static ROUTE: SectionType = SectionType {
    doc: "Records that the handler receives.",
    fields: &[
        Field {
            name: "topics",
            doc: "Topics: exact names, globs (* and ?) or /regexes/.",
            kind: FieldType::Texts {
                rule: &TOPIC,
                min: 1,
                max: 1000,
            },
            need: Presence::Required,
        },
        Field {
            name: "when",
            doc: "Condition on headers, key and partition. Default: all records of the topics.",
            kind: FieldType::Custom {
                schema: predicate_schema::reference,
            },
            need: Presence::Optional,
        },
    ],
    later: &[later("cel")],
};

static MAX_IN_FLIGHT: SectionType = SectionType {
    doc: "Limits on in-flight records of this handler, per Kafka client.",
    fields: &[
        Field {
            name: "records",
            doc: "Maximum records.",
            kind: FieldType::Count {
                min: 1,
                max: 10_000_000,
            },
            need: Presence::Default("4096"),
        },
        Field {
            name: "bytes",
            doc: "Maximum bytes.",
            kind: FieldType::Size {
                min: 1,
                max: 1 << 44,
            },
            need: Presence::Default("16MiB"),
        },
    ],
    later: &[],
};

static RETRY: SectionType = SectionType {
    doc: "Retries of failed attempts.",
    fields: &[
        Field {
            name: "max_attempts",
            doc: "Maximum attempts, including the first.",
            kind: FieldType::Count {
                min: 1,
                max: 1_000_000,
            },
            need: Presence::Default("5"),
        },
        Field {
            name: "backoff",
            doc: "Delay between attempts.",
            kind: FieldType::Object(&BACKOFF),
            need: Presence::Default("{}"),
        },
        Field {
            name: "overflow",
            doc: "Treatment of parked records beyond the limit.",
            kind: FieldType::Choice {
                words: || vec!["hold"],
                later: &[Reserved {
                    name: "topic",
                    reason: "is not available yet; leave `overflow` out",
                }],
            },
            need: Presence::Default("hold"),
        },
    ],
    later: &[],
};

static BACKOFF: SectionType = SectionType {
    doc: "Delay between attempts.",
    fields: &[
        Field {
            name: "delay",
            doc: "Delay before the second attempt.",
            kind: millis(0, HOUR_MS),
            need: Presence::Default("100ms"),
        },
        Field {
            name: "multiplier",
            doc: "Growth factor from one delay to the next.",
            kind: FieldType::Number {
                min: 1.0,
                max: 1000.0,
            },
            need: Presence::Default("2"),
        },
        Field {
            name: "max_delay",
            doc: "Maximum delay.",
            kind: millis(0, 24 * HOUR_MS),
            need: Presence::Default("30s"),
        },
        Field {
            name: "jitter",
            doc: "Random share of each delay.",
            kind: FieldType::Number { min: 0.0, max: 1.0 },
            need: Presence::Default("0.2"),
        },
    ],
    later: &[],
};

static DEAD_LETTER: SectionType = SectionType {
    doc: "Destination of records whose attempts are exhausted.",
    fields: &[
        Field {
            name: "topic",
            doc: "Topic name; {topic} is replaced by the record's topic.",
            kind: FieldType::Text(&DEAD_LETTER_TOPIC),
            need: Presence::Default("{topic}.dlt"),
        },
        Field {
            name: "create",
            doc: "Create a missing topic with the source topic's partition count, if the source topic exists.",
            kind: FieldType::Flag,
            need: Presence::Default("true"),
        },
    ],
    later: &[
        later("compat"),
        later("max_ratio"),
        later("max_consecutive"),
    ],
};

static RESTART: SectionType = SectionType {
    doc: "When instance failures, with no acked record in between, trip the handler.",
    fields: &[
        Field {
            name: "max_restarts",
            doc: "Instance failures tolerated within the window without an acknowledged record in between; one more trips the handler.",
            kind: FieldType::Count {
                min: 0,
                max: 1_000_000,
            },
            need: Presence::Default("10"),
        },
        Field {
            name: "restart_window",
            doc: "Time window in which failures are counted.",
            kind: millis(1, 24 * HOUR_MS),
            need: Presence::Default("1m"),
        },
    ],
    later: &[],
};
