//! The fields of the service config: names, docs, bounds and defaults.

use std::time::Duration;

use super::rules::{ADDRESS, BROKERS, GROUP, LEVEL, MEMBER, PATH, START, VARIABLE};
use super::{Guarantee, LogFormat, OffsetOutOfRange, client_keys};
use crate::document::{ChoiceValue, Field, FieldType, Presence, Reserved, SectionType, words};
use crate::service::BRIDGE;
use crate::service::{ETCD, ZOOKEEPER};

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
            doc: "Delivery guarantee, limits and timeouts.",
            kind: FieldType::Object(&PROCESSING),
            need: Presence::Default("{}"),
        },
        Field {
            name: "handlers",
            doc: "Source of handler specs.",
            kind: FieldType::Object(&HANDLERS),
            need: Presence::Default("{}"),
        },
        Field {
            name: "plugins",
            doc: "Plugin folders and signature policy.",
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
            doc: "Settings of emitted records.",
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
            doc: "Runs a bridge between etcd and ZooKeeper in this process.",
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
            doc: "Bootstrap brokers: a comma-separated host:port list.",
            kind: FieldType::Text(&BROKERS),
            need: Presence::Default("127.0.0.1:9092"),
        },
        Field {
            name: "group_id",
            doc: "Consumer group of all shared handlers.",
            kind: FieldType::Text(&GROUP),
            need: Presence::Default("sluicegate"),
        },
        Field {
            name: "clients",
            doc: "Number of Kafka clients, each with its own pump thread. With several clients, a configured `group.instance.id` gets the client's number as suffix (`-0`, `-1`).",
            kind: FieldType::Count { min: 1, max: 256 },
            need: Presence::Default("1"),
        },
        Field {
            name: "start",
            doc: "Start position of partitions without a committed offset: earliest, latest or an RFC 3339 time.",
            kind: FieldType::Text(&START),
            need: Presence::Default("earliest"),
        },
        Field {
            name: "client",
            doc: "Further librdkafka consumer keys; connection keys apply to all clients. Keys that the service manages are rejected with the key to use instead.",
            kind: FieldType::Custom {
                schema: client_keys::consumer_schema,
            },
            need: Presence::Default("{}"),
        },
        Field {
            name: "producer",
            doc: "Further librdkafka producer keys, for emitted records and dead letters. By default `message.max.bytes` is the largest record that a consumer can read plus 1 MiB for headers, and `queue.buffering.max.kbytes` is at least that. The queue bounds the memory of producing to about twice its size, since emitted records are kept until they are acknowledged.",
            kind: FieldType::Custom {
                schema: client_keys::producer_schema,
            },
            need: Presence::Default("{}"),
        },
    ],
    later: &[],
};

static PROCESSING: SectionType = SectionType {
    doc: "Delivery guarantee, limits and timeouts.",
    fields: &[
        Field {
            name: "guarantee",
            doc: "Delivery guarantee.",
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
            doc: "Maximum uncommitted records per partition; bounds duplicates after a crash.",
            kind: FieldType::Count {
                min: 1,
                max: 10_000_000,
            },
            need: Presence::Default("10000"),
        },
        Field {
            name: "memory",
            doc: "Byte budget of the whole process: half is for in-flight records, an eighth for prefetched ones, the rest for per-record overhead.",
            kind: FieldType::Size {
                min: 1 << 20,
                max: 1 << 44,
            },
            need: Presence::Default("256MiB"),
        },
        Field {
            name: "commit_interval",
            doc: "Interval of offset commits.",
            kind: millis(10, HOUR_MS),
            need: Presence::Default("1s"),
        },
        Field {
            name: "drain_timeout",
            doc: "How long a shutdown or revocation waits for in-flight records. A shutdown ends at most 5 s later, whatever the broker, stores and plugins do; set a supervisor's timeout accordingly (`TimeoutStopSec`, `stop_grace_period`, `terminationGracePeriodSeconds`). A shutdown that leaves unfinished records, uncommitted offsets or its group membership behind logs it and exits with code 1. Records that wait for a retry are left to the next owner, which counts their attempts from 1 again.",
            kind: millis(0, HOUR_MS),
            need: Presence::Default("20s"),
        },
        Field {
            name: "stall_timeout",
            doc: "Time without frontier progress, while records wait, after which a partition is reported as stalled.",
            kind: millis(100, 24 * HOUR_MS),
            need: Presence::Default("5m"),
        },
        Field {
            name: "offset_out_of_range",
            doc: "Policy for a fetch offset that is not in the log: stop the partition, or continue at the log's beginning or end once in-flight records are settled.",
            kind: FieldType::Choice {
                words: words::<OffsetOutOfRange>,
                later: &[],
            },
            need: Presence::Default("stop"),
        },
    ],
    later: &[],
};

