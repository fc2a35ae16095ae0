//! The service's side of the ABI: safe wrappers for a plugin's root module and its instances.
//!
//! [`Module::of`] is for tests: it runs a plugin of the same binary through the functions that a loaded library exports.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use abi_stable::prefix_type::WithMetadata;

use crate::module::{
    HandlerFunctions_Ref, HostFunctions, HostFunctions_Ref, PluginModule_Ref, Ptr, RawBytes,
    RawCall, RawCreate, RawEmit, RawHandler, RawHost, RawLog, RawMetric, RawPartitionEvent,
    RawSink, emit_flag, emit_status, partition_event, status,
};
use crate::partition::{PartitionChange, PartitionEvent};
use crate::plugin::{self, Create, EmitResult, Plugin, Refusal};
use crate::progress::{CancelFlag, SharedProgress};
use crate::record::{ProducerRecord, RawRecord};
use crate::view::{BorrowedRecords, RecordParts};

/// A log line of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// 0 is error, 4 is trace.
    pub level: u32,
    /// What wrote it, such as a module path; may be empty.
    pub target: &'a str,
    /// The message.
    pub message: &'a str,
    /// Fields, as a JSON object; may be empty.
    pub fields: &'a str,
}

/// Receives a plugin's logs and metrics, from any thread.
pub trait HostSink: Send + Sync + 'static {
    /// A log line.
    fn log(&self, line: &LogLine<'_>);

    /// Kind 0 adds to a counter, 1 sets a gauge, 2 observes into a histogram.
    fn metric(&self, kind: u32, name: &str, value: f64);

    /// A table of further functions of this name and version, which lives as long as the process.
    fn extension(&self, _name: &str, _version: u32) -> *const () {
        std::ptr::null()
    }
}

/// Receives the output of a call besides outcomes.
pub trait CallSink {
    /// Receives a record emitted for record `record` of the call.
    fn emit(&mut self, record: u32, emitted: &ProducerRecord<'_>) -> EmitResult;

    /// Stores a text and returns its index + 1; 0 if it has no room.
    fn detail(&mut self, text: &str) -> u32;
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// The instance is ready for the next call.
    Usable,
    /// It must not be called again.
    Poisoned,
    /// As `Poisoned`, but because what it needs is away: the instance itself has not failed.
    Unavailable,
}

/// What limits a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Timeout of the whole call in milliseconds; 0 means no limit.
    pub timeout_ms: u64,
    /// Timeout of each record in milliseconds, from when it starts; 0 means no limit of its own.
    pub record_timeout_ms: u64,
}

/// Why an instance was not reconfigured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It keeps its previous config.
    Refused(Refusal),
    /// It panicked, with this text, and must not be called again.
    Poisoned(String),
}

/// Why a function of a plugin failed. Its text is the one that the plugin wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceError {
    /// The handler's reason; the instance is still usable.
    Failed(String),
    /// It panicked, now or earlier, and must not be called again.
    Panicked(String),
}

