//! The fields of the service config, each declared once: name, type, bounds, default and doc.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::bridge::{Bridge, BridgeConfig};
use super::logging::LoggingConfig;
use super::rules::{ADDRESS, BROKERS, GROUP, MEMBER, PATH, START, VARIABLE};
use super::store_table::{Etcd, ZooKeeper};
use super::{ClientValue, HandlersConfig, client_keys};
use super::{Guarantee, OffsetOutOfRange, Start};
use crate::document::{
    ChoiceValue, Node, Reserved, choice, count, custom, flag, millis, object, size, text, texts,
};
use crate::section;

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

const HOUR_MS: u64 = 3_600_000;

/// Spec folder when no source is configured.
pub(super) const DEFAULT_FOLDER: &str = "handlers.d";
/// Re-read interval of that folder.
pub(super) const DEFAULT_RESCAN: &str = "5s";

section! {
    /// Config of `sluicegate run`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ServiceConfig {
        /// The cluster and the consumer group.
        kafka as KafkaConfig => KafkaConfig = object(), default "{}";
        /// Delivery guarantee, limits and timeouts.
        processing: ProcessingConfig = object(), default "{}";
        /// Source of handler specs.
        handlers as Handlers => HandlersConfig = object(), default "{}";
        /// Plugin folders and signature policy.
        plugins as PluginsConfig => PluginsConfig = object(), default "{}";
        /// The admin HTTP server.
        admin: AdminConfig = object(), default "{}";
        /// Settings of emitted records.
        emit: EmitConfig = object(), default "{}";
        /// The service's own log.
        logging: LoggingConfig = object(), default "{}";
        /// Runs a bridge between etcd and ZooKeeper in this process.
        bridge as Bridge => Option<BridgeConfig> = object(), optional;
    }
}

section! {
    /// The cluster and the consumer group.
    #[derive(Clone, Debug, PartialEq)]
    pub struct KafkaConfig {
        /// Bootstrap brokers: a comma-separated host:port list.
        bootstrap_servers: String = text(&BROKERS), default "127.0.0.1:9092";
        /// Consumer group of all shared handlers.
        group_id: String = text(&GROUP), default "sluicegate";
        /// Number of Kafka clients, each with its own pump thread. With several clients, a configured `group.instance.id` gets the client's number as suffix (`-0`, `-1`).
        clients: usize = count(1, 256), default "1";
        /// Start position of partitions without a committed offset: earliest, latest or an RFC 3339 time.
        start: Start = text(&START), default "earliest";
        /// Further librdkafka consumer keys; connection keys apply to all clients. Keys that the service manages are rejected with the key to use instead.
        client as Node => BTreeMap<String, ClientValue> = custom(client_keys::consumer_schema), default "{}";
        /// Further librdkafka producer keys, for emitted records and dead letters. By default `message.max.bytes` is the largest record that a consumer can read plus 1 MiB for headers, and `queue.buffering.max.kbytes` is at least that. The queue bounds the memory of producing to about twice its size, since emitted records are kept until they are acknowledged.
        producer as Node => BTreeMap<String, ClientValue> = custom(client_keys::producer_schema), default "{}";
    }
}