/// Spec folder when no source is configured.
pub(super) const DEFAULT_FOLDER: &str = "handlers.d";
/// Re-read interval of that folder.
pub(super) const DEFAULT_RESCAN: &str = "5s";

static HANDLERS: SectionType = SectionType {
    doc: "Source of handler specs, exactly one of: file (the default), etcd or zookeeper.",
    fields: &[
        Field {
            name: "file",
            doc: "A watched folder, one spec per file.",
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
            doc: "Cache file with a store's last good specs, for a start while the store is unreachable.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(".sluicegate/handlers.cache"),
        },
        Field {
            name: "require_fresh",
            doc: "Refuse to start from the cache, also when the store's content is held back.",
            kind: FieldType::Flag,
            need: Presence::Default("false"),
        },
        Field {
            name: "references",
            doc: "Variables and files that `config` in a store's keys may reference by ${env:NAME} and ${file:PATH}. Anyone who can write control keys can read them.",
            kind: FieldType::Object(&REFERENCES),
            need: Presence::Optional,
        },
        Field {
            name: "member_id",
            doc: "This process's member id in the fleet. Default: {host}-{random}, new at each start.",
            kind: FieldType::Text(&MEMBER),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static REFERENCES: SectionType = SectionType {
    doc: "Variables and files that `config` in a store's keys may reference by ${env:NAME} and ${file:PATH}. Default: none.",
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
            doc: "Base folder of ${file:PATH}; must not contain the service config.",
            kind: FieldType::Text(&PATH),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static FILE: SectionType = SectionType {
    doc: "A watched folder of *.yaml, *.yml and *.json files, one spec per file.",
    fields: &[
        Field {
            name: "folder",
            doc: "Path of the folder.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(DEFAULT_FOLDER),
        },
        Field {
            name: "rescan",
            doc: "Interval of full re-reads, which pick up changes that the watch missed.",
            kind: millis(100, HOUR_MS),
            need: Presence::Default(DEFAULT_RESCAN),
        },
    ],
    later: &[],
};

static PLUGINS: SectionType = SectionType {
    doc: "Plugin folders and signature policy.",
    fields: &[
        Field {
            name: "folder",
            doc: "Folder of plugins: packages and bare libraries.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default("plugins"),
        },
        Field {
            name: "cache",
            doc: "Folder for private copies of loaded plugins.",
            kind: FieldType::Text(&PATH),
            need: Presence::Default(".sluicegate/cache"),
        },
        Field {
            name: "allow_unsigned",
            doc: "Load unsigned plugins. Signatures are not verified yet, so that no plugin is loaded unless this is true.",
            kind: FieldType::Flag,
            need: Presence::Default("false"),
        },
    ],
    later: &[Reserved {
        name: "trusted_keys",
        reason: "is not available yet: signatures are not verified; leave it out",
    }],
};

static EMIT: SectionType = SectionType {
    doc: "Settings of emitted records.",
    fields: &[Field {
        name: "provenance",
        doc: "Add the headers sluicegate.source (topic/partition/offset), sluicegate.handler (name@version), sluicegate.epoch and sluicegate.attempt to every emitted record.",
        kind: FieldType::Flag,
        need: Presence::Default("false"),
    }],
    later: &[],
};

static ADMIN: SectionType = SectionType {
    doc: "The admin HTTP server.",
    fields: &[Field {
        name: "listen",
        doc: "Listen address and port; port 0 selects a free port.",
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
            doc: "Log format: text lines, or one JSON object per line.",
            kind: FieldType::Choice {
                words: words::<LogFormat>,
                later: &[],
            },
            need: Presence::Default("text"),
        },
        Field {
            name: "level",
            doc: "Minimum level, or a filter such as info,sluicegate_engine::flow=debug.",
            kind: FieldType::Text(&LEVEL),
            need: Presence::Default("info"),
        },
    ],
    later: &[],
};
