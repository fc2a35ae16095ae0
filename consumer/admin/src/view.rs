//! The admin server's interface to the running service; implemented by `sluicegate-service`, and by scripted services in tests.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sluicegate_engine::status::{Explanation, ServiceReport};

/// Why a gate was not changed, or a handler not restarted.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No handler is declared under this name.
    #[error("no handler `{name}`; known handlers: {known}")]
    Unknown {
        /// The requested name.
        name: String,
        /// Declared handlers, comma separated.
        known: String,
    },
    /// It is not declared any more and is finishing its in-flight records.
    #[error(
        "handler `{name}` is deleted; it has {in_flight} records left and is removed once they are settled, within processing.drain_timeout if it has failed"
    )]
    Removed {
        /// The requested name.
        name: String,
        /// Its remaining in-flight records.
        in_flight: u64,
    },
    /// The control plane rejected the write.
    #[error("the gate of `{name}` cannot be written: {reason}")]
    NotWritten {
        /// The handler.
        name: String,
        /// The control plane's error, with a remedy.
        reason: String,
    },
    /// The value is written, but the gate is not closed.
    #[error("the gate of `{name}` is not closed: {reason}")]
    NotClosed {
        /// The handler.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The change is recorded, but the handler is not serving.
    #[error("handler `{name}` is not serving: {reason}")]
    NotServing {
        /// The handler.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The running service. Its methods may block up to their deadline; never call them on an async executor thread.
pub trait ServiceView: Send + Sync + 'static {
    /// A full report, on which readiness is also based. A pump that does not answer within `deadline` is omitted and
    /// listed in [`sluicegate_engine::status::ServiceInfo::unresponsive_pumps`].
    fn report(&self, deadline: Duration) -> ServiceReport;

    /// What blocks a partition's frontier, or the state of one record. `None`: the partition is not assigned here.
    fn explain(
        &self,
        topic: &str,
        partition: i32,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation>;

    /// Writes a handler's gate to its control plane (key or file), and returns once the running service has applied it.
    ///
    /// # Errors
    /// [`GateError`].
    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError>;

    /// Applies control-plane state that is held back because it appears to be another store's or the result of a loss.
    /// Returns whether any was held back.
    fn accept_control_plane(&self) -> bool {
        false
    }

    /// Builds a new generation of a handler from its spec and replaces the one that serves or has failed.
    ///
    /// # Errors
    /// [`GateError`]; the previous generation then stays active.
    fn restart(&self, handler: &str) -> Result<Restarted, GateError>;
}

/// The result of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarted {
    /// The generation that now serves.
    pub generation: u64,
    /// Whether it was rebuilt. Otherwise the loaded generation was reset, because its plugin has left the folder.
    pub rebuilt: bool,
}

/// Holds the service for the admin server; empty during startup.
#[derive(Default)]
pub struct ServiceSlot(OnceLock<Arc<dyn ServiceView>>);

impl ServiceSlot {
    /// A slot that holds a service already.
    pub fn of(view: Arc<dyn ServiceView>) -> Self {
        Self(OnceLock::from(view))
    }

    /// Called once the service has started; another call has no effect.
    pub fn fill(&self, view: Arc<dyn ServiceView>) {
        let _ = self.0.set(view);
    }

    /// The service, once it has started.
    pub fn get(&self) -> Option<&Arc<dyn ServiceView>> {
        self.0.get()
    }
}
