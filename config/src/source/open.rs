//! Opens the spec source of a service config.

use std::sync::Arc;

use super::{FileSource, SpecSource, StoreSource, StoreSourceSettings};
use crate::environment::Environment;
use crate::member::instance;
use crate::service::{HandlersConfig, HandlersFrom};
use crate::store::{Store, StoreError};

impl HandlersConfig {
    /// The id under which this process joins its fleet; the same for every call.
    #[must_use]
    pub fn member(&self) -> String {
        self.member_id
            .clone()
            .unwrap_or_else(|| format!("{}-{}", host(), instance()))
    }

    /// Opens the configured store without contacting it; `None` if specs come from a folder.
    ///
    /// # Errors
    /// [`StoreError`] if the settings are unusable, such as an unreadable certificate.
    pub fn open_store(&self) -> Result<Option<Arc<dyn Store>>, StoreError> {
        match &self.from {
            HandlersFrom::File { .. } => Ok(None),
            HandlersFrom::Etcd(settings) => settings.open().map(Some),
            HandlersFrom::ZooKeeper(settings) => settings.open().map(Some),
        }
    }

    /// Opens the source for a running service.
    ///
    /// # Errors
    /// As [`HandlersConfig::open_store`].
    pub fn open(&self, environment: &Environment) -> Result<Box<dyn SpecSource>, StoreError> {
        self.open_with(environment, true)
    }

    /// As [`HandlersConfig::open`], for read-only commands: reads the current content and ignores the cache.
    ///
    /// # Errors
    /// As [`HandlersConfig::open_store`].
    pub fn open_read_only(
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

/// The host name, sanitised for use in a key.
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
