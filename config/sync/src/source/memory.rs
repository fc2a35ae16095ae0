//! Spec source in memory, for tests and embedding programs.

use std::sync::{Arc, Mutex, MutexGuard};

use sluicegate_config::document::did_you_mean;
use sluicegate_config::snapshot::Snapshot;
use sluicegate_config::spec::HandlerSpec;

use super::{
    GateError, GateWrite, GateWriter, SnapshotError, SourceError, SpecSource, Update, UpdateSink,
    WatchHandle,
};

/// A source whose content is set through its [`MemoryHandle`].
pub struct MemorySource {
    shared: Arc<Mutex<Shared>>,
}

/// Sets the content of a [`MemorySource`]. Calls the watch's sink on the caller's thread.
#[derive(Clone)]
pub struct MemoryHandle {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    snapshot: Snapshot,
    sink: Option<UpdateSink>,
    away: bool,
}

impl Shared {
    fn publish(&mut self) {
        if self.away {
            return;
        }
        let update = Update::Snapshot(Arc::new(self.snapshot.clone()));
        self.send(update);
    }

    fn send(&mut self, update: Update) {
        if let Some(sink) = &mut self.sink {
            sink(update);
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl MemorySource {
    /// A source with `specs` as revision 1.
    pub fn new(specs: impl IntoIterator<Item = HandlerSpec>) -> (Self, MemoryHandle) {
        let shared = Arc::new(Mutex::new(Shared {
            snapshot: Snapshot::new(1, specs),
            sink: None,
            away: false,
        }));
        let handle = MemoryHandle {
            shared: Arc::clone(&shared),
        };
        (Self { shared }, handle)
    }
}

impl MemoryHandle {
    /// Replaces the content by `specs`, as the next revision.
    pub fn replace(&self, specs: impl IntoIterator<Item = HandlerSpec>) {
        let mut shared = lock(&self.shared);
        shared.snapshot = Snapshot::new(shared.snapshot.revision + 1, specs);
        shared.publish();
    }

    /// Makes the source unreachable, or reachable again with its current content.
    pub fn set_away(&self, away: bool) {
        let mut shared = lock(&self.shared);
        if away == std::mem::replace(&mut shared.away, away) {
            return;
        }
        match away {
            true => shared.send(Update::Unreachable {
                reason: "set to unreachable".to_owned(),
            }),
            false => {
                shared.send(Update::Reachable);
                shared.publish();
            }
        }
    }

    /// Sends any update.
    pub fn send(&self, update: Update) {
        lock(&self.shared).send(update);
    }
}

impl SpecSource for MemorySource {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError> {
        Ok(lock(&self.shared).snapshot.clone())
    }

    fn watch(self: Box<Self>, sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError> {
        lock(&self.shared).sink = Some(sink);
        Ok(Box::new(MemoryWatch {
            shared: self.shared,
        }))
    }

    fn gates(&self) -> Arc<dyn GateWriter> {
        Arc::new(MemoryHandle {
            shared: Arc::clone(&self.shared),
        })
    }
}

impl GateWriter for MemoryHandle {
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError> {
        let mut shared = lock(&self.shared);
        let Some(spec) = shared.snapshot.handlers.get_mut(handler) else {
            let known = shared.snapshot.handlers.keys().map(String::as_str);
            return Err(GateError::UnknownHandler {
                name: handler.to_owned(),
                hint: did_you_mean(handler, known),
            });
        };
        let changed = spec.enabled != open;
        if changed {
            Arc::make_mut(spec).enabled = open;
            shared.snapshot.revision += 1;
            shared.publish();
        }
        Ok(GateWrite {
            origin: "memory".to_owned(),
            changed,
            revision: Some(shared.snapshot.revision),
        })
    }
}

struct MemoryWatch {
    shared: Arc<Mutex<Shared>>,
}

impl WatchHandle for MemoryWatch {
    fn reread(&self) {
        lock(&self.shared).publish();
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        lock(&self.shared).sink = None;
    }
}
