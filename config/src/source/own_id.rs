//! The id under which this process is a member of its fleet, by which it knows the rollouts that are for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The own member id. It changes when another process holds the one that the config gives; clones change together.
#[derive(Clone)]
pub struct OwnId {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    id: String,
    changed: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl OwnId {
    /// The id as it begins.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        let shared = Shared {
            id: id.into(),
            changed: None,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id now.
    #[must_use]
    pub fn get(&self) -> String {
        self.lock().id.clone()
    }

    /// It is another one from now on: the source that goes by it hands out what that changes, on this thread.
    pub fn set(&self, id: &str) {
        let mut shared = self.lock();
        if shared.id == id {
            return;
        }
        id.clone_into(&mut shared.id);
        let changed = shared.changed.clone();
        drop(shared);
        if let Some(changed) = changed {
            changed();
        }
    }

    /// Calls `changed` whenever the id has changed.
    pub(super) fn on_change(&self, changed: impl Fn() + Send + Sync + 'static) {
        self.lock().changed = Some(Arc::new(changed));
    }
}
