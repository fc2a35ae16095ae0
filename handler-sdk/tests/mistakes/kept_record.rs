//! A handler keeps a record beyond the call.

use sluicegate_sdk::{Context, Handler, HandlerError, Outcome, Record, Setup};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Config {}

struct Keeps {
    last: Option<Record<'static>>,
}

impl Handler for Keeps {
    type Config = Config;

    fn new(_: Config, _: &mut Setup) -> Result<Self, HandlerError> {
        Ok(Self { last: None })
    }

    fn handle(&mut self, record: &Record<'_>, _: &mut Context<'_>) -> Outcome {
        self.last = Some(*record);
        Outcome::Ack
    }
}

fn main() {}
