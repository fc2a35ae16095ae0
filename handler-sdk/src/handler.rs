//! The traits that an author implements, and the service's guarantees to them.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use sluicegate_abi::plugin::{Create, Host};

use crate::context::{Batch, BatchContext, Context, Services};
use crate::outcome::{HandlerError, Result};
use crate::partition::Partition;
use crate::record::Record;
use crate::shared;

/// The error of a handler that declares `TAKES_CONFIG` without implementing `reconfigure`.
pub(crate) const TAKES_NONE: &str = "it declares TAKES_CONFIG but does not implement `reconfigure`";

/// Handles records one by one: the usual choice.
///
/// # Guarantees
///
/// 1. `new` is called first, once per worker of the handler's pool, on that worker's thread.
/// 2. All other calls on an instance are made on the same thread, one at a time: nothing overlaps within an instance, and
///    the type need be neither `Send` nor `Sync`.
/// 3. `assigned` is called before the first record of a partition (and epoch), `revoked` after the last; both are called
///    on every instance, and an error of either drops it. Between them, records of one partition arrive in offset order per key, at any idle worker; with
///    [`Handler::KEEPS_KEY_STATE`] a key stays with one instance of a generation.
/// 4. After a record that was not acked or dropped, no later record of the same key is handled until it is settled, across
///    retries and generations. Later ones may be handled while what a record has emitted is being written; it is written, and they
///    settle, in the order of the records (G4).
/// 5. A record may be redelivered (with a higher `attempt` after a retry or a panic, and with attempt 1 after a crash):
///    effects outside Kafka should be idempotent or fenced with `Context::token`.
/// 6. A panic costs one instance: the record gets another attempt or is dead-lettered, the instance is dropped, and a new
///    one is built. State kept in the instance is lost.
/// 7. A call is cancelled (`Context::cancelled`) when it exceeds its timeout, and when a partition of its records is lost
///    or its drain deadline has passed: no further record of the call is started, and records that still belong to this
///    service are redelivered in another call. If a timed-out call does not return, its thread is abandoned together with
///    the instance, which is then neither called nor dropped. When a partition of its records starts to drain, or after 500 ms (of an async handler, after the timeout of a record), a
///    call ends after its current record, which is not cancelled; the others are delivered in another call.
/// 8. `health` is called between calls, `drain` after the last record; dropping the instance comes last. A panic in any
///    of them is contained.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Handler`, so it cannot be exported as `\"name\" => {Self}`",
    label = "implement `sluicegate_sdk::Handler` for it",
    note = "write `\"name\" => batch {Self}` for a `BatchHandler`, `\"name\" => async {Self}` for an `AsyncHandler`"
)]
pub trait Handler: Sized + 'static {
    /// Read from the spec's `config`; its JSON Schema ships in the plugin.
    ///
    /// Mark a field that names a target topic of the handler with `#[schemars(extend("x-sluicegate-emits-to" = true))]`:
    /// a spec whose route matches that topic is then refused, because each emitted record would be routed back.
    type Config: DeserializeOwned + JsonSchema;

    /// The instance keeps state per key: a key is then always routed to the same worker of a generation.
    const KEEPS_KEY_STATE: bool = false;

    /// A new config is passed to running instances through [`Handler::reconfigure`], which keep their state. Otherwise it
    /// creates a new generation, whose instances start without state.
    const TAKES_CONFIG: bool = false;

    /// Builds an instance.
    ///
    /// # Errors
    /// A terminal error refuses the config; a retryable one is a failed start that is retried.
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self>;

    /// Handles one record.
    ///
    /// # Errors
    /// A retryable error asks for another attempt, a terminal one for a dead letter.
    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result;

    /// Applies a new config, between calls; only with [`Handler::TAKES_CONFIG`]. One instance is reconfigured first; the
    /// others follow once it is healthy, and an instance that fails is rebuilt. In between, instances have different
    /// configs.
    ///
    /// # Errors
    /// The config is refused, and the instance keeps the previous one.
    fn reconfigure(&mut self, config: Self::Config) -> Result<()> {
        drop(config);
        Err(HandlerError::terminal(TAKES_NONE))
    }

    /// Whether the instance can do its work.
    ///
    /// # Errors
    /// What is wrong; it is listed in the service's readiness report.
    fn health(&mut self) -> Result<()> {
        Ok(())
    }

    /// A partition was assigned: its records may follow.
    ///
    /// # Errors
    /// The instance cannot take it over, for example because its state cannot be loaded: it is dropped, and another one is built,
    /// with backoff.
    fn assigned(&mut self, partition: &Partition<'_>) -> Result<()> {
        let _ = partition;
        Ok(())
    }

    /// A partition was revoked or lost ([`Partition::is_lost`]): no more records of this partition and epoch follow.
    ///
    /// # Errors
    /// What could not be finished; the instance is dropped.
    fn revoked(&mut self, partition: &Partition<'_>) -> Result<()> {
        let _ = partition;
        Ok(())
    }

    /// The last record was handled: finish pending work within `deadline`.
    ///
    /// # Errors
    /// What could not be finished.
    fn drain(&mut self, deadline: Duration) -> Result<()> {
        let _ = deadline;
        Ok(())
    }
}

