//! The service's interface to a handler, during calls and between them.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use sluicegate_abi::plugin::{Call, EmitResult, Host, current};
use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};

use crate::emit::Emit;
use crate::outcome::Outcome;
use crate::record::Record;
use crate::sums::{COUNTER, GAUGE, HISTOGRAM, Sums};

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

    /// What is logged on this thread, one of the plugin's own, is the handler's.
    #[cfg_attr(
        not(feature = "async"),
        allow(dead_code, reason = "for threads of a runtime")
    )]
    pub(crate) fn adopt_thread(&self) {
        current::adopt(&self.host);
    }

    /// Writes a log line under the handler's name.
    pub fn log(&self, level: Level, message: &str) {
        self.host.log(level as u32, message);
    }

    /// Adds to a counter of the handler.
    pub fn counter(&self, name: &str, add: u64) {
        self.host.metric(COUNTER, name, add as f64);
    }

    /// Sets a gauge of the handler.
    pub fn gauge(&self, name: &str, value: f64) {
        self.host.metric(GAUGE, name, value);
    }

    /// Records an observation in a histogram of the handler.
    pub fn histogram(&self, name: &str, value: f64) {
        self.host.metric(HISTOGRAM, name, value);
    }
}

/// When the records of a call are to be finished.
#[derive(Clone, Copy)]
pub(crate) struct Clock<'c> {
    /// When the call began; `None` if nothing limits it.
    start: Option<Instant>,
    timeout: Option<Duration>,
    record_timeout: Option<Duration>,
    asked: &'c Cell<bool>,
}

impl<'c> Clock<'c> {
    /// Reads the time only if the call is limited. `asked`: the handler asks for the time of its records, now or earlier.
    pub(crate) fn start(call: &Call<'_>, asked: &'c Cell<bool>) -> Self {
        let (timeout, record_timeout) = (call.timeout(), call.record_timeout());
        let limited = timeout.is_some() || record_timeout.is_some();
        Self {
            start: limited.then(Instant::now),
            timeout,
            record_timeout,
            asked,
        }
    }

    /// That of a record, which starts now. The time is read only if the handler asks for it.
    pub(crate) fn record(self, index: usize) -> RecordClock<'c> {
        let started = match (self.start, self.record_timeout) {
            (Some(start), Some(_)) if index == 0 => Some(start),
            (Some(_), Some(_)) if self.asked.get() => Some(Instant::now()),
            _ => None,
        };
        RecordClock {
            call: self,
            started: Cell::new(started),
        }
    }
}

/// When a record is to be finished.
pub(crate) struct RecordClock<'c> {
    call: Clock<'c>,
    /// When it started, as far as that was asked.
    started: Cell<Option<Instant>>,
}

impl RecordClock<'_> {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let of_call = self.call.start.zip(self.call.timeout);
        let of_call = of_call.map(|(start, timeout)| start + timeout);
        let Some(timeout) = self.call.record_timeout else {
            return of_call;
        };
        self.call.asked.set(true);
        let started = self.started.get().unwrap_or_else(Instant::now);
        self.started.set(Some(started));
        let of_record = started + timeout;
        Some(of_call.map_or(of_record, |of_call| of_call.min(of_record)))
    }
}

/// Which records of a call emit.
#[derive(Default)]
pub(crate) struct Room {
    first: Cell<Option<usize>>,
    several: Cell<bool>,
    used_up: Cell<bool>,
}

impl Room {
    /// Whether no further record of the call may start: what it may emit has no room.
    pub(crate) fn is_used_up(&self) -> bool {
        self.used_up.get()
    }

    /// Emits for a record. `None`: it was taken.
    fn emit(&self, call: &Call<'_>, index: usize, emit: &Emit<'_>) -> Option<Refused> {
        match self.first.get() {
            None => self.first.set(Some(index)),
            Some(first) => self.several.set(self.several.get() || first != index),
        }
        match emit.with(|record| call.emit(index, record)) {
            EmitResult::Taken => None,
            EmitResult::Full if self.several.get() => {
                self.used_up.set(true);
                Some(Refused::NotNow)
            }
            EmitResult::Full => Some(Refused::Never(TOO_MUCH)),
            EmitResult::Denied => Some(Refused::Never(DENIED)),
            EmitResult::Cancelled => Some(Refused::TooLate),
        }
    }
}

/// The service counts it as a failed attempt if the time was over, not if it stopped the call itself.
const TOO_LATE: &str = "it emitted after its timeout, or after its call was stopped";
const TOO_MUCH: &str = "it emits more than a call may";
const DENIED: &str = "a record that it emits cannot be produced: it has no topic or one of more than 249 bytes, or key, value or headers of 4 GiB or more";

/// An emitted record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// In another call it may be.
    NotNow,
    /// The call was stopped before.
    TooLate,
    /// It never will be.
    Never(&'static str),
}

impl Refused {
    fn outcome(self, call: &Call<'_>) -> RawOutcome {
        match self {
            Self::NotNow => RawOutcome::default(),
            Self::TooLate => Outcome::retry(TOO_LATE).to_raw(call, false),
            Self::Never(why) => Outcome::dead_letter(why).to_raw(call, true),
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
    pub epoch: u64,
}

/// The context of one record being handled.
pub struct Context<'a> {
    call: &'a Call<'a>,
    index: usize,
    clock: RecordClock<'a>,
    room: &'a Room,
    sums: &'a Sums,
    emitted: bool,
    refused: Option<Refused>,
}

impl<'a> Context<'a> {
    #[inline]
    pub(crate) fn new(
        call: &'a Call<'a>,
        index: usize,
        clock: RecordClock<'a>,
        (room, sums): (&'a Room, &'a Sums),
    ) -> Self {
        Self {
            call,
            index,
            clock,
            room,
            sums,
            emitted: false,
            refused: None,
        }
    }

