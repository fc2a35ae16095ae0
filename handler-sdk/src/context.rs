//! The service's interface to a handler, during calls and between them.

use std::time::{Duration, Instant};

use sluicegate_abi::plugin::{Call, Host};
use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};

use crate::emit::Emit;
use crate::outcome::Outcome;
use crate::record::Record;

/// Log levels, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A failure.
    Error,
    /// An unexpected condition.
    Warn,
    /// A notable event.
    Info,
    /// Details for troubleshooting.
    Debug,
    /// Fine-grained tracing.
    Trace,
}

/// Logging and metrics; clone it for the handler's own threads or tasks.
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

    /// Adds to a counter of the handler.
    pub fn counter(&self, name: &str, add: u64) {
        self.host.metric(0, name, add as f64);
    }

    /// Sets a gauge of the handler.
    pub fn gauge(&self, name: &str, value: f64) {
        self.host.metric(1, name, value);
    }

    /// Records an observation in a histogram of the handler.
    pub fn histogram(&self, name: &str, value: f64) {
        self.host.metric(2, name, value);
    }
}

/// Deadline of a call.
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

/// Identifies a record and the assignment under which it is handled; use it to fence effects outside Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Epoch of the partition's assignment; the higher one wins.
    pub epoch: u32,
}

/// The context of one record being handled.
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

    /// Emits a record. The handled record settles only once the emitted one is acknowledged. Emits of an attempt are
    /// discarded if the attempt ends in a retry or a panic.
    pub fn emit(&mut self, emit: &Emit<'_>) {
        self.emitted = true;
        self.refused |= !emit.with(|emission| self.call.emit(self.index, emission));
    }

    /// Writes a log line under the handler's name; it must never contain a record's value.
    pub fn log(&self, level: Level, message: &str) {
        self.call.host().log(level as u32, message);
    }

    /// Adds to a counter of the handler.
    pub fn counter(&self, name: &str, add: u64) {
        self.call.host().metric(0, name, add as f64);
    }

    /// Sets a gauge of the handler.
    pub fn gauge(&self, name: &str, value: f64) {
        self.call.host().metric(1, name, value);
    }

    /// Records an observation in a histogram of the handler.
    pub fn histogram(&self, name: &str, value: f64) {
        self.call.host().metric(2, name, value);
    }

    /// Attempt number of this record, from 1.
    pub fn attempt(&self) -> u32 {
        self.call.records()[self.index].attempt
    }

    /// Deadline of the call, shared by all of its records; `None` means no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.clock.deadline
    }

    /// Time left until the deadline; zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.clock
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the result is not needed any more; a long-running handler should check this and return.
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

    /// Publishes the record's outcome; `true` if later records of its lane may run in this call.
    ///
    /// The plain ack is a separate fast path: an outcome is large, and moving one per record is measurable.
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
            return true;
        }
        self.settle_other(&outcome)
    }

    #[inline(never)]
    fn settle_other(&self, outcome: &Outcome) -> bool {
        if self.refused && outcome.frees_lane() {
            let refused = Outcome::retry("the service refused an emitted record");
            self.call
                .settle(self.index, refused.to_raw(self.call, self.emitted));
            return false;
        }
        self.call
            .settle(self.index, outcome.to_raw(self.call, self.emitted));
        outcome.frees_lane()
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

    /// Number of records.
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

    /// The records in order; advancing the iterator also reports the handler's progress to the service.
    pub fn iter(&self) -> impl Iterator<Item = Record<'a>> + '_ {
        (0..self.len()).map(|index| {
            self.call.reached(index);
            self.record(index)
        })
    }
}

/// The context of a batch call.
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

    /// Sets an individual outcome for record `index`; the last one set counts.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn settle(&mut self, index: usize, outcome: &Outcome) {
        let emitted = self.emitted.get(index).copied().unwrap_or(false);
        self.call.settle(index, outcome.to_raw(self.call, emitted));
    }

    /// Emits a record for record `index`; see [`Context::emit`].
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
                &Outcome::retry("the service refused an emitted record"),
            );
        }
    }

    /// Logging and metrics.
    pub fn services(&self) -> Services {
        Services::new(self.call.host().clone())
    }

    /// Deadline of the call; `None` means no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.clock.deadline
    }

    /// Whether the result is not needed any more.
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
