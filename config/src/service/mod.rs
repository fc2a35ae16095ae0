//! The service config: the validated settings from which the service is assembled.
//!
//! ```text
//!  YAML text ─► document (positions) ─► overrides (--set, SLUICEGATE__…) ─► references (${env:…}) ─► table ─► ServiceConfig
//! ```

mod bridge;
mod client_key_names;
mod client_keys;
mod locate;
mod overrides;
mod read;
mod rules;
mod store_settings;
mod store_table;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub(crate) use bridge::{BRIDGE, BRIDGE_FILE};
pub use bridge::{BridgeConfig, load_bridge_config, read_bridge_config};
pub(crate) use client_keys::owned_client_keys;
pub use locate::place_in;
pub(crate) use read::read_logging;
pub use read::{Examined, examine};
pub use read::{load_service_config, read_service_config};
pub(crate) use rules::{ADDRESS, parse_address};
pub use store_settings::{Acl, EtcdSettings, Login, TlsFiles, TlsIdentity, ZooKeeperSettings};
pub(crate) use store_table::{ABSOLUTE, ETCD, ZOOKEEPER};
pub(crate) use table::{LOGGING, SERVICE};

use crate::control::{host, instance};
pub use crate::document::References;
use crate::secret::Secret;

/// The validated config of `sluicegate run`. Relative paths are resolved against the config file.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// The cluster and the consumer group.
    pub kafka: KafkaConfig,
    /// Delivery guarantee, limits and timeouts of processing.
    pub processing: ProcessingConfig,
    /// Source of handler specs.
    pub handlers: HandlersConfig,
    /// Plugin folders and signature policy.
    pub plugins: PluginsConfig,
    /// The admin HTTP server.
    pub admin: AdminConfig,
    /// Settings of emitted records.
    pub emit: EmitConfig,
    /// The service's own log.
    pub logging: LoggingConfig,
    /// A bridge between etcd and ZooKeeper in the same process.
    pub bridge: Option<BridgeConfig>,
}

/// `kafka:` the cluster and the consumer group.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaConfig {
    /// Comma-separated `host:port` list.
    pub bootstrap_servers: String,
    /// Consumer group of all shared handlers.
    pub group_id: String,
    /// Number of Kafka clients, each with its own pump thread; at least 1.
    pub clients: usize,
    /// Start position of partitions without a committed offset.
    pub start: Start,
    /// Further librdkafka keys, without those that the service manages. Connection keys also apply to producers.
    pub client: BTreeMap<String, ClientValue>,
    /// Further librdkafka producer keys, without those that the service manages.
    pub producer: BTreeMap<String, ClientValue>,
}

/// Start position of partitions without a committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The log's beginning.
    Earliest,
    /// The log's end: only new records.
    Latest,
    /// The first record with this timestamp or a later one.
    Time {
        /// Milliseconds since the Unix epoch.
        unix_ms: i64,
    },
}

/// The value of a librdkafka key. Values that are secret by key or origin are masked in output.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientValue {
    /// Not secret.
    Plain(String),
    /// A password, a private key, or a value from a `${…}` reference.
    Secret(Secret),
}

impl ClientValue {
    /// The value itself, to pass to librdkafka.
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

/// `processing:` delivery guarantee, limits and timeouts.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessingConfig {
    /// Delivery guarantee.
    pub guarantee: Guarantee,
    /// Maximum uncommitted records per partition, which bounds duplicates after a crash (G3); at least 1.
    pub max_uncommitted: u64,
    /// Byte budget of the whole process; half is for in-flight records (G8).
    pub memory: u64,
    /// Interval of offset commits.
    pub commit_interval: Duration,
    /// How long a shutdown or revocation waits for in-flight records.
    pub drain_timeout: Duration,
    /// Time without frontier progress, while records wait, after which a partition is reported as stalled (G8).
    pub stall_timeout: Duration,
    /// Policy for a fetch offset that is no longer in the log (G12).
    pub offset_out_of_range: OffsetOutOfRange,
}

/// Delivery guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// An offset is committed only once all records before it are settled (G1).
    AtLeastOnce,
}

/// Policy for a fetch offset that is no longer in the log (G12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetOutOfRange {
    /// Stop the partition and report it.
    Stop,
    /// Continue at the log's beginning.
    Earliest,
    /// Continue at the log's end.
    Latest,
}

/// `handlers:` source of handler specs, and behaviour while a store is unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlersConfig {
    /// The source.
    pub from: HandlersFrom,
    /// Cache file with a store's last good specs, for a start while the store is unreachable; unused for a folder.
    pub cache: PathBuf,
    /// Refuse to start from the cache.
    pub require_fresh: bool,
    /// This process's member id in the fleet; `None`: `{host}-{random}`.
    pub member_id: Option<String>,
    /// Variables and files that a store's specs may reference.
    pub references: References,
}

impl HandlersConfig {
    /// The id under which this process joins its fleet; the same for every call.
    #[must_use]
    pub fn member(&self) -> String {
        self.member_id
            .clone()
            .unwrap_or_else(|| format!("{}-{}", host(), instance()))
    }
}

/// The source of handler specs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlersFrom {
    /// A watched folder, one spec per file.
    File {
        /// The folder.
        folder: PathBuf,
        /// Interval of full re-reads, which pick up changes that the watch missed.
        rescan: Duration,
    },
    /// Keys in etcd.
    Etcd(Box<EtcdSettings>),
    /// Nodes in ZooKeeper.
    ZooKeeper(Box<ZooKeeperSettings>),
}

/// `plugins:` plugin folders and signature policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginsConfig {
    /// Folder of plugin artefacts.
    pub folder: PathBuf,
    /// Folder for private copies of loaded plugins.
    pub cache: PathBuf,
    /// Load unsigned plugins; for development.
    pub allow_unsigned: bool,
}

/// `admin:` the admin HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Listen address; port 0 selects a free port.
    pub listen: SocketAddr,
}

/// `emit:` settings of emitted records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmitConfig {
    /// Add headers that identify the source record, handler and attempt.
    pub provenance: bool,
}

/// `logging:` the service's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// Log format.
    pub format: LogFormat,
    /// Minimum level, or a filter such as `info,sluicegate_engine::flow=debug`.
    pub level: String,
}

/// Log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}
