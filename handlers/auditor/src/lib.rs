//! The `auditor` handler: writes one row per record into SQLite or PostgreSQL.
//!
//! The rows of a call are written in one transaction. An existing row (same topic, topic id, partition, offset) is left
//! unchanged, so a redelivered record has no effect.

mod postgres;
mod store;

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use sluicegate_sdk::{Batch, BatchContext, BatchHandler, HandlerError, Outcome, Result, Setup};
use tokio::runtime::Runtime;

use store::{Row, Store, WriteError};

/// Config of `auditor`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `sqlite:///path/audit.db`, or `postgres://user:password@host/database`.
    pub url: String,
    /// The table, created if missing. Letters, digits and `_`, optionally with a schema: `schema.table`.
    #[serde(default = "default_table")]
    pub table: String,
    /// Stores the value; otherwise only its length.
    #[serde(default = "yes")]
    pub store_value: bool,
    /// Timeout for connecting to the database when an instance is created, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub connect_timeout_ms: u64,
}

fn default_table() -> String {
    "audit".into()
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> u64 {
    10_000
}

/// The handler. Each worker has one connection and one single-threaded runtime.
#[derive(Debug)]
pub struct Auditor {
    // Before the runtime: closing the connection needs it.
    store: Store,
    runtime: Runtime,
    store_value: bool,
}

impl BatchHandler for Auditor {
    type Config = Config;

    fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| HandlerError::retryable(format!("no async runtime: {error}")))?;
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        let store = runtime.block_on(Store::open(&config.url, &config.table, timeout))?;
        Ok(Self {
            store,
            runtime,
            store_value: config.store_value,
        })
    }

    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result {
        let rows: Vec<Row<'_>> = batch
            .iter()
            .map(|record| Row::of(&record, self.store_value))
            .collect();
        let written = self.store.write(&rows, ctx.deadline());
        match self.runtime.block_on(written) {
            Ok(written) => {
                ctx.services().counter("rows_written", written);
                Ok(Outcome::Ack)
            }
            Err(WriteError::Away(error)) => Err(HandlerError::unavailable(format!(
                "the database takes no rows: {error}"
            ))),
            // Nothing was written, so every record of the call is retried.
            Err(WriteError::Refused(error)) => Ok(Outcome::retry(format!(
                "the database refused the rows: {error}"
            ))),
        }
    }

    fn health(&mut self) -> Result<()> {
        self.runtime.block_on(self.store.ping()).map_err(|error| {
            HandlerError::retryable(format!("the database does not answer: {error}"))
        })
    }
}

sluicegate_sdk::export_handler! {
    "auditor" => batch Auditor,
}
