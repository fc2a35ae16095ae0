//! The running service as the admin side sees it; the service's assembly implements it, tests script it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Explanation, ServiceReport};

/// Why a gate was not moved, or a handler not restarted.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No handler is declared under this name.
    #[error("no handler `{name}`; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is, comma separated.
        known: String,
    },
    /// It is declared no more and finishes what it has.
    #[error(
        "handler `{name}` is deleted; it has {in_flight} records left and is gone when they are done, within processing.drain_timeout if it has failed"
    )]
    Removed {
        /// What was asked for.
        name: String,
        /// Records that it has left.
        in_flight: u64,
    },
    /// The control plane did not take the write.
    #[error("the gate of `{name}` cannot be written: {reason}")]
    NotWritten {
        /// The handler.
        name: String,
        /// The control plane's words, with what to do.
        reason: String,
    },
    /// It is written, but the gate is not shut.
    #[error("the gate of `{name}` is not shut: {reason}")]
    NotShut {
        /// The handler.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// What was asked for is noted, but the handler does not serve.
    #[error("handler `{name}` does not serve: {reason}")]
    NotServing {
        /// The handler.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The running service. Its methods may block up to their deadline: call them where blocking is allowed.
pub trait ServiceView: Send + Sync + 'static {
    /// A report of everything, by which readiness is judged as well. A pump that does not answer within `deadline` is
    /// missing from it, and named in [`super::ServiceInfo::unresponsive_pumps`].
    fn report(&self, deadline: Duration) -> ServiceReport;

    /// What holds the frontier of a partition, or a record of it. `None`: the partition is not assigned here.
    fn explain(
        &self,
        topic: &str,
        partition: i32,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation>;

    /// Writes a handler's gate into its control plane (key or file), and returns when the running service follows it.
    ///
    /// # Errors
    /// [`GateError`].
    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError>;

    /// Applies what stands in the control plane and is held back, since it looks like another store's or like a loss. Whether
    /// there was something.
    fn accept_control_plane(&self) -> bool {
        false
    }

    /// Builds a new generation of a handler from its spec and lets it take the place of the one that serves or has failed.
    ///
    /// # Errors
    /// [`GateError`]; the earlier generation stays then.
    fn restart(&self, handler: &str) -> Result<Restarted, GateError>;
}

/// What came of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarted {
    /// The generation that serves from now on.
    pub generation: u64,
    /// Whether it was built anew. Otherwise the one that is loaded was reset, since its plugin is not in the folder any more.
    pub rebuilt: bool,
}

/// Where the admin side finds the service: empty while it starts.
#[derive(Default)]
pub struct ServiceSlot(OnceLock<Arc<dyn ServiceView>>);

impl ServiceSlot {
    /// A slot that holds a service already.
    pub fn of(view: Arc<dyn ServiceView>) -> Self {
        Self(OnceLock::from(view))
    }

    /// The service has started; a second one is not taken.
    pub fn fill(&self, view: Arc<dyn ServiceView>) {
        let _ = self.0.set(view);
    }

    /// The service, once it has started.
    pub fn get(&self) -> Option<&Arc<dyn ServiceView>> {
        self.0.get()
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}
