//! Handlers that hang at random in every phase of an instance's life: `misbehave-hang`, `misbehave-hang-batch` and
//! `misbehave-hang-async`.
//!
//! The test controls them with a file: nothing hangs without it, and whatever hangs returns soon after it is removed. Every
//! call that hangs has a file in a folder, so that the test knows what hangs where at any time.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_sdk::{
    AsyncHandler, Batch, BatchContext, BatchHandler, Context, Emit, Handler, HandlerError, Outcome,
    Partition, Record, Result, Setup,
};

use crate::parse_duration;

/// Interval at which a call that hangs checks whether it may return.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Config of the handlers.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Topic to which every record is emitted before it is acked.
    #[schemars(extend("x-sluicegate-emits-to" = true))]
    pub emit_to: String,
    /// Calls hang only while this file exists.
    pub while_exists: PathBuf,
    /// Folder with a file `PROCESS.HANDLER.GENERATION.PHASE.NUMBER` per thread that hangs; empty ones.
    pub marks: PathBuf,
    /// Calls of a thousand that hang, by phase; none in a phase that is not listed.
    #[serde(default)]
    pub per_mille: BTreeMap<Phase, u64>,
    /// Hangs of a hundred that last until the file is removed.
    #[serde(default)]
    pub endless_percent: u64,
    /// Longest duration of the other ones, such as `3s`.
    #[serde(default = "default_longest")]
    pub longest: String,
    /// Has no effect; to change the config.
    #[serde(default)]
    pub note: u64,
}

fn default_longest() -> String {
    "1s".to_owned()
}

/// A phase in which a call can hang.
#[derive(
    Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The creation of an instance.
    New,
    /// A new config.
    Reconfigure,
    /// A health check.
    Health,
    /// A partition was assigned.
    Assigned,
    /// A partition was revoked.
    Revoked,
    /// A partition was lost.
    Lost,
    /// A record.
    Handle,
    /// The drain.
    Drain,
    /// The drop of an instance.
    Drop,
}

impl Phase {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// How long a call hangs.
#[derive(Clone, Copy)]
enum Length {
    Endless,
    Until(Instant),
}

/// The file of a call that hangs; removed when the call returns.
struct Mark(PathBuf);

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What an instance needs to hang.
struct Hanging {
    config: Config,
    longest: Duration,
    /// `PROCESS.HANDLER.GENERATION`.
    name: String,
    /// Kept, so that all instances of the generation have the same number.
    _generation: Arc<Generation>,
}

/// Tells the generations apart: a random number, because each loaded build counts for itself.
struct Generation(u64);

impl Hanging {
    fn new(config: Config, setup: &mut Setup) -> Result<Self> {
        let generation = setup.shared(|| Ok(Generation(random())))?;
        let process = std::process::id();
        let hanging = Self {
            longest: parse_duration(&config.longest).map_err(HandlerError::terminal)?,
            config,
            name: format!("{process}.{}.{:x}", setup.instance(), generation.0),
            _generation: generation,
        };
        hanging.at(Phase::New);
        Ok(hanging)
    }

    fn reconfigure(&mut self, config: Config) -> Result<()> {
        self.longest = parse_duration(&config.longest).map_err(HandlerError::terminal)?;
        self.config = config;
        self.at(Phase::Reconfigure);
        Ok(())
    }

    /// Hangs, or does not.
    fn at(&self, phase: Phase) {
        if let Some(length) = self.draw(phase) {
            self.block(phase, length);
        }
    }

    fn partition(&self, partition: &Partition<'_>) {
        self.at(match partition.is_lost() {
            true => Phase::Lost,
            false => Phase::Revoked,
        });
    }

    /// Whether and how long a call hangs.
    fn draw(&self, phase: Phase) -> Option<Length> {
        let chance = self.config.per_mille.get(&phase).copied()?;
        if random() % 1_000 >= chance || !self.config.while_exists.exists() {
            return None;
        }
        Some(match random() % 100 < self.config.endless_percent {
            true => Length::Endless,
            false => {
                let longest = self.longest.as_millis() as u64;
                let duration = Duration::from_millis(random() % longest.max(1));
                Length::Until(Instant::now() + duration)
            }
        })
    }

