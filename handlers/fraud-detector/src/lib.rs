//! The `fraud-detector` handler: emits an alert for values that are outliers for their key.

mod statistics;

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluicegate_sdk::json::as_number;
use sluicegate_sdk::{
    Classify, Context, Emit, Handler, HandlerError, Outcome, Partition, Record, Result, Setup,
};

use statistics::{Keys, Statistics};

/// Config of `fraud-detector`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Target topic of alerts.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub topic: String,
    /// The monitored numeric field; dots separate nested objects (`payment.amount`).
    pub field: String,
    /// A value more than this many standard deviations from its key's mean causes an alert.
    pub threshold: f64,
    /// Number of records per key before the first alert.
    pub warm_up: u64,
    /// Minimum number of keys that a worker remembers per partition; least recently used keys are evicted.
    pub max_keys: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            topic: "fraud-alerts".into(),
            field: "amount".into(),
            threshold: 3.0,
            warm_up: 30,
            max_keys: 100_000,
        }
    }
}

/// An alert, as JSON.
#[derive(Debug, Serialize)]
struct Alert<'a> {
    key: String,
    field: &'a str,
    value: f64,
    mean: f64,
    standard_deviation: f64,
    /// `null` if all values so far were equal.
    deviations: Option<f64>,
    records: u64,
    source: String,
}

/// Monitors the values of each key.
///
/// A redelivered record (after a retry) is evaluated against the statistics before its first delivery, and counts once.
#[derive(Debug)]
pub struct FraudDetector {
    config: Config,
    /// By topic and partition, so that a revoked partition's keys can be dropped.
    partitions: HashMap<(String, i32), Keys>,
}

impl Config {
    fn check(&self) -> Result<()> {
        let refuse = |text: &str| Err(HandlerError::terminal(text));
        if self.topic.is_empty() || self.field.is_empty() {
            return refuse("`topic` and `field` cannot be empty");
        }
        if !self.threshold.is_finite() || self.threshold <= 0.0 {
            return refuse("`threshold` must be a number above 0");
        }
        if self.warm_up < 2 {
            return refuse("`warm_up` must be at least 2: a single record has no deviation");
        }
        if self.max_keys == 0 {
            return refuse("`max_keys` must be at least 1");
        }
        Ok(())
    }
}

impl Handler for FraudDetector {
    type Config = Config;
    const KEEPS_KEY_STATE: bool = true;
    const TAKES_CONFIG: bool = true;

    fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            partitions: HashMap::new(),
        })
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        let Some(key) = record.key() else {
            return Ok(Outcome::drop("it has no key"));
        };
        let json: Value = record.json()?;
        let field = (self.config.field)
            .split('.')
            .try_fold(&json, |object, name| object.get(name));
        let Some(value) = field.and_then(as_number) else {
            let field = &self.config.field;
            return Ok(Outcome::drop(format!("it has no number in `{field}`")));
        };
        let max_keys = self.config.max_keys;
        // Allocates for the lookup, which is negligible next to parsing JSON.
        let keys = self
            .partitions
            .entry((record.topic().to_string(), record.partition()))
            .or_insert_with(|| Keys::new(max_keys));
        let known = keys.see(key, record.offset(), value);
        if let Some(alert) = self.judge(&known, key, value, record) {
            let text = serde_json::to_vec(&alert).terminal()?;
            ctx.emit(Emit::to(&self.config.topic).key(key).value(&text));
            ctx.counter("alerts", 1);
        }
        Ok(Outcome::Ack)
    }

    /// Keeps the statistics unless the monitored field changes.
    fn reconfigure(&mut self, config: Config) -> Result<()> {
        config.check()?;
        if config.field != self.config.field {
            self.partitions.clear();
        }
        for keys in self.partitions.values_mut() {
            keys.set_max(config.max_keys);
        }
        self.config = config;
        Ok(())
    }

    fn revoked(&mut self, partition: &Partition<'_>) -> Result<()> {
        let at = (partition.topic().to_string(), partition.number());
        self.partitions.remove(&at);
        Ok(())
    }
}

impl FraudDetector {
    fn judge(
        &self,
        known: &Statistics,
        key: &[u8],
        value: f64,
        record: &Record<'_>,
    ) -> Option<Alert<'_>> {
        if known.count() < self.config.warm_up {
            return None;
        }
        let (mean, deviation) = (known.mean(), known.standard_deviation());
        let distance = (value - mean).abs();
        if distance <= self.config.threshold * deviation {
            return None;
        }
        Some(Alert {
            key: String::from_utf8_lossy(key).into_owned(),
            field: &self.config.field,
            value,
            mean,
            standard_deviation: deviation,
            deviations: (deviation > 0.0).then(|| distance / deviation),
            records: known.count(),
            source: format!(
                "{}/{}/{}",
                record.topic(),
                record.partition(),
                record.offset()
            ),
        })
    }
}

sluicegate_sdk::export_handler! {
    "fraud-detector" => FraudDetector,
}
