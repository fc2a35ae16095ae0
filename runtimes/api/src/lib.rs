//! The interface between the service and plugin runtimes. The only one so far is native.
//!
//! ```text
//!  HandlerRuntime::load(file, digest) ─► LoadedPlugin::create(handler, config) ─► HandlerInstance::handle(call) ─► outcomes
//!        (a kind of plugin)        (one generation's code)                 (one worker's instance)
//! ```
//!
//! The service uses plugins only through this interface. A runtime guarantees:
//! 1. No plugin failure (panic, error, invalid output) unwinds out of these methods or is lost: it becomes an outcome
//!    code, a [`CallStatus`] or an error value with a message for the operator.
//! 2. An instance is created, called and dropped on a single thread of its generation.
//! 3. The outcomes that a running call has written can be read from another thread ([`CallMonitor`]), so that a hanging
//!    call costs only the record it hangs on.

mod call;
mod emits;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use call::{CallHost, CallOutput, CallRequest, CallStatus, call};
pub use emits::{Emit, Emits};
pub use sluicegate_abi::host::CallSink;
pub use sluicegate_abi::partition::{PartitionChange, PartitionEvent};
pub use sluicegate_abi::plugin::EmitResult;
pub use sluicegate_abi::progress::CancelFlag;
pub use sluicegate_abi::record::ProducerRecord;
pub use sluicegate_abi::{
    RawOutcome, RawRecord, RecordPlace, outcome_code, outcome_flag, record_flag,
};

/// A kind of plugin: reads and loads its artefacts.
pub trait HandlerRuntime: Send + Sync {
    /// The kind's name in specs and listings, such as `native`.
    fn kind(&self) -> &'static str;

    /// Whether code of this kind runs in the service's process, which it can then end.
    fn runs_in_process(&self) -> bool {
        true
    }

    /// Whether the file at `path` has the name of an artefact of this kind. The file is not opened.
    fn recognises(&self, path: &Path) -> bool;

    /// Reads the artefact's identity without running any of its code.
    ///
    /// # Errors
    /// [`LoadError`] names the failed check and the reason.
    fn inspect(&self, path: &Path) -> Result<PluginIdentity, LoadError>;

    /// Loads the artefact for a new generation: code with this digest that is loaded is used again, other code is loaded from a private copy
    /// under `cache` (G11). Nothing of the file is copied, mapped or run
    /// before the digest of exactly those bytes has been compared with that of `artefact`.
    ///
    /// # Errors
    /// [`LoadError`] names the failed check and the reason; nothing of a refused artefact stays active.
    fn load(
        &self,
        artefact: &VerifiedArtefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Arc<dyn LoadedPlugin>, LoadError>;
}

/// Identity of a plugin, readable before any of its code runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginIdentity {
    /// Catalogue name.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// Names of the exported handlers; a spec's `plugin` may name any of them.
    pub handlers: Vec<String>,
    /// ABI version that it was built with, `major.minor`.
    pub abi: String,
    /// Compiler and target, human-readable.
    pub toolchain: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

/// An artefact that was read and accepted: the only bytes that may be loaded for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedArtefact {
    /// Its file.
    pub path: PathBuf,
    /// SHA-256 of the accepted bytes, lower-case hex.
    pub sha256: String,
}

impl VerifiedArtefact {
    /// The file at `path`, whose bytes were accepted with this identity.
    pub fn new(path: &Path, identity: &PluginIdentity) -> Self {
        Self::of_digest(path, &identity.sha256)
    }

    /// The file at `path`, whose bytes with this digest were accepted.
    pub fn of_digest(path: &Path, sha256: &str) -> Self {
        Self {
            path: path.to_owned(),
            sha256: sha256.to_owned(),
        }
    }
}

/// A handler exported by a loaded plugin, as described by the plugin.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HandlerInfo {
    /// Handler name.
    pub name: String,
    /// JSON Schema of its config, as JSON text.
    pub config_schema: String,
    /// Its instances keep state per key: a key is always routed to the same worker of a generation.
    pub keeps_key_state: bool,
    /// Its instances can be reconfigured in place ([`HandlerInstance::reconfigure`]).
    pub takes_config: bool,
    /// It is called once per batch: it decides the outcome of each record, and may receive several records of one lane in
    /// one call.
    pub takes_batches: bool,
    /// Records that an instance handles at a time; 1 means one after the other.
    pub concurrency: u32,
    /// Maximum number of records per call that it wishes for; `u32::MAX` leaves that to the service.
    pub max_batch: u32,
}

