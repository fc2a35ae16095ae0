//! The `misbehave` handler: panics, hangs, fails, leaks and becomes unhealthy by rule, to test that nothing else is affected.
//!
//! Never shipped. Further handlers: `misbehave-drop` panics when it is dropped, `misbehave-create` when it is built,
//! `misbehave-batch` is a batch handler that panics on a value `panic`, and `misbehave-wait` is an async one that waits for
//! the number of milliseconds in its config or in the value. Those of [`hang`] hang at random.

pub mod hang;
pub mod predicate;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluicegate_sdk::{
    AsyncHandler, Batch, BatchContext, BatchHandler, Context, Emit, Handler, HandlerError, Level,
    Outcome, Record, Result, Setup,
};

use predicate::{Condition, When};

/// Config of `misbehave`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The first matching rule is applied; records without one are acked.
    pub rules: Vec<Rule>,
    /// Topic to which records are emitted before they are acked.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub emit_to: Option<String>,
    /// Every record is emitted to `emit_to` before a rule is applied, whatever its outcome.
    pub emit_first: bool,
    /// The handler is unhealthy while this file exists.
    pub unhealthy_while: Option<PathBuf>,
    /// Duration of `new`, such as `20s`.
    pub slow_start: Option<String>,
    /// Text included wherever a handler can report something: per record in a log line and a metric's name, and in errors,
    /// panics, drops and its health.
    pub says: Option<String>,
}

/// A condition and the misbehaviour for matching records.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The condition, as the `when` of a route, or `{ one_in: N }`.
    #[schemars(with = "Value")]
    pub when: Value,
    /// The misbehaviour.
    #[serde(rename = "do")]
    pub deed: Deed,
    /// The class of an error.
    #[serde(default)]
    pub class: Class,
    /// Duration of a sleep or hang, such as `300ms` or `2s`; a hang without it never ends.
    #[serde(rename = "for", default)]
    pub duration: Option<String>,
    /// Maximum number of applications, over all instances of the loaded library with this config; unlimited by default.
    #[serde(default)]
    pub times: Option<u64>,
}

/// The kinds of misbehaviour.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// Panic.
    Panic,
    /// Do not return.
    Hang,
    /// Return late, with an ack.
    Sleep,
    /// Return an error.
    Error,
    /// Drop the record.
    Drop,
    /// Abort the process.
    Abort,
    /// Leak 1 MiB of memory, then ack.
    Leak,
}

/// Class of an error.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A retry can succeed.
    #[default]
    Retryable,
    /// A retry cannot succeed.
    Terminal,
}

/// The handler.
pub struct Misbehave {
    rules: Vec<ReadyRule>,
    emit_to: Option<String>,
    emit_first: bool,
    unhealthy_while: Option<PathBuf>,
    says: Option<String>,
}

struct ReadyRule {
    condition: Condition,
    deed: Deed,
    class: Class,
    duration: Option<Duration>,
    times: Option<u64>,
    /// Identifies this rule across all instances.
    name: String,
}

/// Number of applications of each limited rule; outlives instances, because a panic ends one.
static DONE: LazyLock<Mutex<HashMap<String, u64>>> = LazyLock::new(Mutex::default);

impl ReadyRule {
    fn new(index: usize, rule: &Rule) -> Result<Self> {
        let at = |text: String| HandlerError::terminal(format!("`rules[{index}]`: {text}"));
        let when: When = sluicegate_sdk::json::from_value(&rule.when)
            .map_err(|error| at(format!("`when`: {error}")))?;
        let condition = when
            .condition()
            .map_err(|text| at(format!("`when`: {text}")))?;
        let duration = rule
            .duration
            .as_deref()
            .map(parse_duration)
            .transpose()
            .map_err(at)?;
        if rule.deed == Deed::Sleep && duration.is_none() {
            return Err(at("`do: sleep` needs `for`, such as 300ms".into()));
        }
        let name = format!("{index} {:?} {} {:?}", rule.deed, rule.when, rule.times);
        Ok(Self {
            condition,
            deed: rule.deed,
            class: rule.class,
            duration,
            times: rule.times,
            name,
        })
    }

    /// Whether the rule applies to the record now; counts it.
    fn fits(&self, record: &Record<'_>) -> bool {
        if !self.condition.holds(record) {
            return false;
        }
        let Some(times) = self.times else { return true };
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        let done = done.entry(self.name.clone()).or_default();
        *done += 1;
        *done <= times
    }

