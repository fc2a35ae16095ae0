//! The `noop` handler: acknowledges every record, with one handler call per record. Used to measure the service's overhead.

use schemars::JsonSchema;
use serde::Deserialize;
use sluicegate_sdk::{Context, Handler, HandlerError, Outcome, Record, Setup};

/// Empty config.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The handler.
#[derive(Debug)]
pub struct Noop;

impl Handler for Noop {
    type Config = Config;

    fn new(_config: Config, _setup: &mut Setup) -> Result<Self, HandlerError> {
        Ok(Self)
    }

    fn handle(&mut self, _record: &Record<'_>, _ctx: &mut Context<'_>) -> Outcome {
        Outcome::Ack
    }
}

sluicegate_sdk::export_handler! {
    "noop" => Noop,
}
