//! A write that is retried until its store is ready.

use std::time::Duration;

use e2e::wait::wait_for;
use sluicegate_config::control::ControlKey;
use sluicegate_store::{Expected, KeyVersion, Store, StoreError};

pub(crate) fn put(store: &dyn Store, key: &ControlKey, value: &str) -> KeyVersion {
    wait_for("the write", Duration::from_secs(15), || {
        match store.write(key, Some(value.as_bytes()), Expected::Any) {
            Ok(stamp) => Ok(stamp),
            // ZooKeeper may report a conflict even for an unconditional write.
            Err(error @ StoreError::Conflict { .. }) => Err(error.to_string()),
            Err(error) if error.is_retryable() => Err(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    })
}
