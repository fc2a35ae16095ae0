//! What a bridge is started with: its stores, and how it treats them.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::{Pair, PathMap, Side};
use sluicegate_config::service::{BridgeConfig, EtcdSettings};
use sluicegate_store::{OpenStore, Store, StoreError};

/// The stores of a bridge.
#[derive(Clone)]
pub struct BridgeStores {
    /// The name of the pair, unique within one etcd: its sync state is stored below it.
    pub name: String,
    /// The two replicated stores.
    pub sides: Pair<Arc<dyn Store>>,
    /// The store of the sync state, at the same keys. Shared by every bridge of the pair.
    pub state: Arc<dyn Store>,
}

impl BridgeStores {
    /// Opens the stores of a config; nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError`] for TLS files that cannot be used.
    pub fn open(config: &BridgeConfig) -> Result<Self, StoreError> {
        let below = format!("{}/{}", config.state_prefix, config.name);
        let state = EtcdSettings {
            prefix: below.clone(),
            paths: PathMap::etcd(),
            ..config.etcd.clone()
        };
        Ok(Self {
            // The mark stores the name as one whitespace-free word.
            name: below.replace(char::is_whitespace, "_"),
            sides: Pair {
                etcd: config.etcd.open()?,
                zookeeper: config.zookeeper.open()?,
            },
            state: state.open()?,
        })
    }
}

/// Settings of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeSettings {
    /// Unique id of this run of the bridge; earlier runs had others.
    pub id: String,
    /// The side whose value wins a conflict.
    pub preferred_side: Side,
    /// Period of a full comparison of all keys, with ±20 % jitter.
    pub resync_interval: Duration,
    /// Copy deletes regardless of how many keys a listing finds missing.
    pub allow_mass_delete: bool,
    /// Sides that may be taken over if they are foreign at the start: values of the other side are written there.
    pub accept: Pair<bool>,
}

impl BridgeSettings {
    /// Runtime settings of a bridge with this config; each call generates a new bridge id.
    #[must_use]
    pub fn new(config: &BridgeConfig) -> Self {
        Self {
            id: format!("{}-{:08x}", std::process::id(), fastrand::u32(..)),
            preferred_side: config.preferred_side,
            resync_interval: config.resync_interval,
            allow_mass_delete: false,
            accept: Pair::default(),
        }
    }
}
