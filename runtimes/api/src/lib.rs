//! The runtime interface between the service and the kinds of plugin (native, process, WebAssembly, script).
//!
//! ```text
//!  HandlerRuntime::load(file) ─► LoadedPlugin::create(handler, config) ─► HandlerInstance::handle(call) ─► outcomes
//!        (a kind of plugin)        (one generation's code)                   (one worker's object)
//! ```
//!
//! The service knows nothing else of a plugin. A runtime keeps three promises:
//! 1. Nothing that plugin code does (panic, error, garbage) unwinds out of these methods or is lost: it becomes an
//!    outcome code, a [`CallStatus`] or an error value with a sentence for the operator.
//! 2. An instance is created, called and dropped on one thread of its generation, and nowhere else.
//! 3. What a call has finished so far can be read from another thread while the call runs ([`CallMonitor`]), so that a
//!    call which hangs costs only the record it hangs on.

use std::path::Path;
use std::sync::Arc;

pub use sluicegate_abi::board::CancelFlag;
pub use sluicegate_abi::{
    RawOutcome, RawRecord, RecordPlace, outcome_code, outcome_flag, record_flag,
};

/// A kind of plugin: knows how to read and load its artefacts.
pub trait HandlerRuntime: Send + Sync {
    /// The kind's name in specs and listings, such as `native`.
    fn kind(&self) -> &'static str;

    /// Whether the file at `path` looks like an artefact of this kind (by name or first bytes; runs no plugin code).
    fn recognises(&self, path: &Path) -> bool;

    /// Reads what the artefact says of itself without running any of its code.
    ///
    /// # Errors
    /// [`LoadError`] says which gate refused it and why.
    fn inspect(&self, path: &Path) -> Result<PluginIdentity, LoadError>;

    /// Loads the artefact as a new generation from a private copy under `cache` (G11).
    ///
    /// # Errors
    /// [`LoadError`] says which gate refused it and why; nothing of a refused artefact stays active.
    fn load(
        &self,
        path: &Path,
        cache: &Path,
        generation: u64,
    ) -> Result<Arc<dyn LoadedPlugin>, LoadError>;
}

/// Who a plugin is, readable before any of its code runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginIdentity {
    /// Catalogue name.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// Names of the handlers that it exports; a spec's `plugin` may name any of them.
    pub handlers: Vec<String>,
    /// Version of the ABI that it was built with, `major.minor`.
    pub abi: String,
    /// Compiler and target, for people.
    pub toolchain: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

/// One handler that a loaded plugin exports, as the plugin describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct HandlerInfo {
    /// Handler name.
    pub name: String,
    /// JSON Schema of its config, as JSON text.
    pub config_schema: String,
    /// It keeps state per key inside its instance: a key always goes to the same worker of a generation.
    pub keeps_key_state: bool,
    /// Its instances take a new config ([`HandlerInstance::reconfigure`]).
    pub takes_config: bool,
    /// Its own batch method is called: the records of a call succeed or fail as it says, and it may see several
    /// records of one lane in one call.
    pub takes_batches: bool,
}

/// The code of one generation, loaded and checked.
pub trait LoadedPlugin: Send + Sync {
    /// Who it is.
    fn identity(&self) -> &PluginIdentity;

    /// The handlers that it exports.
    fn handlers(&self) -> &[HandlerInfo];

    /// Builds one instance of `handler`. Call it on the worker thread that will use the instance.
    ///
    /// # Errors
    /// [`CreateError`] when the plugin refuses the config, panics, or has no such handler.
    fn create(
        &self,
        handler: &str,
        instance_name: &str,
        config_json: &str,
        services: Arc<dyn HostServices>,
    ) -> Result<Box<dyn HandlerInstance>, CreateError>;

    /// Asks the plugin to end what it runs on its own (an async runtime's threads). All instances are gone by then.
    fn shutdown(&self, deadline_ms: u64);
}

/// One running handler object; lives on one worker thread (it is deliberately not `Send`).
pub trait HandlerInstance {
    /// Calls the handler for the call's records, in order, and writes `outcomes[i]` for `records[i]`.
    ///
    /// `outcomes` has the length of the records and comes filled with `NOT_RUN`. Emitted records and the texts behind
    /// `RawOutcome::detail` are appended to `output`; what a record emitted before it ended in a retry, a panic or an
    /// unknown code is left out, and its `EMITTED` flag taken back. Once [`CallRequest::cancel`] is set, which may be
    /// before the call, no further record is begun: what is left stays `NOT_RUN` (G5).
    fn handle(
        &mut self,
        call: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        output: &mut CallOutput,
    ) -> CallStatus;