// By hand, so that plugins do not build another dependency.
impl fmt::Display for InstanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(text) | Self::Panicked(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for InstanceError {}

/// A plugin's root module.
#[derive(Clone, Copy)]
pub struct Module {
    raw: PluginModule_Ref,
}

impl Module {
    /// The module of a plugin in this binary.
    #[must_use]
    pub fn of<P: Plugin>() -> Self {
        Self {
            raw: plugin::module::<P>(),
        }
    }

    /// The module of a loaded library.
    ///
    /// # Safety
    /// Its layout was checked, and its code stays mapped as long as this value, anything created by it, or a thread of the
    /// plugin exists.
    #[must_use]
    pub unsafe fn new(raw: PluginModule_Ref) -> Self {
        Self { raw }
    }

    /// The JSON document that lists the plugin's handlers.
    ///
    /// # Errors
    /// [`InstanceError::Panicked`] with the panic's text.
    pub fn describe(&self) -> Result<String, InstanceError> {
        let mut text = String::new();
        // SAFETY: the sink lives for the call.
        match unsafe { (self.raw.describe())(sink(&mut text)) } {
            status::OK => Ok(text),
            // Its only failure.
            _ => Err(InstanceError::Panicked(text)),
        }
    }

    /// Builds an instance, bound to the calling thread.
    ///
    /// # Errors
    /// [`Refusal`] has the reason.
    pub fn create(
        &self,
        host: Arc<dyn HostSink>,
        create: &Create<'_>,
    ) -> Result<Instance, Refusal> {
        let mut text = String::new();
        let context = Arc::into_raw(Arc::new(HostCell { sink: host })).cast();
        let host = RawHost {
            context,
            functions: HostFunctions_Ref(HOST.static_as_prefix()),
        };
        let raw = RawCreate {
            size: RawCreate::SIZE,
            worker: create.worker,
            generation: create.generation,
            handler: RawBytes::of(create.handler.as_bytes()),
            instance: RawBytes::of(create.instance.as_bytes()),
            config: RawBytes::of(create.config.as_bytes()),
        };
        let mut out = std::mem::MaybeUninit::<RawHandler>::uninit();
        // SAFETY: the struct, its texts, the sink and the place for the instance live for the call; the host's count is
        // transferred.
        let code = unsafe {
            let text = sink(&mut text);
            (self.raw.create())(host, Ptr::of(&raw), text, out.as_mut_ptr())
        };
        match code {
            status::OK => {
                // SAFETY: `OK` says that the place is filled.
                let RawHandler { context, functions } = unsafe { out.assume_init() };
                Ok(Instance {
                    context,
                    functions,
                    handle: functions.handle(),
                    thread_bound: PhantomData,
                })
            }
            status::CONFIG => Err(Refusal::Config(text)),
            status::UNKNOWN => Err(Refusal::Unknown),
            _ => Err(Refusal::Failed(text)),
        }
    }

    /// A table of further functions, if the plugin has one of this name and version. It lives as long as the library.
    #[must_use]
    pub fn extension(&self, name: &str, version: u32) -> Option<NonNull<()>> {
        let extension = self.raw.extension()?;
        // SAFETY: the text lives for the call.
        let table = unsafe { extension(RawBytes::of(name.as_bytes()), version) };
        NonNull::new(table.cast_mut())
    }

    /// Stops the plugin's background work; `false` if it panicked.
    pub fn shutdown(&self, deadline_ms: u64) -> bool {
        // SAFETY: no arguments to keep alive.
        unsafe { (self.raw.shutdown())(deadline_ms) == status::OK }
    }
}

/// A handler instance, bound to the thread that created it.
pub struct Instance {
    context: *mut (),
    functions: HandlerFunctions_Ref,
    handle: unsafe extern "C" fn(*mut (), Ptr<RawCall>) -> i32,
    thread_bound: PhantomData<*const ()>,
}

impl Instance {
    /// Handles `records` as call `serial`, until `cancel` is set; outcomes and the current record appear in `progress`, which
    /// is opened and stays open.
    ///
    /// # Panics
    /// When `progress` is smaller than the call.
    pub fn handle(
        &mut self,
        records: &[RawRecord],
        serial: u64,
        limits: CallLimits,
        cancel: &CancelFlag,
        progress: &SharedProgress,
        output: &mut dyn CallSink,
    ) -> CallEnd {
        progress.open(serial, records.len());
        let mut output = output;
        let call = RawCall {
            size: RawCall::SIZE,
            count: records.len() as u32,
            record_stride: size_of::<RawRecord>() as u32,
            reserved: 0,
            records: records.as_ptr(),
            outcomes: progress.slots().as_ptr(),
            progress: progress.progress(),
            cancelled: cancel.word(),
            output: (&raw mut output).cast(),
            serial,
            timeout_ms: limits.timeout_ms,
            record_timeout_ms: limits.record_timeout_ms,
        };
        // SAFETY: everything in `call` outlives it (what a record points to is alive while the record is), and `&mut self`
        // on a type that is not `Send` makes it the only call on this instance, on its own thread.
        match unsafe { (self.handle)(self.context, Ptr::of(&call)) } {
            status::OK => CallEnd::Usable,
            status::UNAVAILABLE => CallEnd::Unavailable,
            _ => CallEnd::Poisoned,
        }
    }

    /// [`Instance::handle`] for records that own their parts.
    ///
    /// # Panics
    /// When `progress` is smaller than the call.
    pub fn handle_owned(
        &mut self,
        records: &[RecordParts],
        serial: u64,
        limits: CallLimits,
        cancel: &CancelFlag,
        progress: &SharedProgress,
        output: &mut dyn CallSink,
    ) -> CallEnd {
        let raw = BorrowedRecords::new(records);
        self.handle(&raw, serial, limits, cancel, progress, output)
    }

    /// Runs the health check.
    ///
    /// # Errors
    /// The handler's reason, or its panic.
    pub fn health(&mut self) -> Result<(), InstanceError> {
        // SAFETY: the instance is alive, idle and on its thread; the sink lives for the call.
        answer(|sink| unsafe { (self.functions.health())(self.context, sink) })
    }

    /// Something happens to a partition.
    ///
    /// # Errors
    /// Why the instance cannot follow it, or its panic.
    pub fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), InstanceError> {
        let raw = RawPartitionEvent {
            size: RawPartitionEvent::SIZE,
            kind: match event.change {
                PartitionChange::Assigned => partition_event::ASSIGNED,
                PartitionChange::Revoked => partition_event::REVOKED,
                PartitionChange::Lost => partition_event::LOST,
            },
            partition: event.partition,
            reserved: 0,
            epoch: event.epoch,
            start_offset: event.start_offset.unwrap_or(-1),
            deadline_ms: event.deadline.map_or(0, |deadline| {
                u64::try_from(deadline.as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1)
            }),
            topic: RawBytes::of(event.topic.as_bytes()),
        };
        // SAFETY: as in `health`; the event and its text live for the call.
        answer(|sink| unsafe { (self.functions.partition())(self.context, Ptr::of(&raw), sink) })
    }

    /// Finishes pending work.
    ///
    /// # Errors
    /// What was not finished, or its panic.
    pub fn drain(&mut self, deadline_ms: u64) -> Result<(), InstanceError> {
        // SAFETY: as in `health`.
        answer(|sink| unsafe { (self.functions.drain())(self.context, deadline_ms, sink) })
    }

    /// Replaces the config.
    ///
    /// # Errors
    /// [`NotTaken`] has the reason, and whether the instance is still usable.
    pub fn reconfigure(&mut self, config: &str) -> Result<(), NotTaken> {
        let mut text = String::new();
        let config = RawBytes::of(config.as_bytes());
        // SAFETY: as in `partition`.
        match unsafe { (self.functions.reconfigure())(self.context, config, sink(&mut text)) } {
            status::OK => Ok(()),
            status::CONFIG => Err(NotTaken::Refused(Refusal::Config(text))),
            status::POISONED => Err(NotTaken::Poisoned(text)),
            _ => Err(NotTaken::Refused(Refusal::Failed(text))),
        }
    }

    /// Drops the instance and reports a panic of its `Drop`.
    ///
    /// # Errors
    /// That panic.
    pub fn destroy(self) -> Result<(), InstanceError> {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: as in `health`; the instance is destroyed once, since `drop` does not run.
        answer(|sink| unsafe { (this.functions.destroy())(this.context, sink) })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: as in `destroy`, which suppresses this drop. The result is ignored: the instance is destroyed in any case.
        let _ = answer(|sink| unsafe { (self.functions.destroy())(self.context, sink) });
    }
}

