//! The source that a service config names.

use std::sync::Arc;

use super::{FileSource, SpecSource, StoreSource, StoreSourceSettings};
use crate::environment::Environment;
use crate::member::instance;
use crate::service::{HandlersConfig, HandlersFrom};
use crate::store::{Store, StoreError};

impl HandlersConfig {
    /// The id under which this process joins its fleet; the same at each call.
    #[must_use]
    pub fn member(&self) -> String {
        self.member_id
            .clone()
            .unwrap_or_else(|| format!("{}-{}", host(), instance()))
    }

    /// The store that it names; `None` when specs come from a folder. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`StoreError`] when the settings cannot be used, such as a certificate that cannot be read.
    pub fn open_store(&self) -> Result<Option<Arc<dyn Store>>, StoreError> {
        match &self.from {
            HandlersFrom::File { .. } => Ok(None),
            HandlersFrom::Etcd(settings) => settings.open().map(Some),
            HandlersFrom::ZooKeeper(settings) => settings.open().map(Some),
        }
    }

    /// The source of a service.
    ///
    /// # Errors
    /// As [`HandlersConfig::open_store`].
    pub fn open(&self, environment: &Environment) -> Result<Box<dyn SpecSource>, StoreError> {
        self.open_with(environment, true)
    }

    /// The same for whoever only looks: what stands there now, whatever an earlier run has kept.
    ///
    /// # Errors
    /// As [`HandlersConfig::open_store`].
    pub fn open_to_look(
        &self,
        environment: &Environment,
    ) -> Result<Box<dyn SpecSource>, StoreError> {
        self.open_with(environment, false)
    }

    fn open_with(
        &self,
        environment: &Environment,
        cached: bool,
    ) -> Result<Box<dyn SpecSource>, StoreError> {
        let store = match &self.from {
            HandlersFrom::File { folder, rescan } => {
                let source = FileSource::new(folder.clone(), *rescan, environment.clone());
                return Ok(Box::new(source));
            }
            HandlersFrom::Etcd(settings) => settings.open()?,
            HandlersFrom::ZooKeeper(settings) => settings.open()?,
        };
        let settings = StoreSourceSettings {
            environment: environment.clone(),
            references: self.references.clone(),
            member: self.member(),
            cache: cached.then(|| self.cache.clone()),
            require_fresh: self.require_fresh,
        };
        Ok(Box::new(StoreSource::new(store, settings)))
    }
}

/// The name of this machine, as far as it is fit for a key.
#[must_use]
pub fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let fit: String = named
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(64)
        .collect();
    match fit.is_empty() {
        true => "host".to_owned(),
        false => fit,
    }
}