    /// Watches the calls of this instance from another thread.
    fn monitor(&self) -> Arc<dyn CallMonitor>;

    /// Asks the handler whether it is well.
    ///
    /// # Errors
    /// The reason it gives, or what went wrong in asking.
    fn health(&mut self) -> Result<(), String>;

    /// Takes a config in the place of the one that it was built with; only if [`HandlerInfo::takes_config`] says so.
    ///
    /// # Errors
    /// [`NotTaken`] says why not, and whether the instance can go on.
    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken>;

    /// A partition's records will come to this instance's handler from now on.
    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32);

    /// No record of this partition and epoch will come any more.
    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32);

    /// The last calls are over; finish what is held back, by the deadline.
    fn drain(&mut self, deadline_ms: u64);
}

/// What an instance is called with.
#[derive(Clone, Copy, Debug)]
pub struct CallRequest<'a> {
    /// The records, in order. Their memory is alive as long as they are: it is lent until the batch has come back, and left
    /// behind for ever should the batch be lost ([`sluicegate_abi::lend`]).
    pub records: &'a [RawRecord],
    /// The deadline of the whole call, as the handler learns it; 0 is no limit.
    pub timeout_ms: u64,
    /// Set, from any thread, once the result is no longer wanted: the call overran its timeout, or a partition of its
    /// records is no longer ours. The handler sees it through its context.
    pub cancel: &'a CancelFlag,
}

/// Whether the instance can be used again after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStatus {
    /// Ready for the next call.
    Usable,
    /// It panicked (or broke the contract): drop it and build another.
    Spent,
}

/// The progress of an instance's current call, readable from any thread.
pub trait CallMonitor: Send + Sync {
    /// `None` between calls; otherwise the call's serial number and the index of the record that it is at.
    fn current(&self) -> Option<CallProgress>;

    /// Copies the outcomes that call `serial` has written so far. `false`, and nothing copied, if that call is over.
    fn completed(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool;
}

/// Where a running call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallProgress {
    /// Counts the calls of the instance, from 1.
    pub serial: u64,
    /// Index of the record being handled; the outcomes before it are final.
    pub index: u32,
}

/// What a call gives back besides outcomes; reused between calls.
#[derive(Debug, Default)]
pub struct CallOutput {
    /// Texts that outcomes point to by index + 1.
    pub details: Vec<String>,
    /// Records to produce, in the order in which they were emitted.
    pub emits: Vec<Emit>,
}

impl CallOutput {
    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.details.clear();
        self.emits.clear();
    }
}

/// A record that a handler wants produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emit {
    /// Index in the call of the record for which it was emitted: that record settles only once this is acknowledged.
    pub record: u32,
    /// Target topic.
    pub topic: String,
    /// Target partition; `None` lets the producer choose by key.
    pub partition: Option<i32>,
    /// Timestamp in milliseconds; `None` is now.
    pub timestamp_ms: Option<i64>,
    /// Key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// Value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Header block in Kafka's format (see [`sluicegate_abi::header_block`]); empty is none.
    pub headers: Vec<u8>,
}

/// What the service does for a handler at any time, also outside a call.
pub trait HostServices: Send + Sync {
    /// Writes a log line under the handler's name.
    fn log(&self, level: LogLevel, message: &str);

    /// Adds to a counter (`Counter`), sets a gauge, or observes into a histogram of the handler's own.
    fn metric(&self, kind: MetricKind, name: &str, value: f64);
}

/// Log levels, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// Something worth knowing.
    Info,
    /// For whoever looks for a cause.
    Debug,
    /// Everything.
    Trace,
}

/// Kinds of a handler's own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// Why an artefact is not loaded; each is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read or copied.
    #[error("cannot read plugin `{path}`: {reason}")]
    Unreadable {
        /// The artefact.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A gate refused it.
    #[error("plugin `{path}` is refused by its {gate}: {reason}")]
    Refused {
        /// The artefact.
        path: String,
        /// Which of the gates: `manifest`, `descriptor`, `header`, `layout`, `description`, `limit`.
        gate: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Why an instance has not taken a new config.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It refused it, and goes on with the one that it has.
    #[error("config refused: {0}")]
    Refused(String),
    /// It panicked (or was spent before): drop it and build another.
    #[error("instance failed to take its new config: {0}")]
    Spent(String),
}

/// Why an instance was not built.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The plugin exports no such handler.
    #[error("no handler `{name}` in this plugin; it has: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is, comma separated.
        known: String,
    },
    /// The handler refused its config.
    #[error("config refused: {0}")]
    Config(String),
    /// The handler failed or panicked while starting; trying again may help.
    #[error("instance failed to start: {0}")]
    Failed(String),
}
