//! The service's side of the ABI: safe wrappers for a plugin's root module and its instances.
//!
//! [`Module::of`] is for tests: it runs a plugin of the same binary through the functions that a loaded library exports.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use abi_stable::prefix_type::WithMetadata;

use crate::board::{Board, CancelFlag};
use crate::module::{
    HandlerFunctions_Ref, HostFunctions, HostFunctions_Ref, PluginModule_Ref, RawBytes, RawCall,
    RawEmit, RawHandler, RawHost, RawSink, Reconfigure, emit_flag, status,
};
use crate::plugin::{self, Emission, Plugin, Refusal};
use crate::record::RawRecord;
use crate::view::{BorrowedRecords, RecordParts};

/// Receives a plugin's logs and metrics, from any thread.
pub trait HostSink: Send + Sync + 'static {
    /// A log line; level 0 is error, 4 is trace.
    fn log(&self, level: u32, message: &str);

    /// Kind 0 adds to a counter, 1 sets a gauge, 2 observes into a histogram.
    fn metric(&self, kind: u32, name: &str, value: f64);
}

/// Receives the output of a call besides outcomes.
pub trait CallSink {
    /// Receives a record emitted for record `record` of the call; `false` refuses it.
    fn emit(&mut self, record: u32, emission: &Emission<'_>) -> bool;

    /// Stores a text and returns its index + 1.
    fn detail(&mut self, text: &str) -> u32;
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// The instance is ready for the next call.
    Usable,
    /// It must not be called again.
    Spent,
}

/// Why an instance was not reconfigured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It keeps its previous config.
    Refused(Refusal),
    /// It panicked, with this text, and must not be called again.
    Spent(String),
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
    reconfigure: Option<Reconfigure>,
}

impl Module {
    /// The module of a plugin in this binary.
    #[must_use]
    pub fn of<P: Plugin>() -> Self {
        Self {
            raw: plugin::module::<P>(),
            reconfigure: Some(plugin::RECONFIGURE),
        }
    }

    /// The module of a loaded library.
    ///
    /// # Safety
    /// Its layout was checked, and its code stays mapped as long as this value, anything created by it, or a thread of the
    /// plugin exists. `reconfigure` is from the same library.
    #[must_use]
    pub unsafe fn new(raw: PluginModule_Ref, reconfigure: Option<Reconfigure>) -> Self {
        Self { raw, reconfigure }
    }

    /// Whether its instances can be reconfigured.
    #[must_use]
    pub fn reconfigures(&self) -> bool {
        self.reconfigure.is_some()
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
        handler: &str,
        instance: &str,
        config: &str,
    ) -> Result<Instance, Refusal> {
        let mut text = String::new();
        let context = Arc::into_raw(Arc::new(HostCell { sink: host })).cast();
        let host = RawHost {
            context,
            functions: HostFunctions_Ref(HOST.static_as_prefix()),
        };
        let mut out = std::mem::MaybeUninit::<RawHandler>::uninit();
        // SAFETY: the texts, the sink and the place for the instance live for the call; the host's count is transferred.
        let code = unsafe {
            (self.raw.create())(
                host,
                RawBytes::of(handler.as_bytes()),
                RawBytes::of(instance.as_bytes()),
                RawBytes::of(config.as_bytes()),
                sink(&mut text),
                out.as_mut_ptr(),
            )
        };
        match code {
            status::OK => {
                // SAFETY: `OK` says that the place is filled.
                let RawHandler { context, functions } = unsafe { out.assume_init() };
                Ok(Instance {
                    context,
                    functions,
                    handle: functions.handle(),
                    reconfigure: self.reconfigure,
                    thread_bound: PhantomData,
                })
            }
            status::CONFIG => Err(Refusal::Config(text)),
            status::UNKNOWN => Err(Refusal::Unknown),
            _ => Err(Refusal::Failed(text)),
        }
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
    handle: unsafe extern "C" fn(*mut (), *const RawCall) -> i32,
    reconfigure: Option<Reconfigure>,
    thread_bound: PhantomData<*const ()>,
}

impl Instance {
    /// Handles `records` as call `serial`, until `cancel` is set; outcomes and progress appear on `board`, which is
    /// opened and stays open.
    ///
    /// # Panics
    /// When the board is smaller than the call.
    pub fn handle(
        &mut self,
        records: &[RawRecord],
        serial: u64,
        timeout_ms: u64,
        cancel: &CancelFlag,
        board: &Board,
        output: &mut dyn CallSink,
    ) -> CallEnd {
        board.open(serial, records.len());
        let mut output = output;
        let call = RawCall {
            records: records.as_ptr(),
            outcomes: board.slots().as_ptr(),
            progress: board.progress(),
            cancelled: cancel.word(),
            output: (&raw mut output).cast(),
            serial,
            timeout_ms,
            count: records.len() as u32,
            reserved_small: 0,
            reserved: [0; 4],
        };
        // SAFETY: everything in `call` outlives it (what a record points to is alive while the record is), and `&mut self`
        // on a type that is not `Send` makes it the only call on this instance, on its own thread.
        match unsafe { (self.handle)(self.context, &raw const call) } {
            status::OK => CallEnd::Usable,
            _ => CallEnd::Spent,
        }
    }

