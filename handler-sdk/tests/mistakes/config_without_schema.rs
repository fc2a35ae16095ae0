//! The config lacks `JsonSchema`.

use sluicegate_sdk::{Context, Handler, Outcome, Record, Result, Setup};

#[derive(serde::Deserialize)]
struct Config {}

struct Orders;

impl Handler for Orders {
    type Config = Config;

    fn new(_: Config, _: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle(&mut self, _: &Record<'_>, _: &mut Context<'_>) -> Result {
        Ok(Outcome::Ack)
    }
}

fn main() {}
