//! The fields of the service config: names, meanings, bounds and defaults.

use std::time::Duration;

use super::rules::{ADDRESS, BROKERS, GROUP, LEVEL, MEMBER, PATH, START, VARIABLE};
use super::{Guarantee, LogFormat, OffsetOutOfRange, client_keys};
use crate::bridge::BRIDGE;
use crate::document::{ChoiceValue, Field, FieldType, Presence, Reserved, SectionType, words};
use crate::store::{ETCD, ZOOKEEPER};

impl ChoiceValue for Guarantee {
    const WORDS: &'static [(&'static str, Self)] = &[("at_least_once", Self::AtLeastOnce)];
}

impl ChoiceValue for OffsetOutOfRange {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("stop", Self::Stop),
        ("earliest", Self::Earliest),
        ("latest", Self::Latest),
    ];
}

impl ChoiceValue for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

const fn millis(min: u64, max: u64) -> FieldType {
    FieldType::Duration {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
    }
}

const HOUR_MS: u64 = 3_600_000;

/// The whole document.
pub(crate) static SERVICE: SectionType = SectionType {
    doc: "Config of `sluicegate run`.",
    fields: &[
        Field {
            name: "kafka",
            doc: "The cluster and the consumer group.",
            kind: FieldType::Object(&KAFKA),
            need: Presence::Default("{}"),
        },
        Field {
            name: "processing",
            doc: "Guarantee, bounds and deadlines.",
            kind: FieldType::Object(&PROCESSING),
            need: Presence::Default("{}"),
        },
        Field {
            name: "handlers",
            doc: "Where handler specs come from: exactly one source.",
            kind: FieldType::Object(&HANDLERS),
            need: Presence::Default("{}"),
        },
        Field {
            name: "plugins",
            doc: "Where plugins come from and which of them are loaded.",
            kind: FieldType::Object(&PLUGINS),
            need: Presence::Default("{}"),
        },
        Field {
            name: "admin",
            doc: "The admin HTTP server.",
            kind: FieldType::Object(&ADMIN),
            need: Presence::Default("{}"),
        },
        Field {
            name: "emit",
            doc: "What emitted records carry.",
            kind: FieldType::Object(&EMIT),
            need: Presence::Default("{}"),
        },
        Field {
            name: "logging",
            doc: "The service's own log.",
            kind: FieldType::Object(&LOGGING),
            need: Presence::Default("{}"),
        },
        Field {
            name: "bridge",
            doc: "Runs a bridge between etcd and ZooKeeper in this process too.",
            kind: FieldType::Object(&BRIDGE),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static KAFKA: SectionType = SectionType {
    doc: "The cluster and the consumer group.",
    fields: &[
        Field {
            name: "bootstrap_servers",
            doc: "Comma-separated host:port list of brokers to begin with.",
            kind: FieldType::Text(&BROKERS),
            need: Presence::Default("127.0.0.1:9092"),
        },
        Field {
            name: "group_id",
            doc: "Consumer group that all shared handlers read in.",
            kind: FieldType::Text(&GROUP),
            need: Presence::Default("sluicegate"),
        },
        Field {
            name: "clients",
            doc: "Kafka clients, each with a pump thread of its own. With several, each has a `group.instance.id` of its own if one is set: the number of the client, from 0, is put behind it (`-0`, `-1`).",
            kind: FieldType::Count { min: 1, max: 256 },
            need: Presence::Default("1"),
        },
        Field {
            name: "start",
            doc: "Where a partition without a committed offset begins: earliest, latest or an RFC 3339 time.",
            kind: FieldType::Text(&START),
            need: Presence::Default("earliest"),
        },
        Field {
            name: "client",
            doc: "Further librdkafka keys of consumers, and of all clients where they are about the connection; those that the service owns are refused with the key to use instead.",
            kind: FieldType::Custom {
                schema: client_keys::consumer_schema,
            },
            need: Presence::Default("{}"),
        },
        Field {
            name: "producer",
            doc: "Further librdkafka keys of producers, which write what handlers emit and dead letters. `message.max.bytes` is what a consumer can read and 1 MiB for headers, and `queue.buffering.max.kbytes` at least that: the queue bounds the memory that producing takes (about twice as much, since emitted records are kept until they are acknowledged).",
            kind: FieldType::Custom {
                schema: client_keys::producer_schema,
            },
            need: Presence::Default("{}"),
        },
    ],
    later: &[],
};

static PROCESSING: SectionType = SectionType {
    doc: "Guarantee, bounds and deadlines.",
    fields: &[
        Field {
            name: "guarantee",
            doc: "What a commit stands for.",
            kind: FieldType::Choice {
                words: words::<Guarantee>,
                later: &[Reserved {
                    name: "exactly_once",
                    reason: "is not available yet; leave `guarantee` out",
                }],
            },
            need: Presence::Default("at_least_once"),
        },
        Field {
            name: "max_uncommitted",
            doc: "Most records beyond the frontier, a partition; bounds the duplicates after a crash.",
            kind: FieldType::Count {
                min: 1,
                max: 10_000_000,
            },
            need: Presence::Default("10000"),
        },
        Field {
            name: "memory",
            doc: "Byte budget of records in flight in the whole process.",
            kind: FieldType::Size {
                min: 1 << 20,
                max: 1 << 44,
            },
            need: Presence::Default("256MiB"),
        },
        Field {
            name: "commit_interval",
            doc: "Time between commits of a frontier that moved.",
            kind: millis(10, HOUR_MS),
            need: Presence::Default("1s"),
        },
        Field {
            name: "drain_timeout",
            doc: "How long a stop or a revoke waits for what is in flight; a stop ends at most 5 s later, whatever the broker, stores and plugins do (let a supervisor wait as long: `TimeoutStopSec`, `stop_grace_period`, `terminationGracePeriodSeconds`). One that leaves records, commits or its place in the group behind says so and ends with exit code 1. A record that waits for its next attempt is left to the next owner, who counts its attempts anew.",
            kind: millis(0, HOUR_MS),
            need: Presence::Default("20s"),
        },
        Field {
            name: "stall_timeout",
            doc: "A frontier that stands still this long while records wait is reported as stalled.",
            kind: millis(100, 24 * HOUR_MS),
            need: Presence::Default("5m"),
        },
        Field {
            name: "offset_out_of_range",
            doc: "What to do when the offset to read is not in the log: stop the partition, or continue at the log's beginning or end once records in flight are settled.",
            kind: FieldType::Choice {
                words: words::<OffsetOutOfRange>,
                later: &[],
            },
            need: Presence::Default("stop"),
        },
    ],
    later: &[],
};

/// Where specs come from when no source is named.
pub(super) const DEFAULT_FOLDER: &str = "handlers.d";
/// How often that folder is re-read.
pub(super) const DEFAULT_RESCAN: &str = "5s";

static HANDLERS: SectionType = SectionType {
    doc: "Exactly one source of handler specs: file (when none is named), etcd or zookeeper.",
    fields: &[
        Field {
            name: "file",
            doc: "A watched folder, one spec a file.",
            kind: FieldType::Object(&FILE),
            need: Presence::Optional,
        },
        Field {
            name: "etcd",
            doc: "Keys in etcd.",
            kind: FieldType::Object(&ETCD),
            need: Presence::Optional,
        },
        Field {
            name: "zookeeper",
            doc: "Nodes in ZooKeeper.",
            kind: FieldType::Object(&ZOOKEEPER),
            need: Presence::Optional,
        },
        Field {
            name: "cache",
            doc: "File that keeps a store's last good specs, for a start while the store is away.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(".sluicegate/handlers.cache"),
        },
        Field {
            name: "require_fresh",
            doc: "Refuse to start from that file, also while what stands in the store is held back.",
            kind: FieldType::Flag,
            need: Presence::Default("false"),
        },
        Field {
            name: "references",
            doc: "What `config` in a store's keys may refer to by ${env:NAME} and ${file:PATH}: whoever writes control keys can read it.",
            kind: FieldType::Object(&REFERENCES),
            need: Presence::Optional,
        },
        Field {
            name: "member_id",
            doc: "The own id among the members of a fleet; {host}-{random} when it is left out, another at each start.",
            kind: FieldType::Text(&MEMBER),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static REFERENCES: SectionType = SectionType {
    doc: "What `config` in a store's keys may refer to by ${env:NAME} and ${file:PATH}; nothing when it is left out.",
    fields: &[
        Field {
            name: "env",
            doc: "Names of environment variables.",
            kind: FieldType::Texts {
                rule: &VARIABLE,
                min: 0,
                max: 1_000,
            },
            need: Presence::Default("[]"),
        },
        Field {
            name: "folder",
            doc: "Folder below which ${file:PATH} names files; it cannot be that of the service config.",
            kind: FieldType::Text(&PATH),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static FILE: SectionType = SectionType {
    doc: "A watched folder of *.yaml, *.yml and *.json, one spec a file.",
    fields: &[
        Field {
            name: "folder",
            doc: "The folder.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(DEFAULT_FOLDER),
        },
        Field {
            name: "rescan",
            doc: "Time between full re-reads, which repair what the watch missed.",
            kind: millis(100, HOUR_MS),
            need: Presence::Default(DEFAULT_RESCAN),
        },
    ],
    later: &[],
};

static PLUGINS: SectionType = SectionType {
    doc: "Where plugins come from and which of them are loaded.",
    fields: &[
        Field {
            name: "folder",
            doc: "Folder of plugins: packaged ones and bare libraries.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default("plugins"),
        },
        Field {
            name: "cache",
            doc: "Folder for private copies of what is loaded.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(".sluicegate/cache"),
        },
        Field {
            name: "allow_unsigned",
            doc: "Load plugins without a signature. Signatures are not checked yet, so that no plugin is loaded without it.",
            kind: FieldType::Flag,
            need: Presence::Default("false"),
        },
    ],
    later: &[Reserved {
        name: "trusted_keys",
        reason: "is not available yet: no signature is checked; leave it out",
    }],
};

static EMIT: SectionType = SectionType {
    doc: "What emitted records carry.",
    fields: &[Field {
        name: "provenance",
        doc: "Adds to every emitted record the headers sluicegate.source (topic/partition/offset), sluicegate.handler (name@version), sluicegate.epoch and sluicegate.attempt.",
        kind: FieldType::Flag,
        need: Presence::Default("false"),
    }],
    later: &[],
};

static ADMIN: SectionType = SectionType {
    doc: "The admin HTTP server.",
    fields: &[Field {
        name: "listen",
        doc: "Address and port; port 0 takes any free one.",
        kind: FieldType::Text(&ADDRESS),
        need: Presence::Default("127.0.0.1:9600"),
    }],
    later: &[],
};

pub(crate) static LOGGING: SectionType = SectionType {
    doc: "The service's own log.",
    fields: &[
        Field {
            name: "format",
            doc: "For people, or one JSON object a line.",
            kind: FieldType::Choice {
                words: words::<LogFormat>,
                later: &[],
            },
            need: Presence::Default("text"),
        },
        Field {
            name: "level",
            doc: "Least level that is written, or a filter such as info,sluicegate::dispatch=debug.",
            kind: FieldType::Text(&LEVEL),
            need: Presence::Default("info"),
        },
    ],
    later: &[],
};
