//! What a handler can ask of the service while it handles records, and between.

use std::time::{Duration, Instant};

use sluicegate_abi::plugin::{Call, Host};
use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};

use crate::emit::Emit;
use crate::outcome::Outcome;
use crate::record::Record;

/// Log levels, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// Something worth knowing.
    Info,
    /// For whoever looks for a cause.
    Debug,
    /// Everything.
    Trace,
}

/// Logging and metrics; clone it for threads or tasks of the handler's own.
#[derive(Clone)]
pub struct Services {
    host: Host,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

impl Services {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    /// Writes a log line under the handler's name.
    pub fn log(&self, level: Level, message: &str) {
        self.host.log(level as u32, message);
    }

    /// Adds to a counter of the handler's own.
    pub fn counter(&self, name: &str, add: u64) {
        self.host.metric(0, name, add as f64);
    }

    /// Sets a gauge of the handler's own.
    pub fn gauge(&self, name: &str, value: f64) {
        self.host.metric(1, name, value);
    }

    /// Observes into a histogram of the handler's own.
    pub fn histogram(&self, name: &str, value: f64) {
        self.host.metric(2, name, value);
    }
}

/// When a call must be over.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) deadline: Option<Instant>,
}

impl Clock {
    /// Reads the time only if the call is limited.
    pub(crate) fn start(call: &Call<'_>) -> Self {
        Self {
            deadline: call.timeout().map(|timeout| Instant::now() + timeout),
        }
    }
}

/// Which record of which ownership this is; effects outside Kafka can be fenced with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Number of this ownership of the partition; a higher one wins.
    pub epoch: u32,
}

/// What a handler can do while it handles one record.
pub struct Context<'a> {
    call: &'a Call<'a>,
    index: usize,
    clock: Clock,
    emitted: bool,
    refused: bool,
}

impl<'a> Context<'a> {
    #[inline]
    pub(crate) fn new(call: &'a Call<'a>, index: usize, clock: Clock) -> Self {
        Self {
            call,
            index,
            clock,
            emitted: false,
            refused: false,
        }
    }

    /// Produces a record. The handled record settles only once the service knows it written; when writing fails, the
    /// attempt has failed. What an attempt emits is discarded when it ends in a retry or a panic.
    pub fn emit(&mut self, emit: &Emit<'_>) {
        self.emitted = true;
        self.refused |= !emit.with(|emission| self.call.emit(self.index, emission));
    }

    /// Writes a log line under the handler's name; never put a record's value into it.
    pub fn log(&self, level: Level, message: &str) {
        self.call.host().log(level as u32, message);
    }

    /// Adds to a counter of the handler's own.
    pub fn counter(&self, name: &str, add: u64) {
        self.call.host().metric(0, name, add as f64);
    }

    /// Sets a gauge of the handler's own.
    pub fn gauge(&self, name: &str, value: f64) {
        self.call.host().metric(1, name, value);
    }

    /// Observes into a histogram of the handler's own.
    pub fn histogram(&self, name: &str, value: f64) {
        self.call.host().metric(2, name, value);
    }

    /// Which call this is for this record, from 1.
    pub fn attempt(&self) -> u32 {
        self.call.records()[self.index].attempt
    }

    /// When the call must be over; `None` is no limit. The limit is one for all records of a call.
    pub fn deadline(&self) -> Option<Instant> {
        self.clock.deadline
    }

    /// Time left until the deadline; zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.clock
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The result is no longer wanted; a long-running handler should look at this and return.
    pub fn cancelled(&self) -> bool {
        self.call.cancelled()
    }

    /// The fencing token of the record.
    pub fn token(&self) -> FencingToken<'a> {
        let record = self.call.record(self.index);
        let raw = record.raw();
        FencingToken {
            topic: record.topic(),
            partition: raw.partition,
            offset: raw.offset,
            epoch: raw.epoch,
        }
    }

    /// Publishes the record's outcome; `true` when later records of its lane may run in this call.
    ///
    /// The plain ack comes first and alone: an outcome is large, and moving one about for every record shows.
    #[inline]
    pub(crate) fn settle(&self, outcome: Outcome) -> bool {
        if matches!(outcome, Outcome::Ack) && !self.refused {
            let flags = if self.emitted {
                outcome_flag::EMITTED
            } else {
                0
            };
            let ack = RawOutcome {
                code: outcome_code::ACK,
                flags,
                detail: 0,
                arg: 0,
            };
            self.call.settle(self.index, ack);
            return !self.emitted;
        }
        self.settle_other(&outcome)
    }

    #[inline(never)]
    fn settle_other(&self, outcome: &Outcome) -> bool {
        if self.refused && outcome.settles_at_once() {
            let refused = Outcome::retry("the service refused a record that the handler emitted");
            self.call
                .settle(self.index, refused.to_raw(self.call, self.emitted));
            return false;
        }
        self.call
            .settle(self.index, outcome.to_raw(self.call, self.emitted));
        outcome.settles_at_once() && !self.emitted
    }
}

/// The records of one call of a [`crate::BatchHandler`].
pub struct Batch<'a> {
    call: &'a Call<'a>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(call: &'a Call<'a>) -> Self {
        Self { call }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.call.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.call.is_empty()
    }

    /// A record.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn record(&self, index: usize) -> Record<'a> {
        Record::new(self.call.record(index))
    }

    /// The records in order; for each one the service can see that the handler got there.
    pub fn iter(&self) -> impl Iterator<Item = Record<'a>> + '_ {
        (0..self.len()).map(|index| {
            self.call.reached(index);
            self.record(index)
        })
    }
}

/// What a batch handler can do while it handles a call.
pub struct BatchContext<'a> {
    call: &'a Call<'a>,
    clock: Clock,
    emitted: Vec<bool>,
}

impl<'a> BatchContext<'a> {
    pub(crate) fn new(call: &'a Call<'a>, clock: Clock) -> Self {
        Self {
            call,
            clock,
            emitted: Vec::new(),
        }
    }

    /// Gives record `index` an outcome of its own; the last one given counts.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn settle(&mut self, index: usize, outcome: &Outcome) {
        let emitted = self.emitted.get(index).copied().unwrap_or(false);
        self.call.settle(index, outcome.to_raw(self.call, emitted));
    }

    /// Produces a record on behalf of record `index`; see [`Context::emit`].
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn emit(&mut self, index: usize, emit: &Emit<'_>) {
        if self.emitted.is_empty() {
            self.emitted.resize(self.call.len(), false);
        }
        self.emitted[index] = true;
        let mut settled = self.call.outcome(index);
        if settled.code != outcome_code::NOT_RUN {
            settled.flags |= outcome_flag::EMITTED;
            self.call.settle(index, settled);
        }
        if !emit.with(|emission| self.call.emit(index, emission)) {
            self.settle(
                index,
                &Outcome::retry("the service refused a record that the handler emitted"),
            );
        }
    }

    /// Logging and metrics.
    pub fn services(&self) -> Services {
        Services::new(self.call.host().clone())
    }

    /// When the call must be over; `None` is no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.clock.deadline
    }

    /// The result is no longer wanted.
    pub fn cancelled(&self) -> bool {
        self.call.cancelled()
    }

    pub(crate) fn settle_rest(&mut self, outcome: &Outcome) {
        for index in 0..self.call.len() {
            if self.call.outcome(index).code == outcome_code::NOT_RUN {
                self.settle(index, outcome);
            }
        }
    }
}
