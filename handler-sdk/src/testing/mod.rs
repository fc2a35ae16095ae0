//! Runs a handler without Kafka: records in; outcomes, emits, logs and metrics out.
//!
//! Calls use the same ABI functions as a loaded library, so the lane rule, the panic guards and config parsing are the
//! real ones.

mod captured;
mod record;

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluicegate_abi::RawOutcome;
use sluicegate_abi::host::{CallEnd, CallLimits, HostSink, Instance, Module, NotTaken};
use sluicegate_abi::partition::{PartitionChange, PartitionEvent};
use sluicegate_abi::plugin::{Create, Refusal};
use sluicegate_abi::progress::{CancelFlag, SharedProgress};
use sluicegate_abi::view::RecordParts;

use crate::export::{self, Entry, Exported, Exports};
use crate::{BatchHandler, Handler, Level};
use captured::{CapturedOutput, Collected};
pub use record::{TestRecord, record};

const NAME: &str = "handler";
/// As in a spec without `timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// As in a spec without `retry`.
const MAX_ATTEMPTS: u32 = 5;
/// Maximum number of records per call.
const MOST: u64 = 4_096;

/// The outcome of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not handled in this call: after a panic or a cancellation, or behind a record of its lane that did not succeed.
    NotRun,
    /// Acked.
    Ack,
    /// Dropped, with the reason.
    Drop(String),
    /// To be retried, with the requested delay, if any, and the reason.
    Retry(Option<Duration>, String),
    /// Dead-lettered, with the reason.
    DeadLetter(String),
    /// The handler panicked, with message and location.
    Panicked(String),
}

/// A record that the handler emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Index of the record that it was emitted for.
    pub record: usize,
    /// Topic.
    pub topic: String,
    /// Partition, if the handler chose one.
    pub partition: Option<i32>,
    /// Timestamp, if the handler set one.
    pub timestamp_ms: Option<i64>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Emitted {
    /// The value, read from JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.value.as_deref().unwrap_or_default())
            .expect("the emitted value is JSON")
    }
}

/// Result of one call.
#[derive(Debug)]
pub struct Run {
    /// One per record.
    pub outcomes: Vec<Outcome>,
    /// Emitted records, in order.
    pub emits: Vec<Emitted>,
    /// The instance panicked; the kit has built a new one.
    pub poisoned: bool,
    /// What the instance needs is away ([`crate::HandlerError::unavailable`]), or `new` has failed since: records that were not run have made
    /// no attempt. The next call begins with `new`.
    pub unavailable: Option<String>,
}

/// A handler under test. Its errors are texts: a test compares or prints what an operator would read.
pub struct Kit {
    module: Module,
    config: String,
    generation: u64,
    host: Arc<CapturedOutput>,
    progress: Arc<SharedProgress>,
    cancel: CancelFlag,
    instance: Instance,
    serial: u64,
    limits: CallLimits,
    takes_batches: bool,
    /// Maximum number of records per call.
    most: usize,
    /// The instance is of no use any more: the next call begins with another one.
    unusable: bool,
}

impl Kit {
    /// Builds a [`Handler`] with `config`.
    ///
    /// # Errors
    /// Why the handler failed to start.
    pub fn of<H: Handler>(config: serde_json::Value) -> Result<Self, String> {
        struct One<H>(PhantomData<H>);
        impl<H: Handler> Exports for One<H> {
            fn entries() -> Vec<Entry> {
                vec![export::per_record::<H>(NAME)]
            }
        }
        Self::start(Module::of::<Exported<One<H>>>(), &config)
    }

    /// Builds a [`BatchHandler`] with `config`.
    ///
    /// # Errors
    /// Why the handler failed to start.
    pub fn of_batch<H: BatchHandler>(config: serde_json::Value) -> Result<Self, String> {
        struct One<H>(PhantomData<H>);
        impl<H: BatchHandler> Exports for One<H> {
            fn entries() -> Vec<Entry> {
                vec![export::batch::<H>(NAME)]
            }
        }
        Self::start(Module::of::<Exported<One<H>>>(), &config)
    }

