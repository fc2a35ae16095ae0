//! Runs a handler without Kafka: records in; outcomes, emits, logs and metrics out.
//!
//! Calls go through the same functions as those of a loaded library, so the lane rule, the panic guards and the
//! reading of the config are the real ones.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_abi::board::Board;
use sluicegate_abi::header_block::{self, Headers};
use sluicegate_abi::host::{CallEnd, CallSink, HostSink, Instance, Module};
use sluicegate_abi::plugin::{Emission, Refusal};
use sluicegate_abi::view::RecordParts;
use sluicegate_abi::{RawOutcome, outcome_code};

use crate::export::{self, Entry, Exported, Exports};
use crate::{BatchHandler, Handler, Level};

const NAME: &str = "handler";

/// A record to hand to a handler; begins as offset 0 of partition 0 with null key and value, attempt 1, epoch 1.
#[derive(Clone, Debug)]
pub struct TestRecord {
    parts: RecordParts,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A record of `topic`.
pub fn record(topic: &str) -> TestRecord {
    let parts = RecordParts {
        topic: topic.to_string(),
        timestamp_ms: -1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    };
    TestRecord {
        parts,
        headers: Vec::new(),
    }
}

impl TestRecord {
    /// Sets the key, and with it the lane, as `order: key` does.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref().to_vec();
        self.parts.lane = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }) | 1;
        self.parts.key = Some(key);
        self
    }

    /// Sets the value.
    #[must_use]
    pub fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        self.parts.value = Some(value.as_ref().to_vec());
        self
    }

    /// Sets the value to JSON.
    #[must_use]
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.value(value.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers
            .push((name.as_bytes().to_vec(), Some(value.as_ref().to_vec())));
        self
    }

    /// Sets partition and offset.
    #[must_use]
    pub fn at(mut self, partition: i32, offset: i64) -> Self {
        self.parts.partition = partition;
        self.parts.offset = offset;
        self
    }

    /// Sets the timestamp, in milliseconds since the epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.parts.timestamp_ms = timestamp_ms;
        self
    }

    /// Sets which call this is for the record, from 1.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.parts.attempt = attempt;
        self
    }

    /// Sets the assignment's fencing number.
    #[must_use]
    pub fn epoch(mut self, epoch: u32) -> Self {
        self.parts.epoch = epoch;
        self
    }

    /// Sets the lane: records of one lane must not overtake each other; 0 is none.
    #[must_use]
    pub fn lane(mut self, lane: u64) -> Self {
        self.parts.lane = lane;
        self
    }

    fn finish(mut self) -> RecordParts {
        if !self.headers.is_empty() {
            self.parts.set_headers(
                self.headers
                    .iter()
                    .map(|(name, value)| (name.as_slice(), value.as_deref())),
            );
        }
        self.parts
    }
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not handled in this call: it follows a panic, a cancellation, or an unsettled record of its lane.
    NotRun,
    /// Acked.
    Ack,
    /// Dropped, with the reason.
    Drop(String),
    /// To be tried again: after how long, if the handler said, and the reason.
    Retry(Option<Duration>, String),
    /// Given up, with the reason.
    DeadLetter(String),
    /// The handler panicked; message and place.
    Panicked(String),
}

/// A record that the handler emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Index of the record on whose behalf.
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

/// What one call came to.
#[derive(Debug)]
pub struct Run {
    /// One for each record.
    pub outcomes: Vec<Outcome>,
    /// What was emitted, in order.
    pub emits: Vec<Emitted>,
    /// The instance panicked: the kit builds a new one before the next call.
    pub spent: bool,
}

/// A handler under test.
pub struct Kit {
    module: Module,
    config: String,
    host: Arc<Heard>,
    board: Arc<Board>,
    instance: Instance,
    serial: u64,
    timeout_ms: u64,
}