impl HandlerInfo {
    /// A handler that takes record by record, one after the other, and keeps no state per key.
    pub fn new(name: &str, config_schema: &str) -> Self {
        Self {
            name: name.to_owned(),
            config_schema: config_schema.to_owned(),
            keeps_key_state: false,
            takes_config: false,
            takes_batches: false,
            concurrency: 1,
            max_batch: u32::MAX,
        }
    }
}

/// Loaded and checked code, in use by one generation or several.
///
/// Artefacts with the same digest may be the same code: a runtime may keep it for the life of the process and give it to one
/// generation after another, also concurrently. Generations then share its static state, and only that; each instance belongs
/// to one of them. Code may be used again after [`Self::shutdown`].
pub trait LoadedPlugin: Send + Sync {
    /// Its identity.
    fn identity(&self) -> &PluginIdentity;

    /// The exported handlers.
    fn handlers(&self) -> &[HandlerInfo];

    /// Builds an instance. Must be called on the worker thread that will use it.
    ///
    /// # Errors
    /// [`CreateError`] when the plugin refuses the config, panics, or has no such handler.
    fn create(&self, request: CreateRequest<'_>) -> Result<Box<dyn HandlerInstance>, CreateError>;

    /// Ends this use of the code. The last use of it that ends, with no instance left anywhere, asks the plugin to stop its background work
    /// (an async runtime's threads). All instances built with this value must have been dropped.
    fn shutdown(&self, deadline_ms: u64);
}

/// An instance to be created.
#[derive(Clone)]
pub struct CreateRequest<'a> {
    /// Name of the handler in the plugin.
    pub handler: &'a str,
    /// Name of the handler in the service.
    pub name: &'a str,
    /// Its config, JSON.
    pub config_json: &'a str,
    /// Number of the worker that will call it, from 0.
    pub worker: u32,
    /// Number of the generation that it belongs to.
    pub generation: u64,
    /// What it may use of the service.
    pub services: Arc<dyn HostServices>,
}

impl<'a> CreateRequest<'a> {
    /// An instance for the first worker of the first generation.
    pub fn new(
        handler: &'a str,
        name: &'a str,
        config_json: &'a str,
        services: Arc<dyn HostServices>,
    ) -> Self {
        Self {
            handler,
            name,
            config_json,
            worker: 0,
            generation: 1,
            services,
        }
    }
}

/// One handler instance, bound to one worker thread (deliberately not `Send`).
pub trait HandlerInstance {
    /// Calls the handler for the call's records, in order, and writes `outcomes[i]` for `records[i]`.
    ///
    /// `outcomes` has the length of the records and is initialized to `NOT_RUN`. Emitted records and the texts behind
    /// `RawOutcome::detail` are given to `host`. Once [`CallRequest::cancel`] is set, which may be before the call,
    /// no further record is started: the remaining ones stay `NOT_RUN` (G5).
    ///
    /// Called through [`call()`], which discards the emits of records without a final outcome.
    fn handle(
        &mut self,
        request: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        host: &mut CallHost<'_>,
    ) -> CallStatus;

    /// Returns a monitor of this instance's calls for other threads.
    fn monitor(&self) -> Arc<dyn CallMonitor>;

    /// Runs the handler's health check.
    ///
    /// # Errors
    /// [`InstanceError`] has the handler's reason, or why the check itself failed.
    fn health(&mut self) -> Result<(), InstanceError>;

    /// Replaces the instance's config; only if [`HandlerInfo::takes_config`] is set.
    ///
    /// # Errors
    /// [`NotTaken`] has the reason, and whether the instance is still usable.
    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken>;

    /// Something happens to a partition. After [`PartitionChange::Assigned`] the instance may receive its records, after the
    /// others it receives no more of this partition and epoch.
    ///
    /// # Errors
    /// The instance cannot follow it, and is to be dropped.
    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), InstanceError>;

    /// The last call has returned: finish pending work within the deadline.
    ///
    /// # Errors
    /// What was not finished.
    fn drain(&mut self, deadline_ms: u64) -> Result<(), InstanceError>;
}

