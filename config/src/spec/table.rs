//! The fields of a handler's spec: names, meanings, bounds and defaults.

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
            doc: "Versions that may serve: exact (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *; the newest match serves.",
            kind: FieldType::Text(&VERSION),
            need: Presence::Default("*"),
        },
        Field {
            name: "enabled",
            doc: "The gate: open or shut.",
            kind: FieldType::Flag,
            need: Presence::Default("true"),
        },
        Field {
            name: "route",
            doc: "Which records the handler wants.",
            kind: FieldType::Object(&ROUTE),
            need: Presence::Required,
        },
        Field {
            name: "order",
            doc: "What is kept in order.",
            kind: FieldType::Choice {
                words: words::<Order>,
                later: &[],
            },
            need: Presence::Default("key"),
        },
        Field {
            name: "workers",
            doc: "Threads of the pool, one instance on each.",
            kind: FieldType::Count { min: 1, max: 1024 },
            need: Presence::Default("4"),
        },
        Field {
            name: "pool",
            doc: "Handlers of one plugin version that name the same pool share its threads and bounds.",
            kind: FieldType::Text(&POOL),
            need: Presence::Optional,
        },
        Field {
            name: "group",
            doc: "The consumer group that the handler reads in.",
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
            doc: "What becomes of records while the gate is shut.",
            kind: FieldType::Choice {
                words: || vec!["skip"],
                later: &[Reserved {
                    name: "hold",
                    reason: "is not available yet: it needs `group: dedicated`; leave `gate_closed` out",
                }],
            },
            need: Presence::Default("skip"),
        },
        Field {
            name: "max_in_flight",
            doc: "Bounds on what is in flight in this handler.",
            kind: FieldType::Object(&MAX_IN_FLIGHT),
            need: Presence::Default("{}"),
        },
        Field {
            name: "timeout",
            doc: "Longest that one call may take before its worker is quarantined.",
            kind: millis(1, 24 * HOUR_MS),
            need: Presence::Default("5s"),
        },
        Field {
            name: "retry",
            doc: "How failed attempts are repeated.",
            kind: FieldType::Object(&RETRY),
            need: Presence::Default("{}"),
        },
        Field {
            name: "dead_letter",
            doc: "Where what was given up goes.",
            kind: FieldType::Object(&DEAD_LETTER),
            need: Presence::Default("{}"),
        },
        Field {
            name: "on_failure",
            doc: "What becomes of the records of a tripped handler.",
            kind: FieldType::Choice {
                words: words::<OnFailure>,
                later: &[],
            },
            need: Presence::Default("hold"),
        },
        Field {
            name: "restart",
            doc: "How many deaths of its instances, with no record acked in between, trip the handler.",
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
    doc: "Which records the handler wants.",
    fields: &[
        Field {
            name: "topics",
            doc: "Topics: an exact name, a glob (* and ?) or a /regex/.",
            kind: FieldType::Texts {
                rule: &TOPIC,
                min: 1,
                max: 1000,
            },
            need: Presence::Required,
        },
        Field {
            name: "when",
            doc: "Condition on headers, key and partition; all of the topics' records without it.",
            kind: FieldType::Custom {
                schema: predicate_schema::reference,
            },
            need: Presence::Optional,
        },
    ],
    later: &[later("cel")],
};

static MAX_IN_FLIGHT: SectionType = SectionType {
    doc: "Bounds on what is in flight in this handler.",
    fields: &[
        Field {
            name: "records",
            doc: "Most records.",
            kind: FieldType::Count {
                min: 1,
                max: 10_000_000,
            },
            need: Presence::Default("4096"),
        },
        Field {
            name: "bytes",
            doc: "Most bytes.",
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
    doc: "How failed attempts are repeated.",
    fields: &[
        Field {
            name: "max_attempts",
            doc: "Attempts in all, the first one included.",
            kind: FieldType::Count {
                min: 1,
                max: 1_000_000,
            },
            need: Presence::Default("5"),
        },
        Field {
            name: "backoff",
            doc: "The wait between attempts.",
            kind: FieldType::Object(&BACKOFF),
            need: Presence::Default("{}"),
        },
        Field {
            name: "overflow",
            doc: "What becomes of parked records beyond the bound.",
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
    doc: "The wait between attempts.",
    fields: &[
        Field {
            name: "delay",
            doc: "Before the second attempt.",
            kind: millis(0, HOUR_MS),
            need: Presence::Default("100ms"),
        },
        Field {
            name: "multiplier",
            doc: "What each wait is multiplied by for the next.",
            kind: FieldType::Number {
                min: 1.0,
                max: 1000.0,
            },
            need: Presence::Default("2"),
        },
        Field {
            name: "max_delay",
            doc: "No wait is longer.",
            kind: millis(0, 24 * HOUR_MS),
            need: Presence::Default("30s"),
        },
        Field {
            name: "jitter",
            doc: "Share of each wait that is random.",
            kind: FieldType::Number { min: 0.0, max: 1.0 },
            need: Presence::Default("0.2"),
        },
    ],
    later: &[],
};

static DEAD_LETTER: SectionType = SectionType {
    doc: "Where what was given up goes.",
    fields: &[
        Field {
            name: "topic",
            doc: "Topic name in which {topic} stands for the record's own topic.",
            kind: FieldType::Text(&DEAD_LETTER_TOPIC),
            need: Presence::Default("{topic}.dlt"),
        },
        Field {
            name: "create",
            doc: "Make the topic, with the source's partition count, when it is missing and the source is there.",
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
    doc: "What trips the handler.",
    fields: &[
        Field {
            name: "max_restarts",
            doc: "Deaths within the window that are borne; 0 trips at the first.",
            kind: FieldType::Count {
                min: 0,
                max: 1_000_000,
            },
            need: Presence::Default("10"),
        },
        Field {
            name: "restart_window",
            doc: "The window.",
            kind: millis(1, 24 * HOUR_MS),
            need: Presence::Default("1m"),
        },
    ],
    later: &[],
};
