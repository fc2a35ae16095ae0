//! A handler keeps a record beyond the call.

use sluicegate_sdk::{Context, Handler, Outcome, Record, Result, Setup};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Config {}

struct Keeps {
    last: Option<Record<'static>>,
}

impl Handler for Keeps {
    type Config = Config;

    fn new(_: Config, _: &mut Setup) -> Result<Self> {
        Ok(Self { last: None })
    }

    fn handle(&mut self, record: &Record<'_>, _: &mut Context<'_>) -> Result {
        self.last = Some(*record);
        Ok(Outcome::Ack)
    }
}

fn main() {}