fn answer(ask: impl FnOnce(RawSink) -> i32) -> Result<(), InstanceError> {
    let mut text = String::new();
    match ask(sink(&mut text)) {
        status::OK => Ok(()),
        status::POISONED => Err(InstanceError::Panicked(text)),
        _ => Err(InstanceError::Failed(text)),
    }
}

/// Maximum bytes of a text that a plugin returns: its description has the schemas of all configs.
const MAX_TEXT: usize = 4 << 20;

fn sink(text: &mut String) -> RawSink {
    unsafe extern "C" fn put(context: *mut (), bytes: RawBytes) {
        // SAFETY: `context` is the string that `sink` was made of, and the call that uses it is still running.
        let (text, bytes) = unsafe { (&mut *context.cast::<String>(), bytes.text()) };
        let room = MAX_TEXT.saturating_sub(text.len());
        text.push_str(&bytes[..bytes.floor_char_boundary(room)]);
    }
    RawSink {
        context: std::ptr::from_mut(text).cast(),
        put,
    }
}

/// What the host context of a plugin points to.
struct HostCell {
    sink: Arc<dyn HostSink>,
}

const HOST: &WithMetadata<HostFunctions> = &WithMetadata::new(HostFunctions {
    retain,
    release,
    log,
    metric,
    emit,
    detail,
    extension,
});