impl Kit {
    /// Builds a [`Handler`] with `config`.
    ///
    /// # Errors
    /// Why the handler refuses to start.
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
    /// Why the handler refuses to start.
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
    /// Why the handler refuses to start.
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
        let host = Arc::new(Heard::default());
        let config = config.to_string();
        let instance = create(&module, &host, &config)?;
        let board = Arc::new(Board::new(4096));
        Ok(Self {
            module,
            config,
            host,
            board,
            instance,
            serial: 0,
            timeout_ms: 0,
        })
    }

    /// Limits each following call.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    }

    /// Calls the handler with up to 4,096 records.
    ///
    /// # Panics
    /// When there are more records, or an instance cannot be built again after a panic.
    pub fn run(&mut self, records: impl IntoIterator<Item = TestRecord>) -> Run {
        let records: Vec<RecordParts> = records.into_iter().map(TestRecord::finish).collect();
        assert!(
            records.len() <= self.board.capacity(),
            "a call of the kit takes up to 4,096 records"
        );
        self.serial += 1;
        let mut collected = Collected::default();
        let end = self.instance.handle_owned(
            &records,
            self.serial,
            self.timeout_ms,
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

    /// Cancels the call that runs on this kit; hand it to another thread.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller {
            board: Arc::clone(&self.board),
        }
    }

    /// Asks the handler whether it is well.
    ///
    /// # Errors
    /// What it says.
    pub fn health(&mut self) -> Result<(), String> {
        self.instance.health()
    }

    /// Tells the handler of a partition that comes.
    ///
    /// # Errors
    /// Its panic.
    pub fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) -> Result<(), String> {
        self.instance.assigned(topic, partition, epoch)
    }

    /// Tells the handler of a partition that goes.
    ///
    /// # Errors
    /// Its panic.
    pub fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) -> Result<(), String> {
        self.instance.revoked(topic, partition, epoch)
    }

    /// Tells the handler to finish.
    ///
    /// # Errors
    /// Its panic.
    pub fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        self.instance
            .drain(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))
    }

    /// Ends the handler.
    ///
    /// # Errors
    /// What its `Drop` panicked with.
    pub fn end(self) -> Result<(), String> {
        self.instance.destroy()
    }

    /// The log lines so far.
    #[must_use]
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.host.lock().logs.clone()
    }

    /// Sum of what a counter was given; 0 when it was never used.
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

    /// What a histogram observed, in order.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Vec<f64> {
        self.host
            .lock()
            .metrics
            .get(&(2, name.to_string()))
            .cloned()
            .unwrap_or_default()
    }

    /// The handler's description: config schema and what it declares, as JSON.
    ///
    /// # Panics
    /// When the description is not JSON, which the export code rules out.
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

fn create(module: &Module, host: &Arc<Heard>, config: &str) -> Result<Instance, String> {
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
}

impl Canceller {
    /// Waits up to `patience` for a call to run and cancels it; `false` when none ran.
    pub fn cancel_running(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.board.current().is_some() {
                self.board.cancel();
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}

#[derive(Default)]
struct Heard(Mutex<HeardLog>);

#[derive(Default)]
struct HeardLog {
    logs: Vec<(Level, String)>,
    metrics: BTreeMap<(u32, String), Vec<f64>>,
}

impl Heard {
    fn lock(&self) -> std::sync::MutexGuard<'_, HeardLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostSink for Heard {
    fn log(&self, level: u32, message: &str) {
        let level = [
            Level::Error,
            Level::Warn,
            Level::Info,
            Level::Debug,
            Level::Trace,
        ]
        .get(level as usize)
        .copied()
        .unwrap_or(Level::Trace);
        self.lock().logs.push((level, message.to_string()));
    }

    fn metric(&self, kind: u32, name: &str, value: f64) {
        self.lock()
            .metrics
            .entry((kind, name.to_string()))
            .or_default()
            .push(value);
    }
}

#[derive(Default)]
struct Collected {
    emits: Vec<Emitted>,
    details: Vec<String>,
}

impl Collected {
    fn outcome(&self, raw: &RawOutcome) -> Outcome {
        let detail = (raw.detail as usize)
            .checked_sub(1)
            .and_then(|at| self.details.get(at))
            .cloned();
        let text = detail.unwrap_or_default();
        match raw.code {
            outcome_code::ACK => Outcome::Ack,
            outcome_code::DROP => Outcome::Drop(text),
            outcome_code::RETRY => {
                Outcome::Retry((raw.arg != 0).then(|| Duration::from_millis(raw.arg)), text)
            }
            outcome_code::DEAD_LETTER => Outcome::DeadLetter(text),
            outcome_code::PANICKED => Outcome::Panicked(text),
            _ => Outcome::NotRun,
        }
    }
}

impl CallSink for Collected {
    fn emit(&mut self, record: u32, emission: &Emission<'_>) -> bool {
        debug_assert!(
            emission.headers.is_empty() || header_block::Headers::new(emission.headers).count() > 0
        );
        self.emits.push(Emitted {
            record: record as usize,
            topic: emission.topic.to_string(),
            partition: emission.partition,
            timestamp_ms: emission.timestamp_ms,
            key: emission.key.map(<[u8]>::to_vec),
            value: emission.value.map(<[u8]>::to_vec),
            headers: Headers::new(emission.headers)
                .map(|(name, value)| {
                    (
                        String::from_utf8_lossy(name).into_owned(),
                        value.map(<[u8]>::to_vec),
                    )
                })
                .collect(),
        });
        true
    }

    fn detail(&mut self, text: &str) -> u32 {
        self.details.push(text.to_string());
        self.details.len() as u32
    }
}
