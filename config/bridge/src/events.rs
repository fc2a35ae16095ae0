//! What the worker is told, by whom, and why it ends.

use std::sync::{Mutex, MutexGuard};

use sluicegate_config::control::Side;
use sluicegate_store::StoreUpdate;

/// One of the three stores.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoreRole {
    Side(Side),
    State,
}

pub(super) enum Event {
    Update(StoreRole, StoreUpdate),
    /// The watch of this store has ended.
    WatchEnded(StoreRole),
    Stop,
}

/// Why the worker ended without a request to stop; only a restart helps.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    #[error("the watch of {0} has ended")]
    WatchEnded(String),
    #[error("the worker thread panicked")]
    Panicked,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
