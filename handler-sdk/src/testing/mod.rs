//! Runs a handler without Kafka: records in; outcomes, emits, logs and metrics out.
//!
//! Calls use the same ABI functions as a loaded library, so the lane rule, the panic guards and config parsing are the
//! real ones.

mod captured;
mod record;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_abi::RawOutcome;
use sluicegate_abi::board::{Board, CancelFlag};
use sluicegate_abi::host::{CallEnd, HostSink, Instance, Module, NotTaken};
use sluicegate_abi::plugin::Refusal;
use sluicegate_abi::view::RecordParts;

use crate::export::{self, Entry, Exported, Exports};
use crate::{BatchHandler, Handler, Level};
use captured::{CapturedOutput, Collected};
pub use record::{TestRecord, record};

const NAME: &str = "handler";

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
    pub spent: bool,
}

/// A handler under test. Its errors are texts: a test compares or prints what an operator would read.
pub struct Kit {
    module: Module,
    config: String,
    host: Arc<CapturedOutput>,
    board: Arc<Board>,
    cancel: CancelFlag,
    instance: Instance,
    serial: u64,
    timeout_ms: u64,
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
        let instance = create(&module, &host, &config)?;
        let board = Arc::new(Board::new(4096));
        Ok(Self {
            module,
            config,
            host,
            board,
            cancel: CancelFlag::default(),
            instance,
            serial: 0,
            timeout_ms: 0,
        })
    }

    /// Sets the timeout of subsequent calls.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    }

    /// Calls the handler with up to 4,096 records.
    ///
    /// # Panics
    /// With more records, or if the instance cannot be rebuilt after a panic.
    pub fn run(&mut self, records: impl IntoIterator<Item = TestRecord>) -> Run {
        let records: Vec<RecordParts> = records.into_iter().map(TestRecord::finish).collect();
        assert!(
            records.len() <= self.board.capacity(),
            "the kit supports up to 4,096 records per call"
        );
        self.serial += 1;
        self.cancel.clear();
        let mut collected = Collected::default();
        let end = self.instance.handle_owned(
            &records,
            self.serial,
            self.timeout_ms,
            &self.cancel,
            &self.board,
            &mut collected,
        );
        let mut raw = vec![RawOutcome::default(); records.len()];
        self.board.close(&mut raw);
        let spent = end == CallEnd::Spent;
        if spent {
            self.instance = create(&self.module, &self.host, &self.config)
                .expect("a handler that started once with this config starts again");
        }
        let outcomes = raw.iter().map(|raw| collected.outcome(raw)).collect();
        Run {
            outcomes,
            emits: collected.emits,
            spent,
        }
    }

    /// Returns a handle that cancels this kit's running call from another thread.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller {
            board: Arc::clone(&self.board),
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
            Err(NotTaken::Spent(panic)) => {
                self.instance = create(&self.module, &self.host, &self.config)
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
        let checked = self.instance.health();
        checked.map_err(|error| error.to_string())
    }

    /// Reports an assigned partition to the handler.
    ///
    /// # Errors
    /// Its panic.
    pub fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) -> Result<(), String> {
        let called = self.instance.assigned(topic, partition, epoch);
        called.map_err(|panic| panic.to_string())
    }

    /// Reports a revoked partition to the handler.
    ///
    /// # Errors
    /// Its panic.
    pub fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) -> Result<(), String> {
        let called = self.instance.revoked(topic, partition, epoch);
        called.map_err(|panic| panic.to_string())
    }

    /// Drains the handler.
    ///
    /// # Errors
    /// Its panic.
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
        let text = self
            .module
            .describe()
            .expect("describing a handler does not panic");
        let mut all: serde_json::Value =
            serde_json::from_str(&text).expect("a description is JSON");
        all["handlers"][0].take()
    }
}

fn create(module: &Module, host: &Arc<CapturedOutput>, config: &str) -> Result<Instance, String> {
    let host: Arc<dyn HostSink> = Arc::clone(host) as _;
    module
        .create(host, NAME, "test-0", config)
        .map_err(|refusal| match refusal {
            Refusal::Config(text) => format!("config refused: {text}"),
            Refusal::Failed(text) => format!("failed to start: {text}"),
            Refusal::Unknown => "the kit's own handler is unknown".to_string(),
        })
}

/// Cancels a running call from another thread.
#[derive(Clone, Debug)]
pub struct Canceller {
    board: Arc<Board>,
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
            if self.board.current().is_some() {
                end_call(&self.cancel);
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}
