//! A batch handler is exported without `batch`.

use sluicegate_sdk::{Batch, BatchContext, BatchHandler, Outcome, Result, Setup};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Config {}

struct Archive;

impl BatchHandler for Archive {
    type Config = Config;

    fn new(_: Config, _: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle_batch(&mut self, _: &Batch<'_>, _: &mut BatchContext<'_>) -> Result {
        Ok(Outcome::Ack)
    }
}

sluicegate_sdk::export_handler! {
    "archive" => Archive,
}

fn main() {}
