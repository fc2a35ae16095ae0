//! The `noop` handler: acknowledges every record, with one handler call per record. Used to measure the service's overhead.

use sluicegate_sdk::{Context, Handler, Outcome, Record, Result, Setup};

/// The handler.
#[derive(Debug)]
pub struct Noop;

impl Handler for Noop {
    type Config = ();

    fn new((): (), _setup: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle(&mut self, _record: &Record<'_>, _ctx: &mut Context<'_>) -> Result {
        Ok(Outcome::Ack)
    }
}

sluicegate_sdk::export_handler! {
    "noop" => Noop,
}