/// The progress of an instance's current call, readable from any thread.
pub trait CallMonitor: Send + Sync {
    /// The serial number of the running call and the index of its current record; `None` between calls.
    fn current(&self) -> Option<CallProgress>;

    /// Copies the outcomes that call `serial` has written so far. Returns `false` without copying if that call has ended.
    fn completed(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool;

    /// Whether a running call can be ended by force, as that of a child process; a thread cannot be.
    fn can_kill(&self) -> bool {
        false
    }

    /// Ends call `serial` by force, if it is still running and [`Self::can_kill`]. It then returns [`CallStatus::Poisoned`], with the
    /// record being handled as failed. Does not block.
    fn kill(&self, serial: u64) {
        let _ = serial;
    }
}

/// Progress of a running call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallProgress {
    /// Serial number of the call within the instance, from 1.
    pub serial: u64,
    /// Index of the record to blame if the call hangs: the one being handled, or the first unfinished one of several.
    pub index: u32,
}

/// Services for a handler, available at any time, also outside a call.
pub trait HostServices: Send + Sync {
    /// Writes a log line under the handler's name.
    fn log(&self, line: &LogLine<'_>);

    /// Adds to a counter, sets a gauge, or records a histogram observation of the handler's own metrics.
    fn metric(&self, kind: MetricKind, name: &str, value: f64);
}

/// A log line of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Its level.
    pub level: LogLevel,
    /// What wrote it, such as a module path; may be empty.
    pub target: &'a str,
    /// The message.
    pub message: &'a str,
    /// Fields, as a JSON object; may be empty.
    pub fields: &'a str,
}

impl<'a> LogLine<'a> {
    /// A line with nothing but a message.
    pub fn new(level: LogLevel, message: &'a str) -> Self {
        Self {
            level,
            target: "",
            message,
            fields: "",
        }
    }
}

/// Log levels, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// A failure.
    Error,
    /// An unexpected condition.
    Warn,
    /// A notable event.
    Info,
    /// Details for troubleshooting.
    Debug,
    /// Fine-grained tracing.
    Trace,
}

/// Kinds of a handler's own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// Monotonic counter.
    Counter,
    /// Settable value.
    Gauge,
    /// Distribution of observations.
    Histogram,
}

/// Why an artefact is not loaded, with a message for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read or copied; a later attempt may succeed.
    #[error("cannot read plugin `{path}`: {source}")]
    Unreadable {
        /// The artefact.
        path: String,
        /// The operating system's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file has other bytes than those that were accepted; the next inspection finds them.
    #[error(
        "plugin `{path}` has changed since it was read; loading is retried after the next scan of the folder"
    )]
    Changed {
        /// The artefact.
        path: String,
    },
    /// A check failed. Only another file can pass those of [`HandlerRuntime::inspect`]. [`HandlerRuntime::load`] may succeed
    /// later with the same file where the cause is outside of it: it described itself too late, a library that it needs is missing, or
    /// the limit of loaded libraries was reached, which ends with the process.
    #[error("plugin `{path}` failed its {gate} check: {source}")]
    Refused {
        /// The artefact.
        path: String,
        /// The failed check: `manifest`, `descriptor`, `header`, `layout`, `description`, `limit`.
        gate: &'static str,
        /// What is wrong and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl LoadError {
    /// Whether no check has failed: the file could not be read or copied, or has changed since it was accepted.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::Changed { .. })
    }
}

/// Why an instance is not healthy, or cannot follow what happens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// The handler's reason; a later attempt may succeed.
    #[error("{0}")]
    Failed(String),
    /// The handler panicked, or the instance panicked earlier or is gone: drop it and build another.
    #[error("{0}")]
    Poisoned(String),
}

/// Why an instance was not reconfigured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It refused the config and keeps the previous one.
    #[error("config refused: {0}")]
    Refused(String),
    /// It panicked, now or earlier: drop it and build another.
    #[error("instance failed to apply its new config: {0}")]
    Poisoned(String),
}

/// Why an instance was not built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The plugin exports no such handler.
    #[error("no handler `{name}` in this plugin; it exports: {known}")]
    Unknown {
        /// The requested name.
        name: String,
        /// Exported handlers, comma separated.
        known: String,
    },
    /// The handler refused its config.
    #[error("config refused: {0}")]
    Config(String),
    /// The handler failed or panicked while starting; a retry may succeed.
    #[error("instance failed to start: {0}")]
    Failed(String),
}