/// Handles the records of a call together, for example in one transaction.
///
/// The guarantees of [`Handler`] apply, but a call may contain several records of one key, in offset order, and the handler decides
/// their outcomes: the fourth applies between calls. A panic counts as a failed attempt of every record of the call that has
/// no outcome yet.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `BatchHandler`, so it cannot be exported as `\"name\" => batch {Self}`",
    label = "implement `sluicegate_sdk::BatchHandler` for it"
)]
pub trait BatchHandler: Sized + 'static {
    /// As [`Handler::Config`].
    type Config: DeserializeOwned + JsonSchema;

    /// As [`Handler::KEEPS_KEY_STATE`].
    const KEEPS_KEY_STATE: bool = false;

    /// As [`Handler::TAKES_CONFIG`].
    const TAKES_CONFIG: bool = false;

    /// Maximum number of records per call; the service chooses a number up to it by what calls cost.
    const MAX_RECORDS: u32 = u32::MAX;

    /// As [`Handler::new`].
    ///
    /// # Errors
    /// As [`Handler::new`].
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self>;

    /// Handles the records. The returned outcome applies to those without one from [`BatchContext::settle`].
    ///
    /// # Errors
    /// As [`Handler::handle`], for those records.
    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result;

    /// As [`Handler::reconfigure`].
    ///
    /// # Errors
    /// As [`Handler::reconfigure`].
    fn reconfigure(&mut self, config: Self::Config) -> Result<()> {
        drop(config);
        Err(HandlerError::terminal(TAKES_NONE))
    }

    /// As [`Handler::health`].
    ///
    /// # Errors
    /// As [`Handler::health`].
    fn health(&mut self) -> Result<()> {
        Ok(())
    }

    /// As [`Handler::assigned`].
    ///
    /// # Errors
    /// As [`Handler::assigned`].
    fn assigned(&mut self, partition: &Partition<'_>) -> Result<()> {
        let _ = partition;
        Ok(())
    }

    /// As [`Handler::revoked`].
    ///
    /// # Errors
    /// As [`Handler::revoked`].
    fn revoked(&mut self, partition: &Partition<'_>) -> Result<()> {
        let _ = partition;
        Ok(())
    }

    /// As [`Handler::drain`].
    ///
    /// # Errors
    /// As [`Handler::drain`].
    fn drain(&mut self, deadline: Duration) -> Result<()> {
        let _ = deadline;
        Ok(())
    }
}

/// Environment and options of `new`.
#[derive(Debug)]
pub struct Setup {
    services: Services,
    handler: String,
    instance: String,
    worker: u32,
    generation: u64,
    pub(crate) concurrency: Option<usize>,
}

impl Setup {
    pub(crate) fn new(host: Host, create: &Create<'_>) -> Self {
        Self {
            services: Services::new(host),
            handler: create.handler.to_string(),
            instance: create.instance.to_string(),
            worker: create.worker,
            generation: create.generation,
            concurrency: None,
        }
    }

    /// Logging and metrics; clone it for the handler's own threads or tasks.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The handler's name in this plugin.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The handler's name in the service: that of its spec.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Number of the worker that the instance belongs to, from 0.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// What the instances of this handler share: built by the first one of a generation that asks for it, and dropped with the
    /// last one. For connection pools and caches; each type is shared once.
    ///
    /// # Errors
    /// That of `build`. The next instance tries again.
    pub fn shared<T: Send + Sync + 'static>(
        &self,
        build: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        shared::get((&self.instance, self.generation), build)
    }

    /// Sets the concurrency of an `AsyncHandler`; other handlers ignore it.
    pub fn set_concurrency(&mut self, records: usize) {
        self.concurrency = Some(records.max(1));
    }
}