section! {
    /// Delivery guarantee, limits and timeouts.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ProcessingConfig {
        /// Delivery guarantee.
        guarantee: Guarantee = choice(&[Reserved {
            name: "exactly_once",
            reason: "is not available yet; leave `guarantee` out",
        }]), default "at_least_once";
        /// Maximum uncommitted records per partition; bounds duplicates after a crash.
        max_uncommitted: u64 = count(1, 10_000_000), default "10000";
        /// Byte budget of the whole process: half is for in-flight records, an eighth for prefetched ones, the rest for per-record overhead.
        memory: u64 = size(1 << 20, 1 << 44), default "256MiB";
        /// Interval of offset commits.
        commit_interval: Duration = millis(10, HOUR_MS), default "1s";
        /// How long a shutdown or revocation waits for in-flight records. A shutdown ends at most 5 s later, whatever the broker, stores and plugins do; set a supervisor's timeout accordingly (`TimeoutStopSec`, `stop_grace_period`, `terminationGracePeriodSeconds`). A shutdown that leaves unfinished records, uncommitted offsets or its group membership behind logs it and exits with code 1. Records that wait for a retry are left to the next owner, which counts their attempts from 1 again.
        drain_timeout: Duration = millis(0, HOUR_MS), default "20s";
        /// Time without frontier progress, while records wait, after which a partition is reported as stalled.
        stall_timeout: Duration = millis(100, 24 * HOUR_MS), default "5m";
        /// Policy for a fetch offset that is not in the log: stop the partition, or continue at the log's beginning or end once in-flight records are settled.
        offset_out_of_range: OffsetOutOfRange = choice(&[]), default "stop";
    }
}

section! {
    /// Source of handler specs, exactly one of: file (the default), etcd or zookeeper.
    pub(crate) keys Handlers {
        /// A watched folder, one spec per file.
        file: SpecFolder = object(), optional;
        /// Keys in etcd.
        etcd: Etcd = object(), optional;
        /// Nodes in ZooKeeper.
        zookeeper: ZooKeeper = object(), optional;
        /// Cache file with a store's last good specs, for a start while the store is unreachable.
        cache: PathBuf = text(&PATH), default ".sluicegate/handlers.cache";
        /// Refuse to start from the cache, also when the store's content is held back.
        require_fresh: bool = flag(), default "false";
        /// Variables and files that `config` in a store's keys may reference by ${env:NAME} and ${file:PATH}. Anyone who can write control keys can read them.
        references: ListedReferences = object(), optional;
        /// This process's member id in the fleet. Default: {host}-{random}, new at each start.
        member_id: String = text(&MEMBER), optional;
    }
}

section! {
    /// Variables and files that `config` in a store's keys may reference by ${env:NAME} and ${file:PATH}. Default: none.
    pub(crate) keys ListedReferences {
        /// Names of environment variables.
        env: Vec<String> = texts(&VARIABLE, 0, 1_000), default "[]";
        /// Base folder of ${file:PATH}; must not contain the service config.
        folder: PathBuf = text(&PATH), optional;
    }
}

section! {
    /// A watched folder of *.yaml, *.yml and *.json files, one spec per file.
    pub(crate) keys SpecFolder {
        /// Path of the folder.
        folder: PathBuf = text(&PATH), default DEFAULT_FOLDER;
        /// Interval of full re-reads, which pick up changes that the watch missed.
        rescan: Duration = millis(100, HOUR_MS), default DEFAULT_RESCAN;
    }
}

section! {
    /// Plugin folders and signature policy.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PluginsConfig {
        /// Folder of plugins: packages and bare libraries.
        folder: PathBuf = text(&PATH), default "plugins";
        /// Folder for private copies of loaded plugins.
        cache: PathBuf = text(&PATH), default ".sluicegate/cache";
        /// Load unsigned plugins. Signatures are not verified yet, so that no plugin is loaded unless this is true.
        allow_unsigned: bool = flag(), default "false";
    }
    reserved &[Reserved {
        name: "trusted_keys",
        reason: "is not available yet: signatures are not verified; leave it out",
    }]
}

section! {
    /// Settings of emitted records.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EmitConfig {
        /// Add the headers sluicegate.source (topic/partition/offset), sluicegate.handler (name@version), sluicegate.epoch and sluicegate.attempt to every emitted record.
        provenance: bool = flag(), default "false";
    }
}

section! {
    /// The admin HTTP server.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AdminConfig {
        /// Listen address and port; port 0 selects a free port.
        listen: SocketAddr = text(&ADDRESS), default "127.0.0.1:9600";
    }
}
