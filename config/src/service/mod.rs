//! The service config: the validated settings from which the service is assembled.
//!
//! ```text
//!  YAML text ─► document (positions) ─► overrides (--set, SLUICEGATE__…) ─► references (${env:…}) ─► table ─► ServiceConfig
//! ```

mod bridge;
mod client_key_names;
mod client_keys;
mod locate;
mod logging;
mod overrides;
mod read;
mod rules;
mod store_settings;
mod store_table;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub(crate) use bridge::BridgeFile;
pub use bridge::{BridgeConfig, load_bridge_config, read_bridge_config};
pub(crate) use client_keys::owned_client_keys;
pub use locate::place_in;
pub use logging::{LogFormat, LoggingConfig};
pub use read::{Examined, examine};
pub use read::{load_service_config, read_service_config};
pub use store_settings::{EtcdSettings, Login, TlsFiles, TlsIdentity, ZooKeeperSettings};
pub use store_table::Acl;
pub use table::{
    AdminConfig, EmitConfig, KafkaConfig, PluginsConfig, ProcessingConfig, ServiceConfig,
};

use crate::control::{host, instance};
pub use crate::document::References;
use crate::secret::Secret;

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

/// Delivery guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// An offset is committed only once all records before it are settled (G1).
    AtLeastOnce,
}

/// Policy for a fetch offset that has left the log (G12).
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