    /// Builds an [`crate::AsyncHandler`] with `config`.
    ///
    /// # Errors
    /// Why the handler failed to start.
    #[cfg(feature = "async")]
    pub fn of_async<H: crate::AsyncHandler>(config: serde_json::Value) -> Result<Self, String> {
        struct One<H>(PhantomData<H>);
        impl<H: crate::AsyncHandler> Exports for One<H> {
            fn entries() -> Vec<Entry> {
                vec![export::overlapping::<H>(NAME)]
            }
        }
        Self::start(Module::of::<Exported<One<H>>>(), &config)
    }

    fn start(module: Module, config: &serde_json::Value) -> Result<Self, String> {
        let host = Arc::new(CapturedOutput::default());
        let config = config.to_string();
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
        let instance = create(&module, &host, &config, generation)?;
        let described = describe(&module);
        let most = described["max_batch"].as_u64().unwrap_or(u64::MAX);
        let progress = Arc::new(SharedProgress::new(MOST as usize));
        let mut kit = Self {
            module,
            config,
            generation,
            host,
            progress,
            cancel: CancelFlag::default(),
            instance,
            serial: 0,
            limits: CallLimits::default(),
            takes_batches: described["takes_batches"] == true,
            most: most.min(MOST) as usize,
            unusable: false,
        };
        kit.set_timeout(DEFAULT_TIMEOUT);
        Ok(kit)
    }

    /// Sets the timeout of each record in subsequent calls; of a [`BatchHandler`], that of the call. It is 5 s at first; zero means none.
    pub fn set_timeout(&mut self, timeout: Duration) {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.takes_batches {
            true => self.limits.timeout_ms = timeout_ms,
            false => self.limits.record_timeout_ms = timeout_ms,
        }
    }

    /// Calls the handler with up to 4,096 records, or as many as it wishes for at most ([`BatchHandler::MAX_RECORDS`]).
    ///
    /// # Panics
    /// With more records, or if the instance cannot be rebuilt after a panic.
    pub fn run(&mut self, records: impl IntoIterator<Item = TestRecord>) -> Run {
        let records: Vec<RecordParts> = records.into_iter().map(TestRecord::finish).collect();
        assert!(
            records.len() <= self.most,
            "a call has at most {} records",
            self.most
        );
        if let Err(why) = self.build_again() {
            return Run {
                outcomes: vec![Outcome::NotRun; records.len()],
                emits: Vec::new(),
                poisoned: false,
                unavailable: Some(why),
            };
        }
        self.serial += 1;
        self.cancel.clear();
        let mut collected = Collected::new(&self.cancel);
        let end = self.instance.handle_owned(
            &records,
            self.serial,
            self.limits,
            &self.cancel,
            &self.progress,
            &mut collected,
        );
        let mut raw = vec![RawOutcome::default(); records.len()];
        self.progress.close(&mut raw);
        let poisoned = end == CallEnd::Poisoned;
        if poisoned {
            self.instance = create(&self.module, &self.host, &self.config, self.generation)
                .expect("a handler that started once with this config starts again");
        }
        self.unusable = end == CallEnd::Unavailable;
        let unavailable = self.unusable.then(|| collected.reason_not_run(&raw));
        // As the service does: what an attempt emits counts only if no other one follows.
        collected.emits.retain(|emit| raw[emit.record].is_final());
        let outcomes = raw.iter().map(|raw| collected.outcome(raw)).collect();
        Run {
            outcomes,
            emits: collected.emits,
            poisoned,
            unavailable,
        }
    }

    /// Builds another instance if what the one before needs was away.
    fn build_again(&mut self) -> Result<(), String> {
        if self.unusable {
            self.instance = create(&self.module, &self.host, &self.config, self.generation)?;
            self.unusable = false;
        }
        Ok(())
    }

