//! Opens the store that a config names.

use std::sync::Arc;

use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};

use crate::{EtcdStore, Store, StoreError, ZooKeeperStore};

/// Settings of a store, which can be opened.
pub trait OpenStore {
    /// Opens the store; nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError`] for TLS files that cannot be used.
    fn open(&self) -> Result<Arc<dyn Store>, StoreError>;
}

impl OpenStore for EtcdSettings {
    fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(EtcdStore::open(self.clone())?))
    }
}

impl OpenStore for ZooKeeperSettings {
    fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(ZooKeeperStore::open(self.clone())?))
    }
}
