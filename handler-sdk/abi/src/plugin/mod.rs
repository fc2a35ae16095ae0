//! The plugin's side of the ABI: safe traits that the SDK implements ([`Plugin`], [`Instance`]), and safe handles to the
//! service ([`Host`]) and to a call ([`Call`]). The ABI functions that call the traits are in `functions`.

pub mod current;
mod functions;

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use crate::host::LogLine;
pub use abi_stable::library::LibHeader;
pub use functions::{library_header, module};

use crate::module::{
    Ptr, RawBytes, RawCall, RawEmit, RawHost, RawLog, RawMetric, emit_flag, emit_status,
};
use crate::partition::PartitionEvent;
use crate::progress::CANCELLED;
use crate::record::{ProducerRecord, RawOutcome, RawRecord};
use crate::view::RecordView;

/// A plugin library, implemented by the export macro.
pub trait Plugin: 'static {
    /// The handlers, as a JSON document.
    fn describe() -> String;

    /// Builds an instance.
    ///
    /// # Errors
    /// [`Refusal`] has the reason.
    fn create(host: Host, create: &Create<'_>) -> Result<Box<dyn Instance>, Refusal>;

    /// Stops the plugin's background work.
    fn shutdown(deadline: Duration);

    /// A table of further functions of the plugin, if it has one of this name and version. It lives as long as the library.
    fn extension(_name: &str, _version: u32) -> *const () {
        std::ptr::null()
    }
}

/// An instance to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create<'a> {
    /// Name of the handler in the plugin.
    pub handler: &'a str,
    /// Name of the handler in the service.
    pub instance: &'a str,
    /// Its config, JSON.
    pub config: &'a str,
    /// Number of the worker that will call it, from 0.
    pub worker: u32,
    /// Number of the generation that it belongs to.
    pub generation: u64,
}

/// Why an instance was not built or reconfigured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The handler refuses its config.
    Config(String),
    /// No handler has that name.
    Unknown,
    /// It failed or panicked while starting.
    Failed(String),
}

/// A handler instance.
pub trait Instance {
    /// Handles the records of a call.
    fn handle(&mut self, call: &Call<'_>) -> CallEnd;

    /// Runs the health check.
    ///
    /// # Errors
    /// What is wrong. A text, since that is what crosses the ABI.
    fn health(&mut self) -> Result<(), String>;

    /// Something happens to a partition.
    ///
    /// # Errors
    /// Why the instance cannot follow it: it is dropped, and another one is built.
    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), String>;

    /// The last call has returned: finish pending work.
    ///
    /// # Errors
    /// What was not finished.
    fn drain(&mut self, deadline: Duration) -> Result<(), String>;

    /// Replaces the config.
    ///
    /// # Errors
    /// [`Refusal`] has the reason; the previous config stays active.
    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal>;
}

/// Whether the instance may be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// It can.
    Usable,
    /// It panicked.
    Poisoned,
    /// What it needs is away; see [`crate::module::status::UNAVAILABLE`].
    Unavailable,
}

/// Whether the service took an emitted record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmitResult {
    /// It did.
    Taken,
    /// The call has emitted as much as it may.
    Full,
    /// The record cannot be produced: it has no topic, or a part of it is too large. Also a code of a newer service.
    Denied,
    /// The call is cancelled: what it emits does not count.
    Cancelled,
}

/// The service's logging and metrics; usable from any thread, also between calls.
pub struct Host {
    raw: RawHost,
}

// SAFETY: the context is counted by `retain` and `release`, and the functions may be called from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Clone for Host {
    fn clone(&self) -> Self {
        // SAFETY: `self` owns one count, so the context is alive.
        unsafe { (self.raw.functions.retain())(self.raw.context) };
        Self { raw: self.raw }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: releases the one count that `self` owns.
        unsafe { (self.raw.functions.release())(self.raw.context) };
    }
}

impl Host {
    /// Writes a log line; level 0 is error, 4 is trace.
    pub fn log(&self, level: u32, message: &str) {
        self.write(&LogLine {
            level,
            target: "",
            message,
            fields: "",
        });
    }

    /// Writes a log line.
    pub fn write(&self, line: &LogLine<'_>) {
        let raw = RawLog {
            size: RawLog::SIZE,
            level: line.level,
            target: RawBytes::of(line.target.as_bytes()),
            message: RawBytes::of(line.message.as_bytes()),
            fields: RawBytes::of(line.fields.as_bytes()),
        };
        // SAFETY: `self` keeps the context alive; the line lives for the call.
        unsafe { (self.raw.functions.log())(self.raw.context, Ptr::of(&raw)) };
    }

    /// Adds to a counter (kind 0), sets a gauge (1), records a histogram observation (2).
    pub fn metric(&self, kind: u32, name: &str, value: f64) {
        let raw = RawMetric {
            size: RawMetric::SIZE,
            kind,
            name: RawBytes::of(name.as_bytes()),
            value,
        };
        // SAFETY: as in `write`.
        unsafe { (self.raw.functions.metric())(self.raw.context, Ptr::of(&raw)) };
    }

    /// Whether both are of the same instance.
    fn is_same(&self, other: &Self) -> bool {
        self.raw.context == other.raw.context
    }

    /// A table of further functions of the service, if it has one of this name and version.
    pub fn extension(&self, name: &str, version: u32) -> Option<NonNull<()>> {
        let name = RawBytes::of(name.as_bytes());
        let extension = self.raw.functions.extension()?;
        // SAFETY: as in `write`.
        let table = unsafe { extension(self.raw.context, name, version) };
        NonNull::new(table.cast_mut())
    }
}