    /// Calls the handler until all records are settled, as the service does: records that were not run are given again, those that
    /// ask for a retry or panic get another attempt, without a delay, and a dead letter after five. Returns the last outcome of each
    /// record; `poisoned` says whether an instance panicked. Ends early if what the handler needs is away.
    ///
    /// # Panics
    /// As [`Self::run`], or if records are never run.
    pub fn settle(&mut self, records: impl IntoIterator<Item = TestRecord>) -> Run {
        let mut open: Vec<(usize, TestRecord)> = records.into_iter().enumerate().collect();
        let mut all = Run {
            outcomes: vec![Outcome::NotRun; open.len()],
            emits: Vec::new(),
            poisoned: false,
            unavailable: None,
        };
        let mut at_once = self.most;
        while !open.is_empty() {
            let given = open.iter().take(at_once);
            let run = self.run(given.map(|(_, record)| record.clone()));
            all.poisoned |= run.poisoned;
            let emits = run.emits.into_iter().map(|mut emit| {
                emit.record = open[emit.record].0;
                emit
            });
            all.emits.extend(emits);
            let before = (open.len(), attempts(&open));
            let mut outcomes = run.outcomes.into_iter();
            open.retain_mut(|(index, record)| {
                let Some(outcome) = outcomes.next() else {
                    return true;
                };
                let again = match &outcome {
                    Outcome::NotRun => true,
                    Outcome::Retry(..) | Outcome::Panicked(_) => record.next_attempt(MAX_ATTEMPTS),
                    Outcome::Ack | Outcome::Drop(_) | Outcome::DeadLetter(_) => false,
                };
                all.outcomes[*index] = match outcome {
                    Outcome::Retry(_, why) | Outcome::Panicked(why) if !again => {
                        Outcome::DeadLetter(why)
                    }
                    outcome => outcome,
                };
                again
            });
            all.unavailable = run.unavailable;
            if all.unavailable.is_some() {
                break;
            }
            // Together they may emit more than a call may.
            let ran = before != (open.len(), attempts(&open));
            assert!(ran || at_once > 1, "no record is run");
            at_once = if ran { self.most } else { 1 };
        }
        all
    }

    /// Returns a handle that cancels this kit's running call from another thread.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller {
            progress: Arc::clone(&self.progress),
            cancel: self.cancel.clone(),
        }
    }

    /// Reconfigures the handler, as the service does if it declares `TAKES_CONFIG`.
    ///
    /// # Errors
    /// Why the handler refuses the config, or its panic; the previous config stays active.
    ///
    /// # Panics
    /// If the instance cannot be rebuilt after a panic.
    pub fn reconfigure(&mut self, config: &serde_json::Value) -> Result<(), String> {
        let config = config.to_string();
        match self.instance.reconfigure(&config) {
            Ok(()) => {
                self.config = config;
                Ok(())
            }
            Err(NotTaken::Refused(Refusal::Config(text) | Refusal::Failed(text))) => Err(text),
            Err(NotTaken::Refused(Refusal::Unknown)) => Err("it cannot be reconfigured".into()),
            Err(NotTaken::Poisoned(panic)) => {
                self.instance = create(&self.module, &self.host, &self.config, self.generation)
                    .expect("a handler that started once with this config starts again");
                Err(panic)
            }
        }
    }

    /// Runs the handler's health check.
    ///
    /// # Errors
    /// The handler's reason.
    pub fn health(&mut self) -> Result<(), String> {
        self.build_again()?;
        let checked = self.instance.health();
        checked.map_err(|error| error.to_string())
    }

    /// Reports an assigned partition to the handler.
    ///
    /// # Errors
    /// Why it cannot take it over, or its panic.
    pub fn assigned(&mut self, topic: &str, partition: i32, epoch: u64) -> Result<(), String> {
        self.partition(PartitionChange::Assigned, topic, partition, epoch)
    }

    /// Reports a revoked partition to the handler.
    ///
    /// # Errors
    /// What it could not finish, or its panic.
    pub fn revoked(&mut self, topic: &str, partition: i32, epoch: u64) -> Result<(), String> {
        self.partition(PartitionChange::Revoked, topic, partition, epoch)
    }

    /// Reports a lost partition to the handler.
    ///
    /// # Errors
    /// What it could not finish, or its panic.
    pub fn lost(&mut self, topic: &str, partition: i32, epoch: u64) -> Result<(), String> {
        self.partition(PartitionChange::Lost, topic, partition, epoch)
    }

    fn partition(
        &mut self,
        change: PartitionChange,
        topic: &str,
        partition: i32,
        epoch: u64,
    ) -> Result<(), String> {
        let called = self.instance.partition(&PartitionEvent {
            change,
            topic,
            partition,
            epoch,
            start_offset: (change == PartitionChange::Assigned).then_some(0),
            deadline: None,
        });
        called.map_err(|error| error.to_string())
    }

    /// Drains the handler.
    ///
    /// # Errors
    /// What it could not finish, or its panic.
    pub fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let called = self.instance.drain(deadline_ms);
        called.map_err(|panic| panic.to_string())
    }

    /// Drops the handler.
    ///
    /// # Errors
    /// The panic of its `Drop`.
    pub fn end(self) -> Result<(), String> {
        let dropped = self.instance.destroy();
        dropped.map_err(|panic| panic.to_string())
    }

    /// The log lines so far.
    #[must_use]
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.host.lock().logs.clone()
    }

    /// The fields of the log lines so far, one for one, as JSON; empty without any. What `tracing` and `log` write has them, and `record`,
    /// the place of the record that was being handled.
    #[must_use]
    pub fn log_fields(&self) -> Vec<String> {
        self.host.lock().fields.clone()
    }

    /// Total of a counter; 0 if it was never used.
    #[must_use]
    pub fn counter(&self, name: &str) -> f64 {
        self.host
            .lock()
            .metrics
            .get(&(0, name.to_string()))
            .map_or(0.0, |values| values.iter().sum())
    }

    /// Last value of a gauge.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Option<f64> {
        self.host
            .lock()
            .metrics
            .get(&(1, name.to_string()))
            .and_then(|values| values.last().copied())
    }

    /// Observations of a histogram, in order.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Vec<f64> {
        self.host
            .lock()
            .metrics
            .get(&(2, name.to_string()))
            .cloned()
            .unwrap_or_default()
    }

    /// The handler's description as JSON: its config schema and declarations.
    ///
    /// # Panics
    /// If the description is not JSON, which the export code rules out.
    #[must_use]
    pub fn description(&self) -> serde_json::Value {
        describe(&self.module)
    }
}