    /// [`Instance::handle`] for records that own their parts.
    ///
    /// # Panics
    /// When the board is smaller than the call.
    pub fn handle_owned(
        &mut self,
        records: &[RecordParts],
        serial: u64,
        timeout_ms: u64,
        cancel: &CancelFlag,
        board: &Board,
        output: &mut dyn CallSink,
    ) -> CallEnd {
        let raw = BorrowedRecords::new(records);
        self.handle(&raw, serial, timeout_ms, cancel, board, output)
    }

    /// Runs the health check.
    ///
    /// # Errors
    /// The handler's reason, or its panic.
    pub fn health(&mut self) -> Result<(), InstanceError> {
        // SAFETY: the instance is alive, idle and on its thread; the sink lives for the call.
        answer(|sink| unsafe { (self.functions.health())(self.context, sink) })
    }

    /// A partition was assigned.
    ///
    /// # Errors
    /// Its panic.
    pub fn assigned(
        &mut self,
        topic: &str,
        partition: i32,
        epoch: u32,
    ) -> Result<(), InstanceError> {
        let topic = RawBytes::of(topic.as_bytes());
        // SAFETY: as in `health`; the text lives for the call.
        answer(|sink| unsafe {
            (self.functions.assigned())(self.context, topic, partition, epoch, sink)
        })
    }

    /// A partition was revoked: no more records of this partition and epoch follow.
    ///
    /// # Errors
    /// Its panic.
    pub fn revoked(
        &mut self,
        topic: &str,
        partition: i32,
        epoch: u32,
    ) -> Result<(), InstanceError> {
        let topic = RawBytes::of(topic.as_bytes());
        // SAFETY: as in `assigned`.
        answer(|sink| unsafe {
            (self.functions.revoked())(self.context, topic, partition, epoch, sink)
        })
    }

    /// Finishes pending work.
    ///
    /// # Errors
    /// Its panic.
    pub fn drain(&mut self, deadline_ms: u64) -> Result<(), InstanceError> {
        // SAFETY: as in `health`.
        answer(|sink| unsafe { (self.functions.drain())(self.context, deadline_ms, sink) })
    }

    /// Replaces the config.
    ///
    /// # Errors
    /// [`NotTaken`] has the reason, and whether the instance is still usable.
    pub fn reconfigure(&mut self, config: &str) -> Result<(), NotTaken> {
        let Some(reconfigure) = self.reconfigure else {
            let text = "it was built with an SDK without support for reconfiguration";
            return Err(NotTaken::Refused(Refusal::Failed(text.into())));
        };
        let mut text = String::new();
        // SAFETY: as in `assigned`.
        match unsafe {
            reconfigure(
                self.context,
                RawBytes::of(config.as_bytes()),
                sink(&mut text),
            )
        } {
            status::OK => Ok(()),
            status::CONFIG => Err(NotTaken::Refused(Refusal::Config(text))),
            status::SPENT => Err(NotTaken::Spent(text)),
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
        status::SPENT => Err(InstanceError::Panicked(text)),
        _ => Err(InstanceError::Failed(text)),
    }
}

fn sink(text: &mut String) -> RawSink {
    unsafe extern "C" fn put(context: *mut (), bytes: RawBytes) {
        // SAFETY: `context` is the string that `sink` was made of, and the call that uses it is still running.
        let (text, bytes) = unsafe { (&mut *context.cast::<String>(), bytes.text()) };
        text.push_str(&bytes);
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

unsafe extern "C" fn log(context: *const (), level: u32, message: RawBytes) {
    // SAFETY: the caller owns a count; the text lives for the call.
    let (cell, message) = unsafe { (&*context.cast::<HostCell>(), message.text()) };
    let _ = contained(|| cell.sink.log(level, &message));
}

unsafe extern "C" fn metric(context: *const (), kind: u32, name: RawBytes, value: f64) {
    // SAFETY: as in `log`.
    let (cell, name) = unsafe { (&*context.cast::<HostCell>(), name.text()) };
    let _ = contained(|| cell.sink.metric(kind, &name, value));
}

unsafe extern "C" fn emit(output: *mut (), raw: *const RawEmit) -> i32 {
    // SAFETY: `output` is the one of the running call, on its thread; the record lives for this call.
    let (output, raw) = unsafe { (&mut *output.cast::<&mut dyn CallSink>(), &*raw) };
    // SAFETY: what the record borrows lives for this call.
    let (topic, key, value, headers) = unsafe {
        (
            raw.topic.text(),
            raw.key.get(),
            raw.value.get(),
            raw.headers.get(),
        )
    };
    let emission = Emission {
        topic: &topic,
        partition: (raw.partition >= 0).then_some(raw.partition),
        timestamp_ms: (raw.flags & emit_flag::TIMESTAMP != 0).then_some(raw.timestamp_ms),
        key: (raw.flags & emit_flag::KEY_NULL == 0).then_some(key),
        value: (raw.flags & emit_flag::VALUE_NULL == 0).then_some(value),
        headers,
    };
    match contained(|| output.emit(raw.record, &emission)) {
        Ok(true) => status::OK,
        _ => status::FAILED,
    }
}

unsafe extern "C" fn detail(output: *mut (), text: RawBytes) -> u32 {
    // SAFETY: as in `emit`.
    let (output, text) = unsafe { (&mut *output.cast::<&mut dyn CallSink>(), text.text()) };
    contained(|| output.detail(&text)).unwrap_or(0)
}
