//! The `flight-delays` handler: selects late departures from flight records.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_sdk::json::optional_number;
use sluicegate_sdk::{
    Classify, Context, Emit, Handler, HandlerError, Outcome, Record, Result, Setup,
};

/// Config of `flight-delays`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Target topic of late flights.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub topic: String,
    /// Minutes of departure delay from which a flight is late.
    #[serde(default = "an_hour")]
    pub threshold_minutes: f64,
}

fn an_hour() -> f64 {
    60.0
}

/// The needed fields of a flight record. Numbers may be numeric strings.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Flight {
    #[serde(deserialize_with = "optional_number")]
    year: Option<f64>,
    #[serde(deserialize_with = "optional_number")]
    month: Option<f64>,
    #[serde(deserialize_with = "optional_number")]
    day: Option<f64>,
    #[serde(deserialize_with = "optional_number")]
    dep_time: Option<f64>,
    #[serde(deserialize_with = "optional_number")]
    sched_dep_time: Option<f64>,
    #[serde(deserialize_with = "optional_number")]
    dep_delay: Option<f64>,
    tailnum: Option<String>,
    carrier: Option<String>,
    origin: Option<String>,
    dest: Option<String>,
}

/// The value of an emitted record.
#[derive(Debug, Serialize)]
struct LateFlight<'a> {
    tail_number: Option<&'a str>,
    carrier: Option<&'a str>,
    origin: Option<&'a str>,
    destination: Option<&'a str>,
    delay_minutes: serde_json::Number,
    /// Local time of the scheduled departure.
    scheduled: Option<String>,
}

impl Flight {
    fn scheduled(&self) -> Option<String> {
        let [year, month, day, time] =
            [self.year?, self.month?, self.day?, self.sched_dep_time?].map(|number| number as u32);
        Some(format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}",
            time / 100,
            time % 100
        ))
    }
}

/// Selects late flights.
#[derive(Debug)]
pub struct FlightDelays {
    config: Config,
}

impl Handler for FlightDelays {
    type Config = Config;

    fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
        if config.topic.is_empty() {
            return Err(HandlerError::terminal(
                "`topic` is empty; name the topic that late flights go to",
            ));
        }
        if !config.threshold_minutes.is_finite() {
            return Err(HandlerError::terminal(
                "`threshold_minutes` must be a finite number",
            ));
        }
        Ok(Self { config })
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        let flight: Flight = record.json()?;
        if flight.dep_time.is_none() {
            return Ok(Outcome::drop("cancelled: the flight has no dep_time"));
        }
        let delay = flight
            .dep_delay
            .ok_or_else(|| HandlerError::terminal("the flight has a dep_time but no dep_delay"))?;
        if delay < self.config.threshold_minutes {
            return Ok(Outcome::Ack);
        }
        let late = LateFlight {
            tail_number: flight.tailnum.as_deref(),
            carrier: flight.carrier.as_deref(),
            origin: flight.origin.as_deref(),
            destination: flight.dest.as_deref(),
            delay_minutes: whole_or_fraction(delay),
            scheduled: flight.scheduled(),
        };
        let value = serde_json::to_vec(&late).terminal()?;
        let mut emit = Emit::to(&self.config.topic)
            .key_or_null(record.key())
            .value(&value);
        if let Some(timestamp_ms) = record.timestamp_ms() {
            emit = emit.timestamp_ms(timestamp_ms);
        }
        ctx.emit(emit);
        ctx.counter("late_flights", 1);
        ctx.histogram("delay_minutes", delay);
        Ok(Outcome::Ack)
    }
}

/// Formats whole minutes without a fraction.
fn whole_or_fraction(number: f64) -> serde_json::Number {
    let whole = number as i64;
    if whole as f64 == number {
        return whole.into();
    }
    serde_json::Number::from_f64(number).unwrap_or_else(|| whole.into())
}

sluicegate_sdk::export_handler! {
    "flight-delays" => FlightDelays,
}
