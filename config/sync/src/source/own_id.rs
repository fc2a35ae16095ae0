//! This process's member id, which selects the rollouts that apply to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The member id. Changes if another process holds the configured id; clones share the value.
#[derive(Clone)]
pub struct OwnId {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    id: String,
    changed: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl OwnId {
    /// Starts with `id`.
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

    /// The current id.
    #[must_use]
    pub fn get(&self) -> String {
        self.lock().id.clone()
    }

    /// Changes the id. The source re-evaluates its rollouts and sends any change, on this thread.
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

    /// Registers a callback for changes of the id.
    pub(super) fn on_change(&self, changed: impl Fn() + Send + Sync + 'static) {
        self.lock().changed = Some(Arc::new(changed));
    }
}
