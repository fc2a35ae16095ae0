//! The service's own config: the validated type that everything else is assembled from.
//!
//! ```text
//!  YAML text ─► document (positions) ─► overrides (--set, SLUICEGATE__…) ─► references (${env:…}) ─► table ─► ServiceConfig
//! ```

mod client_key_names;
mod client_keys;
mod locate;
mod overrides;
mod read;
mod rules;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub(crate) use client_keys::owned_client_keys;
pub use locate::place_in;
pub(crate) use read::examine;
pub(crate) use read::read_logging;
pub use read::{load_service_config, read_service_config};
pub(crate) use rules::{ADDRESS, parse_address};
pub(crate) use table::{LOGGING, SERVICE};

use crate::bridge::BridgeConfig;
pub use crate::document::References;
use crate::secret::Secret;
use crate::store::{EtcdSettings, ZooKeeperSettings};

/// The whole config of `sluicegate run`, validated; relative paths are already resolved against its file.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// The cluster and the consumer group.
    pub kafka: KafkaConfig,
    /// Guarantee, bounds and deadlines of processing.
    pub processing: ProcessingConfig,
    /// Where handler specs come from.
    pub handlers: HandlersConfig,
    /// Where plugins come from and which of them are loaded.
    pub plugins: PluginsConfig,
    /// The admin HTTP server.
    pub admin: AdminConfig,
    /// What emitted records carry.
    pub emit: EmitConfig,
    /// The service's own log.
    pub logging: LoggingConfig,
    /// A bridge between etcd and ZooKeeper, beside the service.
    pub bridge: Option<BridgeConfig>,
}

/// `kafka:` the cluster and the consumer group.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaConfig {
    /// Comma-separated `host:port` list.
    pub bootstrap_servers: String,
    /// The consumer group that all shared handlers read in.
    pub group_id: String,
    /// Kafka clients, each with a pump thread of its own; at least 1.
    pub clients: usize,
    /// Where a partition without a committed offset begins.
    pub start: Start,
    /// Further librdkafka keys, none of which the service owns; those of the connection hold for producers too.
    pub client: BTreeMap<String, ClientValue>,
    /// Further librdkafka keys of producers, none of which the service owns.
    pub producer: BTreeMap<String, ClientValue>,
}

/// Where a partition without a committed offset begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record that is kept.
    Earliest,
    /// At the end: only records that arrive from now on.
    Latest,
    /// At the first record whose timestamp is not before this, in milliseconds since the Unix epoch.
    Time {
        /// Milliseconds since the Unix epoch.
        unix_ms: i64,
    },
}

/// The value of a librdkafka key; one that is secret by its key or by its origin does not show.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientValue {
    /// May be shown.
    Plain(String),
    /// A password, a private key, or anything that came from a `${…}` reference.
    Secret(Secret),
}

impl ClientValue {
    /// The value itself, to hand to librdkafka.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(secret) => secret.expose(),
        }
    }
}

impl fmt::Debug for ClientValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => fmt::Debug::fmt(text, f),
            Self::Secret(secret) => fmt::Debug::fmt(secret, f),
        }
    }
}

impl Serialize for ClientValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(text) => serializer.serialize_str(text),
            Self::Secret(secret) => secret.serialize(serializer),
        }
    }
}

/// `processing:` guarantee, bounds and deadlines.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessingConfig {
    /// What a commit stands for.
    pub guarantee: Guarantee,
    /// Most records beyond the frontier, a partition (G3); at least 1.
    pub max_uncommitted: u64,
    /// Byte budget of records in flight in the whole process (G8).
    pub memory: u64,
    /// Time between commits of a frontier that moved.
    pub commit_interval: Duration,
    /// How long a stop or a revoke waits for what is in flight.
    pub drain_timeout: Duration,
    /// A frontier that stands still this long while records wait is reported as stalled (G8).
    pub stall_timeout: Duration,
    /// What to do when a committed offset is no longer there (G12).
    pub offset_out_of_range: OffsetOutOfRange,
}

/// What a commit stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// G1.
    AtLeastOnce,
}

/// What to do when a committed offset is no longer there (G12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetOutOfRange {
    /// Stop the partition and say so.
    Stop,
    /// Go on at the oldest record that is kept.
    Earliest,
    /// Go on at the end.
    Latest,
}

/// `handlers:` where handler specs come from, and what a store's absence means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlersConfig {
    /// The one source.
    pub from: HandlersFrom,
    /// File that keeps a store's last good specs for a start while the store is away; a folder needs none.
    pub cache: PathBuf,
    /// Refuse to start from that file.
    pub require_fresh: bool,
    /// The own id among the members of a fleet; `None`: `{host}-{pid}`.
    pub member_id: Option<String>,
    /// What a store's specs may refer to.
    pub references: References,
}

/// The source of handler specs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlersFrom {
    /// A watched folder, one spec a file.
    File {
        /// The folder.
        folder: PathBuf,
        /// Time between full re-reads, which repair what the watch missed.
        rescan: Duration,
    },
    /// Keys in etcd.
    Etcd(Box<EtcdSettings>),
    /// Nodes in ZooKeeper.
    ZooKeeper(Box<ZooKeeperSettings>),
}

/// `plugins:` where plugins come from and which of them are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginsConfig {
    /// Folder of artefacts.
    pub folder: PathBuf,
    /// Folder for private copies of what is loaded.
    pub cache: PathBuf,
    /// Load plugins without a signature; for development.
    pub allow_unsigned: bool,
}

/// `admin:` the admin HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
}

/// `emit:` what emitted records carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmitConfig {
    /// Headers that say where each emitted record comes from.
    pub provenance: bool,
}

/// `logging:` the service's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Least level that is written, or a filter such as `info,sluicegate::dispatch=debug`.
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