    fn block(&self, phase: Phase, length: Length) {
        let _mark = self.mark(phase);
        while let Some(left) = self.left(length) {
            std::thread::sleep(left);
        }
    }

    /// As [`Self::block`], in a future that can be dropped. It costs no thread, so it has no mark.
    async fn wait(&self, length: Length) {
        while let Some(left) = self.left(length) {
            sluicegate_sdk::tokio::time::sleep(left).await;
        }
    }

    /// How long to wait until the next check; `None` once the call may return.
    fn left(&self, length: Length) -> Option<Duration> {
        if !self.config.while_exists.exists() {
            return None;
        }
        match length {
            Length::Endless => Some(POLL_INTERVAL),
            Length::Until(end) => {
                let left = end.saturating_duration_since(Instant::now());
                (!left.is_zero()).then_some(left.min(POLL_INTERVAL))
            }
        }
    }

    fn mark(&self, phase: Phase) -> Mark {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{}.{number}", self.name, phase.name());
        let path = self.config.marks.join(name);
        // The folder may be gone at the end of the test.
        let _ = File::create(&path);
        Mark(path)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.at(Phase::Drop);
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// The lifecycle calls, which hang in the same way in all three kinds of handlers.
macro_rules! hangs_between_calls {
    ([$($mutable:tt)?] $($kind:tt)+) => {
        $($kind)+ health(&$($mutable)? self) -> Result<()> {
            self.0.at(Phase::Health);
            Ok(())
        }

        $($kind)+ assigned(&$($mutable)? self, _: &Partition<'_>) -> Result<()> {
            self.0.at(Phase::Assigned);
            Ok(())
        }

        $($kind)+ revoked(&$($mutable)? self, partition: &Partition<'_>) -> Result<()> {
            self.0.partition(partition);
            Ok(())
        }

        $($kind)+ drain(&$($mutable)? self, _: Duration) -> Result<()> {
            self.0.at(Phase::Drain);
            Ok(())
        }
    };
}

/// One record at a time.
pub struct HangCall(Hanging);

impl Handler for HangCall {
    type Config = Config;
    const TAKES_CONFIG: bool = true;

    fn new(config: Config, setup: &mut Setup) -> Result<Self> {
        Hanging::new(config, setup).map(Self)
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        self.0.at(Phase::Handle);
        ctx.emit(Emit::copy_of(record, &self.0.config.emit_to));
        Ok(Outcome::Ack)
    }

    fn reconfigure(&mut self, config: Config) -> Result<()> {
        self.0.reconfigure(config)
    }

    hangs_between_calls!([mut] fn);
}

/// All records of a call together; a new config needs a new generation.
pub struct HangBatch(Hanging);

impl BatchHandler for HangBatch {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self> {
        Hanging::new(config, setup).map(Self)
    }

    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result {
        for (index, record) in batch.iter().enumerate() {
            self.0.at(Phase::Handle);
            ctx.emit(index, Emit::copy_of(&record, &self.0.config.emit_to));
        }
        Ok(Outcome::Ack)
    }

    hangs_between_calls!([mut] fn);
}

/// Several records at a time; half of its hangs block the thread, the others only wait.
pub struct HangAsync(Hanging);

impl AsyncHandler for HangAsync {
    type Config = Config;
    const TAKES_CONFIG: bool = true;

    async fn new(config: Config, setup: &mut Setup) -> Result<Self> {
        setup.set_concurrency(8);
        Hanging::new(config, setup).map(Self)
    }

    async fn handle(&self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        match self.0.draw(Phase::Handle) {
            Some(length) if random().is_multiple_of(2) => self.0.wait(length).await,
            Some(length) => self.0.block(Phase::Handle, length),
            None => {}
        }
        ctx.emit(Emit::copy_of(record, &self.0.config.emit_to));
        Ok(Outcome::Ack)
    }

    async fn reconfigure(&mut self, config: Config) -> Result<()> {
        self.0.reconfigure(config)
    }

    hangs_between_calls!([] async fn);
}
