//! The plugin's side of the ABI: safe traits that the SDK implements ([`Plugin`], [`Instance`]), and safe handles to the
//! service ([`Host`]) and to a call ([`Call`]). The ABI functions that call the traits are in `functions`.

mod functions;

use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use abi_stable::library::LibHeader;
pub use functions::{RECONFIGURE, library_header, module};

use crate::board::CANCELLED;
use crate::module::{RawBytes, RawCall, RawEmit, RawHost, emit_flag, status};
use crate::record::{RawOutcome, RawRecord};
use crate::view::RecordView;

/// A plugin library, implemented by the export macro.
pub trait Plugin: 'static {
    /// The handlers, as a JSON document.
    fn describe() -> String;

    /// Builds an instance.
    ///
    /// # Errors
    /// [`Refusal`] has the reason.
    fn create(
        host: Host,
        handler: &str,
        instance: &str,
        config: &str,
    ) -> Result<Box<dyn Instance>, Refusal>;

    /// Stops the plugin's background work.
    fn shutdown(deadline: Duration);
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

    /// A partition was assigned.
    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32);

    /// A partition was revoked: no more records of this partition and epoch follow.
    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32);

    /// The last call has returned: finish pending work.
    fn drain(&mut self, deadline: Duration);

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
    Spent,
}

/// A record to produce.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emission<'a> {
    /// Target topic.
    pub topic: &'a str,
    /// Target partition; `None` lets the producer choose.
    pub partition: Option<i32>,
    /// Timestamp in milliseconds; `None` is now.
    pub timestamp_ms: Option<i64>,
    /// Key; `None` is null.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is null.
    pub value: Option<&'a [u8]>,
    /// Header block; empty is none.
    pub headers: &'a [u8],
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
        // SAFETY: `self` keeps the context alive; the text lives for the call.
        unsafe {
            (self.raw.functions.log())(self.raw.context, level, RawBytes::of(message.as_bytes()))
        };
    }

    /// Adds to a counter (kind 0), sets a gauge (1), records a histogram observation (2).
    pub fn metric(&self, kind: u32, name: &str, value: f64) {
        // SAFETY: as in `log`.
        unsafe {
            (self.raw.functions.metric())(
                self.raw.context,
                kind,
                RawBytes::of(name.as_bytes()),
                value,
            )
        };
    }
}

/// The plugin's view of a call; bound to its thread and its duration.
pub struct Call<'a> {
    raw: &'a RawCall,
    host: &'a Host,
    thread_bound: PhantomData<*const ()>,
}

impl<'a> Call<'a> {
    /// The records.
    #[inline]
    pub fn records(&self) -> &'a [RawRecord] {
        if self.raw.count == 0 {
            return &[];
        }
        // SAFETY: the caller of `handle` passes `count` records that live until it returns.
        unsafe { std::slice::from_raw_parts(self.raw.records, self.raw.count as usize) }
    }

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
        unsafe { RecordView::new(&self.records()[index]) }
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
    fn slot(&self, index: usize) -> &crate::board::OutcomeSlot {
        assert!(
            index < self.raw.count as usize,
            "record {index} is not in this call"
        );
        // SAFETY: `outcomes` has `count` slots that live until `handle` returns.
        unsafe { &*self.raw.outcomes.add(index) }
    }

    /// Publishes the index of the current record.
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

    /// Serial number of the call within the instance, from 1.
    pub fn serial(&self) -> u64 {
        self.raw.serial
    }

    /// The service.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// Stores a text for an outcome and returns the value for `RawOutcome::detail`.
    pub fn detail(&self, text: &str) -> u32 {
        // SAFETY: `output` is valid until `handle` returns and `self` cannot leave the thread; the text lives for
        // the call.
        unsafe {
            (self.host.raw.functions.detail())(self.raw.output, RawBytes::of(text.as_bytes()))
        }
    }

    /// Emits a record for record `index`; `false` if the service refuses it.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn emit(&self, index: usize, emission: &Emission<'_>) -> bool {
        assert!(index < self.len(), "record {index} is not in this call");
        let mut flags = 0;
        if emission.key.is_none() {
            flags |= emit_flag::KEY_NULL;
        }
        if emission.value.is_none() {
            flags |= emit_flag::VALUE_NULL;
        }
        if emission.timestamp_ms.is_some() {
            flags |= emit_flag::TIMESTAMP;
        }
        let raw = RawEmit {
            record: index as u32,
            flags,
            partition: emission.partition.unwrap_or(-1),
            reserved: 0,
            timestamp_ms: emission.timestamp_ms.unwrap_or_default(),
            topic: RawBytes::of(emission.topic.as_bytes()),
            key: RawBytes::of(emission.key.unwrap_or_default()),
            value: RawBytes::of(emission.value.unwrap_or_default()),
            headers: RawBytes::of(emission.headers),
        };
        // SAFETY: as in `detail`; everything that `raw` borrows lives for the call.
        unsafe { (self.host.raw.functions.emit())(self.raw.output, &raw) == status::OK }
    }
}
