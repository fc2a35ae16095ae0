//! The traits that an author implements, and what the service promises them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use sluicegate_abi::plugin::Host;

use crate::context::{Batch, BatchContext, Context, Services};
use crate::outcome::{HandlerError, Outcome};
use crate::record::Record;

/// What a handler says that declares `TAKES_CONFIG` and has no `reconfigure`.
pub(crate) const TAKES_NONE: &str = "it declares TAKES_CONFIG and implements no `reconfigure`";

/// Handles records one by one: the usual choice.
///
/// # What the service promises
///
/// 1. `new` comes first, once for each worker of the handler's pool, on that worker's thread.
/// 2. Everything else on an instance comes on that same thread, one call at a time: nothing overlaps within an
///    instance, and the type need be neither `Send` nor `Sync`.
/// 3. `assigned` comes before the first record of a partition (and epoch), `revoked` after the last; both come to
///    every instance. Between them records of one partition come in offset order per key, but to whichever worker is
///    idle; with [`Handler::KEEPS_KEY_STATE`] a key stays with one instance of a generation.
/// 4. After a record that is not acked or dropped, or that emitted something, no later record of the same key is
///    handled until it is settled, across retries and generations (G4).
/// 5. A record may come again (with a higher `attempt` after a retry or a panic, and also with attempt 1 after a crash):
///    effects outside Kafka should be idempotent or fenced with `Context::token`.
/// 6. A panic costs one instance: the record gets another attempt or its dead letter, the instance is dropped, a new
///    one is built. State kept in the instance is gone then.
/// 7. A call is cancelled (`Context::cancelled`) when it overruns its timeout, and when a partition of its records is
///    lost or has used up its time to drain: no further record of the call begins then, and those that are still this
///    service's come again in another call. If a call that overruns does not return, its thread is abandoned with the
///    instance on it, which is then neither called nor dropped. When a partition of its records starts to drain, a call
///    ends after the record that it is at, which is not cancelled.
/// 8. `health` comes between calls; `drain` comes after the last record; dropping the instance comes last. A panic in
///    any of them is contained.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Handler`, so it cannot be exported as `\"name\" => {Self}`",
    label = "implement `sluicegate_sdk::Handler` for it",
    note = "write `\"name\" => batch {Self}` for a `BatchHandler`, `\"name\" => async {Self}` for an `AsyncHandler`"
)]
pub trait Handler: Sized + 'static {
    /// Read from the spec's `config`; its JSON Schema ships in the plugin.
    ///
    /// Mark a field that names a topic which the handler emits to with `#[schemars(extend("x-sluicegate-emits-to" = true))]`:
    /// a spec whose own route matches that topic is then refused, since each emitted record would come back.
    type Config: DeserializeOwned + JsonSchema;

    /// The instance keeps state per key: a key then always goes to the same worker of a generation.
    const KEEPS_KEY_STATE: bool = false;

    /// A new config is given to the running instances through [`Handler::reconfigure`], which keep what they know.
    /// Otherwise it makes a new generation, whose instances begin anew.
    const TAKES_CONFIG: bool = false;

    /// Builds an instance.
    ///
    /// # Errors
    /// A terminal error refuses the config; a retryable one is a failed start that is tried again.
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, HandlerError>;

    /// Handles one record.
    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Outcome;

    /// Takes a new config, between calls; only with [`Handler::TAKES_CONFIG`]. One instance is asked first, and the others
    /// once it is well with it; one that cannot is dropped and built anew. For a moment some instances have the old config
    /// and some the new one.
    ///
    /// # Errors
    /// The config is refused, and the instance goes on with the one that it has.
    fn reconfigure(&mut self, config: Self::Config) -> Result<(), HandlerError> {
        drop(config);
        Err(HandlerError::terminal(TAKES_NONE))
    }

    /// Whether the instance can do its work.
    ///
    /// # Errors
    /// What is wrong; it shows in the service's readiness.
    fn health(&mut self) -> Result<(), HandlerError> {
        Ok(())
    }

    /// A partition's records will come.
    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// No record of this partition and epoch will come any more.
    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// The last record was handled; finish what is held back, within `deadline`.
    fn drain(&mut self, deadline: Duration) {
        let _ = deadline;
    }
}

/// Handles the records of a call together, such as in one transaction.
///
/// The promises of [`Handler`] hold, but for the fourth: a call may hold several records of one key, in offset order,
/// and their outcomes are what the handler says. A panic counts as a failed attempt of every record of the call that
/// has no outcome yet.
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

    /// As [`Handler::new`].
    ///
    /// # Errors
    /// As [`Handler::new`].
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, HandlerError>;

    /// Handles the records; what it returns is the outcome of those that got none through
    /// [`BatchContext::settle`].
    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Outcome;

    /// As [`Handler::reconfigure`].
    ///
    /// # Errors
    /// As [`Handler::reconfigure`].
    fn reconfigure(&mut self, config: Self::Config) -> Result<(), HandlerError> {
        drop(config);
        Err(HandlerError::terminal(TAKES_NONE))
    }

    /// As [`Handler::health`].
    ///
    /// # Errors
    /// As [`Handler::health`].
    fn health(&mut self) -> Result<(), HandlerError> {
        Ok(())
    }

    /// As [`Handler::assigned`].
    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// As [`Handler::revoked`].
    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// As [`Handler::drain`].
    fn drain(&mut self, deadline: Duration) {
        let _ = deadline;
    }
}

/// What `new` can ask and say.
#[derive(Debug)]
pub struct Setup {
    services: Services,
    handler: String,
    instance: String,
    pub(crate) concurrency: Option<usize>,
}

impl Setup {
    pub(crate) fn new(host: Host, handler: &str, instance: &str) -> Self {
        Self {
            services: Services::new(host),
            handler: handler.to_string(),
            instance: instance.to_string(),
            concurrency: None,
        }
    }

    /// Logging and metrics; clone it for threads or tasks of the handler's own.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The handler's name in this plugin.
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The instance's name in the service, such as the spec's name and a worker number.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// How many records an `AsyncHandler` handles at a time; others ignore it.
    pub fn set_concurrency(&mut self, records: usize) {
        self.concurrency = Some(records.max(1));
    }
}
