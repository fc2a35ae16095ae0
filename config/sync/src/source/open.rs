//! Opens the spec source of a service config.

use sluicegate_config::Environment;
use sluicegate_config::service::{HandlersConfig, HandlersFrom};
use sluicegate_store::{OpenStore, StoreError};

use super::{FileSource, SpecSource, StoreSource, StoreSourceSettings};

/// Opens the source for a running service, without contacting a store.
///
/// # Errors
/// [`StoreError`] if the settings are unusable, such as an unreadable certificate.
pub fn open_source(
    config: &HandlersConfig,
    environment: &Environment,
) -> Result<Box<dyn SpecSource>, StoreError> {
    open_with(config, environment, true)
}

/// As [`open_source`], for read-only commands: reads the current content and ignores the cache.
///
/// # Errors
/// As [`open_source`].
pub fn open_source_read_only(
    config: &HandlersConfig,
    environment: &Environment,
) -> Result<Box<dyn SpecSource>, StoreError> {
    open_with(config, environment, false)
}

fn open_with(
    config: &HandlersConfig,
    environment: &Environment,
    cached: bool,
) -> Result<Box<dyn SpecSource>, StoreError> {
    let store = match &config.from {
        HandlersFrom::File { folder, rescan } => {
            let source = FileSource::new(folder.clone(), *rescan, environment.clone());
            return Ok(Box::new(source));
        }
        HandlersFrom::Etcd(settings) => settings.open()?,
        HandlersFrom::ZooKeeper(settings) => settings.open()?,
    };
    let settings = StoreSourceSettings {
        environment: environment.clone(),
        references: config.references.clone(),
        member: config.member(),
        cache: cached.then(|| config.cache.clone()),
        require_fresh: config.require_fresh,
    };
    Ok(Box::new(StoreSource::new(store, settings)))
}
