//! What a registry is made with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::secret::Redaction;
use sluicegate_engine::emit::Emitter;
use sluicegate_pool::HungThreads;
use sluicegate_runtime::HandlerRuntime;

use crate::trial::Trial;

/// Settings of a registry.
pub struct RegistrySettings {
    /// The plugins folder.
    pub folder: PathBuf,
    /// Folder for private copies of loaded artefacts.
    pub cache: PathBuf,
    /// Load plugins without a signature.
    pub allow_unsigned: bool,
    /// Timeout for building and checking an instance.
    pub create_timeout: Duration,
    /// Interval of the health checks.
    pub health_interval: Duration,
    /// Timeout of a health check.
    pub health_timeout: Duration,
    /// Timeout for draining and dropping an instance, and for a plugin to stop its own threads.
    pub drain_timeout: Duration,
    /// The abandoned threads of all thread pools.
    pub hung: HungThreads,
    /// The supported plugin runtimes.
    pub runtimes: Vec<Arc<dyn HandlerRuntime>>,
    /// Tries code that runs in this process before it does; `None`: it is loaded at once.
    pub trial: Option<Trial>,
    /// Where emitted records go.
    pub emitter: Arc<dyn Emitter>,
    /// Gets the secrets of each handler's config before its instances get that config.
    pub secrets: Arc<Redaction>,
    /// Whether emitted records get provenance headers.
    pub provenance: bool,
}