/// Attempts of all records.
fn attempts(records: &[(usize, TestRecord)]) -> u32 {
    records.iter().map(|(_, record)| record.attempts()).sum()
}

fn describe(module: &Module) -> serde_json::Value {
    let text = module
        .describe()
        .expect("describing a handler does not panic");
    let mut all: serde_json::Value = serde_json::from_str(&text).expect("a description is JSON");
    all["handlers"][0].take()
}

/// Number of the last kit's generation: kits share nothing with each other.
static GENERATION: AtomicU64 = AtomicU64::new(0);

fn create(
    module: &Module,
    host: &Arc<CapturedOutput>,
    config: &str,
    generation: u64,
) -> Result<Instance, String> {
    let host: Arc<dyn HostSink> = Arc::clone(host) as _;
    let create = Create {
        handler: NAME,
        instance: "test",
        config,
        worker: 0,
        generation,
    };
    module
        .create(host, &create)
        .map_err(|refusal| match refusal {
            Refusal::Config(text) => format!("config refused: {text}"),
            Refusal::Failed(text) => format!("failed to start: {text}"),
            Refusal::Unknown => "the kit's own handler is unknown".to_string(),
        })
}

/// Cancels a running call from another thread.
#[derive(Clone, Debug)]
pub struct Canceller {
    progress: Arc<SharedProgress>,
    cancel: CancelFlag,
}

impl Canceller {
    /// Waits up to `timeout` for a call to run and cancels it; `false` if none ran.
    pub fn cancel_running(&self, timeout: Duration) -> bool {
        self.when_running(timeout, CancelFlag::set)
    }

    /// As [`Self::cancel_running`], but the call may finish its current record.
    pub fn stop_running(&self, timeout: Duration) -> bool {
        self.when_running(timeout, CancelFlag::stop)
    }

    fn when_running(&self, timeout: Duration, end_call: impl Fn(&CancelFlag)) -> bool {
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            if self.progress.current().is_some() {
                end_call(&self.cancel);
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}