    /// Applies the rule; `None` means that the record is acked.
    fn commit(&self, record: &Record<'_>, says: Option<&str>) -> Option<Outcome> {
        let mut place = format!(
            "{}/{}/{}",
            record.topic(),
            record.partition(),
            record.offset()
        );
        if let Some(says) = says {
            place.push_str(&format!(" says {says} and {says:?}"));
        }
        match self.deed {
            Deed::Panic => panic!("panic on purpose at {place}"),
            Deed::Hang => match self.duration {
                Some(duration) => std::thread::sleep(duration),
                None => loop {
                    std::thread::park();
                },
            },
            Deed::Sleep => std::thread::sleep(self.duration.unwrap_or_default()),
            Deed::Error => {
                let text = format!("error on purpose at {place}");
                return Some(match self.class {
                    Class::Retryable => HandlerError::retryable(text).into(),
                    Class::Terminal => HandlerError::terminal(text).into(),
                });
            }
            Deed::Drop if says.is_some() => return Some(Outcome::drop(place)),
            Deed::Drop => return Some(Outcome::drop("dropped on purpose")),
            Deed::Abort => std::process::abort(),
            Deed::Leak => {
                vec![1u8; 1 << 20].leak();
            }
        }
        None
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| format!("`{text}` is not a duration, write 300ms or 2s"))?;
    match &text[digits..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("`{text}` is not a duration, write 300ms or 2s")),
    }
}

impl Misbehave {
    fn ready(config: Config) -> Result<Self> {
        let rules = config
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| ReadyRule::new(index, rule));
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            emit_to: config.emit_to,
            emit_first: config.emit_first,
            unhealthy_while: config.unhealthy_while,
            says: config.says,
        })
    }
}

impl Handler for Misbehave {
    type Config = Config;
    const TAKES_CONFIG: bool = true;

    fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
        if let Some(time) = &config.slow_start {
            std::thread::sleep(parse_duration(time).map_err(HandlerError::terminal)?);
        }
        Self::ready(config)
    }

    fn reconfigure(&mut self, config: Config) -> Result<()> {
        *self = Self::ready(config)?;
        Ok(())
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        if self.emit_first
            && let Some(topic) = &self.emit_to
        {
            ctx.emit(Emit::copy_of(record, topic));
        }
        let says = self.says.as_deref();
        if let Some(says) = says {
            ctx.log(Level::Warn, &format!("it says {says}"));
            ctx.counter(says, 1);
        }
        let fitting = self.rules.iter().find(|rule| rule.fits(record));
        if let Some(outcome) = fitting.and_then(|rule| rule.commit(record, says)) {
            return Ok(outcome);
        }
        if !self.emit_first
            && let Some(topic) = &self.emit_to
        {
            ctx.emit(Emit::copy_of(record, topic));
        }
        Ok(Outcome::Ack)
    }

    fn health(&mut self) -> Result<()> {
        match &self.unhealthy_while {
            Some(path) if path.exists() => {
                let says = self.says.as_deref().unwrap_or("on purpose");
                Err(HandlerError::retryable(format!("unhealthy {says}")))
            }
            _ => Ok(()),
        }
    }
}

/// Panics when it is dropped.
pub struct BadDrop;

impl Handler for BadDrop {
    type Config = ();
    const KEEPS_KEY_STATE: bool = true;

    fn new((): (), _: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle(&mut self, _: &Record<'_>, _: &mut Context<'_>) -> Result {
        Ok(Outcome::Ack)
    }
}

impl Drop for BadDrop {
    fn drop(&mut self) {
        panic!("drop on purpose");
    }
}

/// Panics when it is built.
pub struct BadCreate;

impl Handler for BadCreate {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self> {
        panic!("create on purpose")
    }

    fn handle(&mut self, _: &Record<'_>, _: &mut Context<'_>) -> Result {
        Ok(Outcome::Ack)
    }
}

/// A batch handler that panics on a value `panic`, after it has settled earlier `drop` records.
pub struct BadBatch;

impl BatchHandler for BadBatch {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result {
        for (index, record) in batch.iter().enumerate() {
            assert!(record.value() != Some(b"panic"), "batch on purpose");
            if record.value() == Some(b"drop") {
                ctx.settle(index, &Outcome::drop("dropped on purpose"));
            }
        }
        Ok(Outcome::Ack)
    }
}

/// Config of [`Wait`].
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WaitConfig {
    /// Milliseconds; `None` waits for the number of milliseconds in the value.
    pub wait_ms: Option<u64>,
    /// Records that wait at a time.
    pub concurrency: usize,
}

impl Default for WaitConfig {
    fn default() -> Self {
        Self {
            wait_ms: None,
            concurrency: 8,
        }
    }
}

/// Waits, and acks.
pub struct Wait {
    wait_ms: Option<u64>,
}

impl AsyncHandler for Wait {
    type Config = WaitConfig;

    async fn new(config: WaitConfig, setup: &mut Setup) -> Result<Self> {
        setup.set_concurrency(config.concurrency);
        Ok(Self {
            wait_ms: config.wait_ms,
        })
    }

    async fn handle(&self, record: &Record<'_>, _: &mut Context<'_>) -> Result {
        let millis = match self.wait_ms {
            Some(millis) => millis,
            None => record.json()?,
        };
        sluicegate_sdk::tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(Outcome::Ack)
    }
}

sluicegate_sdk::export_handler! {
    "misbehave" => Misbehave,
    "misbehave-drop" => BadDrop,
    "misbehave-create" => BadCreate,
    "misbehave-batch" => batch BadBatch,
    "misbehave-wait" => async Wait,
    "misbehave-hang" => hang::HangCall,
    "misbehave-hang-batch" => batch hang::HangBatch,
    "misbehave-hang-async" => async hang::HangAsync,
}