/// The plugin's view of a call; bound to its thread and its duration.
pub struct Call<'a> {
    raw: &'a RawCall,
    host: &'a Host,
    thread_bound: PhantomData<*const ()>,
}

impl<'a> Call<'a> {
    /// How many records.
    #[inline]
    pub fn len(&self) -> usize {
        self.raw.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.raw.count == 0
    }

    /// A record.
    ///
    /// # Panics
    /// When `index` is out of range.
    #[inline]
    pub fn record(&self, index: usize) -> RecordView<'a> {
        // SAFETY: the records and what they point to live until `handle` returns, which outlasts `'a`.
        unsafe { RecordView::new(self.raw_record(index)) }
    }

    #[inline]
    fn raw_record(&self, index: usize) -> &'a RawRecord {
        assert!(
            index < self.raw.count as usize,
            "record {index} is not in this call"
        );
        // SAFETY: the caller of `handle` passes `count` records at this distance, which live until it returns.
        unsafe {
            &*self
                .raw
                .records
                .byte_add(index * self.raw.record_stride as usize)
        }
    }

    /// Whether a record may be started: the call was not stopped, and its partition was not revoked since it was delivered.
    #[inline]
    pub fn may_start(&self, record: &RecordView<'_>) -> bool {
        !self.stopped() && record.raw().is_admitted()
    }

    /// Publishes a record's outcome; the service can read it immediately.
    ///
    /// # Panics
    /// When `index` is out of range.
    #[inline]
    pub fn settle(&self, index: usize, outcome: RawOutcome) {
        self.slot(index).store(outcome);
    }

    /// The outcome published for a record so far.
    ///
    /// # Panics
    /// When `index` is out of range.
    #[inline]
    pub fn outcome(&self, index: usize) -> RawOutcome {
        self.slot(index).load()
    }

    #[inline]
    fn slot(&self, index: usize) -> &crate::progress::OutcomeSlot {
        assert!(
            index < self.raw.count as usize,
            "record {index} is not in this call"
        );
        // SAFETY: `outcomes` has `count` slots that live until `handle` returns.
        unsafe { &*self.raw.outcomes.add(index) }
    }

    /// Publishes the index of the current record: the one to blame if the call hangs.
    #[inline]
    pub fn reached(&self, index: usize) {
        // SAFETY: `progress` lives until `handle` returns.
        unsafe { &*self.raw.progress }.store(index as u32, Ordering::Release);
    }

    /// Whether the result is not needed any more.
    #[inline]
    pub fn cancelled(&self) -> bool {
        self.ending() & CANCELLED != 0
    }

    /// Whether no further record may start.
    #[inline]
    pub fn stopped(&self) -> bool {
        self.ending() != 0
    }

    #[inline]
    fn ending(&self) -> u32 {
        // SAFETY: `cancelled` lives until `handle` returns.
        unsafe { &*self.raw.cancelled }.load(Ordering::Relaxed)
    }

    /// Timeout of the whole call, if limited.
    pub fn timeout(&self) -> Option<Duration> {
        (self.raw.timeout_ms != 0).then(|| Duration::from_millis(self.raw.timeout_ms))
    }

    /// Timeout of each record, from when it starts, if limited.
    pub fn record_timeout(&self) -> Option<Duration> {
        let timeout_ms = self.raw.record_timeout_ms;
        (timeout_ms != 0).then(|| Duration::from_millis(timeout_ms))
    }

    /// Serial number of the call within the instance, from 1.
    pub fn serial(&self) -> u64 {
        self.raw.serial
    }

    /// The record that the call is at, if it has not handled all.
    pub fn current(&self) -> Option<RecordView<'a>> {
        // SAFETY: `progress` lives until `handle` returns.
        let index = unsafe { &*self.raw.progress }.load(Ordering::Relaxed) as usize;
        (index < self.len()).then(|| self.record(index))
    }

    /// The service.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// Stores a text for an outcome and returns the value for `RawOutcome::detail`; 0 if it has no room.
    pub fn detail(&self, text: &str) -> u32 {
        // SAFETY: `output` is valid until `handle` returns and `self` cannot leave the thread; the text lives for
        // the call.
        unsafe {
            (self.host.raw.functions.detail())(self.raw.output, RawBytes::of(text.as_bytes()))
        }
    }

    /// Emits a record for record `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn emit(&self, index: usize, emitted: &ProducerRecord<'_>) -> EmitResult {
        assert!(index < self.len(), "record {index} is not in this call");
        let mut flags = 0;
        if emitted.key.is_none() {
            flags |= emit_flag::KEY_NULL;
        }
        if emitted.value.is_none() {
            flags |= emit_flag::VALUE_NULL;
        }
        if emitted.timestamp_ms.is_some() {
            flags |= emit_flag::TIMESTAMP;
        }
        let raw = RawEmit {
            size: RawEmit::SIZE,
            record: index as u32,
            flags,
            partition: emitted.partition.unwrap_or(-1),
            timestamp_ms: emitted.timestamp_ms.unwrap_or_default(),
            topic: RawBytes::of(emitted.topic.as_bytes()),
            key: RawBytes::of(emitted.key.unwrap_or_default()),
            value: RawBytes::of(emitted.value.unwrap_or_default()),
            headers: RawBytes::of(emitted.headers),
        };
        // SAFETY: as in `detail`; everything that `raw` borrows lives for the call.
        match unsafe { (self.host.raw.functions.emit())(self.raw.output, Ptr::of(&raw)) } {
            emit_status::OK => EmitResult::Taken,
            emit_status::FULL => EmitResult::Full,
            emit_status::CANCELLED => EmitResult::Cancelled,
            _ => EmitResult::Denied,
        }
    }
}
