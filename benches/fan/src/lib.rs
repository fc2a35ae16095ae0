//! The `fan` handler: emits copies of its records, or of a share of them. Used to measure fan-out and filtering.

use schemars::JsonSchema;
use serde::Deserialize;
use sluicegate_sdk::{Context, Emit, Handler, HandlerError, Outcome, Record, Result, Setup};

/// Config of `fan`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Target topic; key, value, headers and timestamp are kept.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub topic: String,
    /// Copies of each record.
    #[serde(default = "one")]
    pub copies: u32,
    /// Percentage of the records that are acknowledged without a copy: those whose offset modulo 100 is below it.
    #[serde(default)]
    pub drop_percent: u8,
}

fn one() -> u32 {
    1
}

/// The handler.
#[derive(Debug)]
pub struct Fan {
    config: Config,
}

impl Handler for Fan {
    type Config = Config;

    fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
        if config.topic.is_empty() || config.drop_percent > 100 {
            return Err(HandlerError::terminal(
                "`topic` must not be empty, and `drop_percent` is at most 100",
            ));
        }
        Ok(Self { config })
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        if record.offset() % 100 >= i64::from(self.config.drop_percent) {
            let copy = Emit::copy_of(record, &self.config.topic);
            for _ in 0..self.config.copies {
                ctx.emit(&copy);
            }
        }
        Ok(Outcome::Ack)
    }
}

sluicegate_sdk::export_handler! {
    "fan" => Fan,
}