    /// Emits a record. The handled record settles only once the emitted one is acknowledged. Emits of an attempt are
    /// discarded if the attempt ends in a retry or a panic.
    ///
    /// A call may emit 32 MiB. A record that finds no room is handled again in another call, as the same attempt; one that emits
    /// more alone is dead-lettered, and so is one that emits what no topic can take.
    pub fn emit<'e>(&mut self, emit: impl Borrow<Emit<'e>>) {
        self.emitted = true;
        let refused = self.room.emit(self.call, self.index, emit.borrow());
        self.refused = self.refused.or(refused);
    }

    /// Writes a log line under the handler's name; it must never contain a record's value.
    pub fn log(&self, level: Level, message: &str) {
        self.call.host().log(level as u32, message);
    }

    /// Adds to a counter of the handler. Counters and gauges reach the service when the call has ended.
    pub fn counter(&self, name: &str, add: u64) {
        self.metric(COUNTER, name, add as f64);
    }

    /// Sets a gauge of the handler.
    pub fn gauge(&self, name: &str, value: f64) {
        self.metric(GAUGE, name, value);
    }

    /// Records an observation in a histogram of the handler.
    pub fn histogram(&self, name: &str, value: f64) {
        self.metric(HISTOGRAM, name, value);
    }

    fn metric(&self, kind: u32, name: &str, value: f64) {
        self.sums.record(self.call.host(), kind, name, value);
    }

    /// Attempt number of this record, from 1.
    pub fn attempt(&self) -> u32 {
        self.call.record(self.index).raw().attempt
    }

    /// When the record is to be finished; `None` means no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.clock.deadline()
    }

    /// Time left until the deadline; zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = self.clock.deadline();
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
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
        if matches!(outcome, Outcome::Ack) && self.refused.is_none() {
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
        let raw = settled(self.call, outcome, self.emitted, self.refused);
        self.call.settle(self.index, raw);
        outcome.frees_lane() && self.refused.is_none()
    }
}

/// What becomes of an outcome if some of what the record has emitted was not taken.
fn settled(
    call: &Call<'_>,
    outcome: &Outcome,
    emitted: bool,
    refused: Option<Refused>,
) -> RawOutcome {
    match refused.filter(|_| !outcome.is_retry()) {
        Some(refused) => refused.outcome(call),
        None => outcome.to_raw(call, emitted),
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

    /// The records in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'a>> + '_ {
        (0..self.len()).map(|index| self.record(index))
    }
}

/// The context of a batch call.
pub struct BatchContext<'a> {
    call: &'a Call<'a>,
    deadline: Option<Instant>,
    pub(crate) room: Room,
    emitting: Vec<Emitting>,
}

/// Whether a record of a batch has emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Emitting {
    #[default]
    Nothing,
    /// All of it was taken.
    Taken,
    /// Some of it was not.
    Refused(Refused),
}

impl<'a> BatchContext<'a> {
    pub(crate) fn new(call: &'a Call<'a>) -> Self {
        Self {
            call,
            deadline: call.timeout().map(|timeout| Instant::now() + timeout),
            room: Room::default(),
            emitting: Vec::new(),
        }
    }

    /// Sets an individual outcome for record `index`; the last one set counts.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn settle(&mut self, index: usize, outcome: &Outcome) {
        let emitting = self.emitting.get(index).copied().unwrap_or_default();
        let refused = match emitting {
            Emitting::Refused(refused) => Some(refused),
            Emitting::Nothing | Emitting::Taken => None,
        };
        let emitted = emitting != Emitting::Nothing;
        let raw = settled(self.call, outcome, emitted, refused);
        self.call.settle(index, raw);
    }

    /// Emits a record for record `index`; see [`Context::emit`].
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn emit<'e>(&mut self, index: usize, emit: impl Borrow<Emit<'e>>) {
        if self.emitting.is_empty() {
            self.emitting.resize(self.call.len(), Emitting::Nothing);
        }
        let refused = self.room.emit(self.call, index, emit.borrow());
        match (refused, self.emitting[index]) {
            (_, Emitting::Refused(_)) => {}
            (None, _) => self.emitting[index] = Emitting::Taken,
            (Some(refused), _) => self.emitting[index] = Emitting::Refused(refused),
        }
        let mut known = self.call.outcome(index);
        if known.code != outcome_code::NOT_RUN && known.code != outcome_code::RETRY {
            known.flags |= outcome_flag::EMITTED;
            let outcome = refused.map_or(known, |refused| refused.outcome(self.call));
            self.call.settle(index, outcome);
        }
    }

    /// Logging and metrics.
    pub fn services(&self) -> Services {
        Services::new(self.call.host().clone())
    }

    /// Deadline of the call; `None` means no limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the result is not needed any more.
    pub fn cancelled(&self) -> bool {
        self.call.cancelled()
    }

    /// What was not run is handled again in another call, and so is what stands behind it in its lane: its emits would be written before
    /// (G4).
    pub(crate) fn return_behind(&self) {
        let mut returned = HashSet::new();
        for index in 0..self.call.len() {
            let lane = self.call.record(index).raw().lane;
            if lane != 0 && returned.contains(&lane) {
                self.call.settle(index, RawOutcome::default());
            } else if self.call.outcome(index).code == outcome_code::NOT_RUN {
                returned.insert(lane);
            }
        }
    }

    pub(crate) fn settle_rest(&mut self, outcome: &Outcome) {
        for index in 0..self.call.len() {
            if self.call.outcome(index).code == outcome_code::NOT_RUN {
                self.settle(index, outcome);
            }
        }
    }
}
