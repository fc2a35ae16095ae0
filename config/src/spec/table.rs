//! The fields of a handler's spec: names, meanings, bounds and defaults.

use std::time::Duration;

use serde_json::json;

use super::rules::{DEAD_LETTER_TOPIC, NAME, PLUGIN, POOL, TOPIC, VERSION};
use super::{OnFailure, Order, predicate_schema};
use crate::document::{Field, Kind, Later, Need, Object, Word, words};

impl Word for Order {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("key", Self::Key),
        ("partition", Self::Partition),
        ("unordered", Self::Unordered),
    ];
}

impl Word for OnFailure {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hold", Self::Hold), ("dead_letter", Self::DeadLetter)];
}

const NOT_YET: &str = "is not available yet; leave it out";

const fn later(name: &'static str) -> Later {
    Later {
        name,
        reason: NOT_YET,
    }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
    }
}

const HOUR_MS: u64 = 3_600_000;

/// The whole spec.
pub(crate) static SPEC: Object = Object {
    doc: "Spec of one handler.",
    fields: &[
        Field {
            name: "name",
            doc: "Unique name of the handler: lower-case letters, digits and -.",
            kind: Kind::Text(&NAME),
            need: Need::Required,
        },
        Field {
            name: "plugin",
            doc: "Catalogue name of the plugin, or of a handler that a plugin exports.",
            kind: Kind::Text(&PLUGIN),
            need: Need::Required,
        },
        Field {
            name: "version",
            doc: "Versions that may serve: exact (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *; the newest match serves.",
            kind: Kind::Text(&VERSION),
            need: Need::Default("*"),
        },
        Field {
            name: "enabled",
            doc: "The gate: open or shut.",
            kind: Kind::Flag,
            need: Need::Default("true"),
        },
        Field {
            name: "route",
            doc: "Which records the handler wants.",
            kind: Kind::Object(&ROUTE),
            need: Need::Required,
        },
        Field {
            name: "order",
            doc: "What is kept in order.",
            kind: Kind::Choice {
                words: words::<Order>,
                later: &[],
            },
            need: Need::Default("key"),
        },
        Field {
            name: "workers",
            doc: "Threads of the pool, one instance on each.",
            kind: Kind::Count { min: 1, max: 1024 },
            need: Need::Default("4"),
        },
        Field {
            name: "pool",
            doc: "Handlers of one plugin version that name the same pool share its threads and bounds.",
            kind: Kind::Text(&POOL),
            need: Need::Optional,
        },
        Field {
            name: "group",
            doc: "The consumer group that the handler reads in.",
            kind: Kind::Choice {
                words: || vec!["shared"],
                later: &[Later {
                    name: "dedicated",
                    reason: "is not available yet; leave `group` out",
                }],
            },
            need: Need::Default("shared"),
        },
        Field {
            name: "gate_closed",
            doc: "What becomes of records while the gate is shut.",
            kind: Kind::Choice {
                words: || vec!["skip"],
                later: &[Later {
                    name: "hold",
                    reason: "is not available yet: it needs `group: dedicated`; leave `gate_closed` out",
                }],
            },
            need: Need::Default("skip"),
        },
        Field {
            name: "max_in_flight",
            doc: "Bounds on what is in flight in this handler.",
            kind: Kind::Object(&MAX_IN_FLIGHT),
            need: Need::Default("{}"),
        },
        Field {
            name: "timeout",
            doc: "Longest that one call may take before its worker is quarantined.",
            kind: millis(1, 24 * HOUR_MS),
            need: Need::Default("5s"),
        },
        Field {
            name: "retry",
            doc: "How failed attempts are repeated.",
            kind: Kind::Object(&RETRY),
            need: Need::Default("{}"),
        },
        Field {
            name: "dead_letter",
            doc: "Where what was given up goes.",
            kind: Kind::Object(&DEAD_LETTER),
            need: Need::Default("{}"),
        },
        Field {
            name: "on_failure",
            doc: "What becomes of the records of a tripped handler.",
            kind: Kind::Choice {
                words: words::<OnFailure>,
                later: &[],
            },
            need: Need::Default("hold"),
        },
        Field {
            name: "restart",
            doc: "How many deaths of its instances, with no record acked in between, trip the handler.",
            kind: Kind::Object(&RESTART),
            need: Need::Default("{}"),
        },
        Field {
            name: "config",
            doc: "The handler's own config; ${env:NAME} and ${file:PATH} are resolved in it.",
            kind: Kind::Custom {
                schema: || json!({ "type": "object" }),
            },
            need: Need::Default("{}"),
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

static ROUTE: Object = Object {
    doc: "Which records the handler wants.",
    fields: &[
        Field {
            name: "topics",
            doc: "Topics: an exact name, a glob (* and ?) or a /regex/.",
            kind: Kind::Texts {
                rule: &TOPIC,
                min: 1,
                max: 1000,
            },
            need: Need::Required,
        },
        Field {
            name: "when",
            doc: "Condition on headers, key and partition; all of the topics' records without it.",
            kind: Kind::Custom {
                schema: predicate_schema::reference,
            },
            need: Need::Optional,
        },
    ],
    later: &[later("cel")],
};

static MAX_IN_FLIGHT: Object = Object {
    doc: "Bounds on what is in flight in this handler.",
    fields: &[
        Field {
            name: "records",
            doc: "Most records.",
            kind: Kind::Count {
                min: 1,
                max: 10_000_000,
            },
            need: Need::Default("4096"),
        },
        Field {
            name: "bytes",
            doc: "Most bytes.",
            kind: Kind::Size {
                min: 1,
                max: 1 << 44,
            },
            need: Need::Default("16MiB"),
        },
    ],
    later: &[],
};

static RETRY: Object = Object {
    doc: "How failed attempts are repeated.",
    fields: &[
        Field {
            name: "max_attempts",
            doc: "Attempts in all, the first one included.",
            kind: Kind::Count {
                min: 1,
                max: 1_000_000,
            },
            need: Need::Default("5"),
        },
        Field {
            name: "backoff",
            doc: "The wait between attempts.",
            kind: Kind::Object(&BACKOFF),
            need: Need::Default("{}"),
        },
        Field {
            name: "overflow",
            doc: "What becomes of parked records beyond the bound.",
            kind: Kind::Choice {
                words: || vec!["hold"],
                later: &[Later {
                    name: "topic",
                    reason: "is not available yet; leave `overflow` out",
                }],
            },
            need: Need::Default("hold"),
        },
    ],
    later: &[],
};

static BACKOFF: Object = Object {
    doc: "The wait between attempts.",
    fields: &[
        Field {
            name: "delay",
            doc: "Before the second attempt.",
            kind: millis(0, HOUR_MS),
            need: Need::Default("100ms"),
        },
        Field {
            name: "multiplier",
            doc: "What each wait is multiplied by for the next.",
            kind: Kind::Number {
                min: 1.0,
                max: 1000.0,
            },
            need: Need::Default("2"),
        },
        Field {
            name: "max_delay",
            doc: "No wait is longer.",
            kind: millis(0, 24 * HOUR_MS),
            need: Need::Default("30s"),
        },
        Field {
            name: "jitter",
            doc: "Share of each wait that is random.",
            kind: Kind::Number { min: 0.0, max: 1.0 },
            need: Need::Default("0.2"),
        },
    ],
    later: &[],
};

static DEAD_LETTER: Object = Object {
    doc: "Where what was given up goes.",
    fields: &[
        Field {
            name: "topic",
            doc: "Topic name in which {topic} stands for the record's own topic.",
            kind: Kind::Text(&DEAD_LETTER_TOPIC),
            need: Need::Default("{topic}.dlt"),
        },
        Field {
            name: "create",
            doc: "Make the topic, with the source's partition count, when it is missing and the source is there.",
            kind: Kind::Flag,
            need: Need::Default("true"),
        },
    ],
    later: &[
        later("compat"),
        later("max_ratio"),
        later("max_consecutive"),
    ],
};

static RESTART: Object = Object {
    doc: "What trips the handler.",
    fields: &[
        Field {
            name: "max_restarts",
            doc: "Deaths within the window that are borne; 0 trips at the first.",
            kind: Kind::Count {
                min: 0,
                max: 1_000_000,
            },
            need: Need::Default("10"),
        },
        Field {
            name: "restart_window",
            doc: "The window.",
            kind: millis(1, 24 * HOUR_MS),
            need: Need::Default("1m"),
        },
    ],
    later: &[],
};
