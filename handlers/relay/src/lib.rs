//! The `relay` handler: copies records to another topic.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use sluicegate_sdk::{Context, Emit, Handler, HandlerError, Outcome, Record, Result, Setup};

/// Config of `relay`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Target topic; key, value, headers and timestamp are kept.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub topic: String,
    /// Headers to set on the copy, replacing any of the same name.
    #[serde(default)]
    pub set_headers: BTreeMap<String, String>,
    /// Headers to omit from the copy.
    #[serde(default)]
    pub drop_headers: Vec<String>,
    /// Adds `sluicegate.source` (`topic/partition/offset`), `sluicegate.handler` (`name@version`), `sluicegate.epoch` and
    /// `sluicegate.attempt`, replacing any of the same names.
    #[serde(default)]
    pub provenance: bool,
}

/// Copies every record.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    /// `name@version`.
    handler: String,
}

impl Config {
    fn check(&self) -> Result<()> {
        if self.topic.is_empty() {
            return Err(HandlerError::terminal(
                "`topic` is empty; name the topic that copies go to",
            ));
        }
        Ok(())
    }
}

impl Handler for Relay {
    type Config = Config;
    const TAKES_CONFIG: bool = true;

    fn new(config: Config, setup: &mut Setup) -> Result<Self> {
        config.check()?;
        let handler = format!("{}@{}", setup.instance(), env!("CARGO_PKG_VERSION"));
        Ok(Self { config, handler })
    }

    fn reconfigure(&mut self, config: Config) -> Result<()> {
        config.check()?;
        self.config = config;
        Ok(())
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        let config = &self.config;
        if record.topic() == config.topic {
            return Ok(Outcome::dead_letter(
                "its source topic is also the target topic",
            ));
        }
        let mut copy = Emit::copy_of(record, &config.topic);
        for name in config.drop_headers.iter().chain(config.set_headers.keys()) {
            copy = copy.without_header(name);
        }
        for (name, value) in &config.set_headers {
            copy = copy.header(name, value.as_bytes());
        }
        let source;
        let (epoch, attempt);
        if config.provenance {
            source = format!(
                "{}/{}/{}",
                record.topic(),
                record.partition(),
                record.offset()
            );
            (epoch, attempt) = (record.epoch().to_string(), record.attempt().to_string());
            for (name, value) in [
                ("sluicegate.source", &source),
                ("sluicegate.handler", &self.handler),
                ("sluicegate.epoch", &epoch),
                ("sluicegate.attempt", &attempt),
            ] {
                copy = copy.without_header(name).header(name, value.as_bytes());
            }
        }
        ctx.emit(copy);
        Ok(Outcome::Ack)
    }
}

sluicegate_sdk::export_handler! {
    "relay" => Relay,
}