/// The service's own code must not unwind into a plugin either.
fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(work))
}

unsafe extern "C" fn retain(context: *const ()) {
    // SAFETY: the caller owns a count, so the cell is alive.
    unsafe { Arc::increment_strong_count(context.cast::<HostCell>()) };
}

unsafe extern "C" fn release(context: *const ()) {
    // SAFETY: the caller releases a count that it owns.
    let _ = contained(|| unsafe { Arc::decrement_strong_count(context.cast::<HostCell>()) });
}

unsafe extern "C" fn log(context: *const (), line: Ptr<RawLog>) {
    // SAFETY: the caller owns a count; the line lives for the call.
    let (cell, Some(line)) = (unsafe { (&*context.cast::<HostCell>(), line.read()) }) else {
        return;
    };
    // SAFETY: as above.
    let (target, message) = unsafe { (line.target.text(), line.message.text()) };
    // SAFETY: as above.
    let fields = unsafe { line.fields.text() };
    let line = LogLine {
        level: line.level,
        target: &target,
        message: &message,
        fields: &fields,
    };
    let _ = contained(|| cell.sink.log(&line));
}

unsafe extern "C" fn metric(context: *const (), change: Ptr<RawMetric>) {
    // SAFETY: as in `log`.
    let (cell, Some(change)) = (unsafe { (&*context.cast::<HostCell>(), change.read()) }) else {
        return;
    };
    // SAFETY: as in `log`.
    let name = unsafe { change.name.text() };
    let _ = contained(|| cell.sink.metric(change.kind, &name, change.value));
}

unsafe extern "C" fn extension(context: *const (), name: RawBytes, version: u32) -> *const () {
    // SAFETY: as in `log`.
    let (cell, name) = unsafe { (&*context.cast::<HostCell>(), name.text()) };
    contained(|| cell.sink.extension(&name, version)).unwrap_or(std::ptr::null())
}

unsafe extern "C" fn emit(output: *mut (), raw: Ptr<RawEmit>) -> i32 {
    // SAFETY: `output` is the one of the running call, on its thread; the record lives for this call.
    let (output, Some(raw)) = (unsafe { (&mut *output.cast::<&mut dyn CallSink>(), raw.read()) })
    else {
        return emit_status::DENIED;
    };
    // SAFETY: what the record borrows lives for this call.
    let (topic, key, value, headers) = unsafe {
        let (key, value) = (raw.key.get(), raw.value.get());
        (raw.topic.text(), key, value, raw.headers.get())
    };
    let emitted = ProducerRecord {
        topic: &topic,
        partition: (raw.partition >= 0).then_some(raw.partition),
        timestamp_ms: (raw.flags & emit_flag::TIMESTAMP != 0).then_some(raw.timestamp_ms),
        key: (raw.flags & emit_flag::KEY_NULL == 0).then_some(key),
        value: (raw.flags & emit_flag::VALUE_NULL == 0).then_some(value),
        headers,
    };
    match contained(|| output.emit(raw.record, &emitted)) {
        Ok(EmitResult::Taken) => emit_status::OK,
        Ok(EmitResult::Full) => emit_status::FULL,
        Ok(EmitResult::Cancelled) => emit_status::CANCELLED,
        Ok(EmitResult::Denied) | Err(_) => emit_status::DENIED,
    }
}

unsafe extern "C" fn detail(output: *mut (), text: RawBytes) -> u32 {
    // SAFETY: as in `emit`.
    let (output, text) = unsafe { (&mut *output.cast::<&mut dyn CallSink>(), text.text()) };
    contained(|| output.detail(&text)).unwrap_or(0)
}
