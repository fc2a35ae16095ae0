//! The plugin's side of the ABI functions.
//!
//! They never unwind. A panic of the author's code becomes a status and a text; an instance that panicked is never called
//! again, only dropped.

use std::marker::PhantomData;
use std::time::Duration;

use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
};
use abi_stable::prefix_type::WithMetadata;

use super::current::{self, Running};
use super::{Call, CallEnd, Create, Host, Instance, Plugin, Refusal};
use crate::guard;
use crate::module::{
    HandlerFunctions, HandlerFunctions_Ref, PluginModule, PluginModule_Ref, Ptr, RawBytes, RawCall,
    RawCreate, RawHandler, RawHost, RawPartitionEvent, RawSink, partition_event, status,
};
use crate::partition::{PartitionChange, PartitionEvent};

/// The root module of `P`.
#[must_use]
pub fn module<P: Plugin>() -> PluginModule_Ref {
    PluginModule_Ref(Functions::<P>::MODULE.static_as_prefix())
}

/// The header that `abi_stable` expects in a library; the export macro creates a static of it.
#[must_use]
pub const fn library_header<P: Plugin>() -> LibHeader {
    extern "C" fn loader<P: Plugin>() -> RootModuleResult {
        __call_root_module_loader(module::<P>)
    }
    // SAFETY: the loader's module is a `PluginModule_Ref`, as named here.
    unsafe { LibHeader::from_constructor::<PluginModule_Ref>(loader::<P>, CheckTypeLayout::Yes) }
}

struct Functions<P>(PhantomData<P>);

impl<P: Plugin> Functions<P> {
    const MODULE: &'static WithMetadata<PluginModule> = &WithMetadata::new(PluginModule {
        describe: describe::<P>,
        create: create::<P>,
        shutdown: shutdown::<P>,
        extension: extension::<P>,
    });
}

const HANDLER: &WithMetadata<HandlerFunctions> = &WithMetadata::new(HandlerFunctions {
    handle,
    health,
    partition,
    drain,
    reconfigure,
    destroy,
});

/// The other side passed a struct that is smaller than that of the first minor.
const TOO_SMALL: &str = "the service and the plugin do not agree about the ABI";

/// What a handler's context pointer points to.
struct Cell {
    instance: Box<dyn Instance>,
    host: Host,
    poisoned: bool,
}

impl Cell {
    /// Runs `work` unless the instance has panicked before; a panic writes its text to `sink`.
    fn run(
        &mut self,
        sink: RawSink,
        work: impl FnOnce(&mut dyn Instance) -> Result<(), String>,
    ) -> i32 {
        if self.poisoned {
            put(
                sink,
                "the instance panicked earlier and is not used any more",
            );
            return status::POISONED;
        }
        let running = Running::instance(&self.host);
        let ran = guard::guarded(|| work(self.instance.as_mut()));
        drop(running);
        match ran {
            Ok(Ok(())) => status::OK,
            Ok(Err(text)) => {
                put(sink, &text);
                status::FAILED
            }
            Err(panic) => {
                self.poisoned = true;
                put(sink, &panic);
                status::POISONED
            }
        }
    }
}

fn put(sink: RawSink, text: &str) {
    // SAFETY: the receiver keeps its sink valid for the call in which it passed it.
    unsafe { (sink.put)(sink.context, RawBytes::of(text.as_bytes())) };
}

unsafe extern "C" fn describe<P: Plugin>(sink: RawSink) -> i32 {
    match guard::guarded(P::describe) {
        Ok(text) => {
            put(sink, &text);
            status::OK
        }
        Err(panic) => {
            put(sink, &panic);
            status::FAILED
        }
    }
}

unsafe extern "C" fn create<P: Plugin>(
    host: RawHost,
    create: Ptr<RawCreate>,
    sink: RawSink,
    out: *mut RawHandler,
) -> i32 {
    // SAFETY: the caller passes one count of the host with the call, and a struct and texts that live for it.
    let host = Host { raw: host };
    // SAFETY: as above.
    let Some(raw) = (unsafe { create.read() }) else {
        put(sink, TOO_SMALL);
        return status::FAILED;
    };
    // SAFETY: as above.
    let (handler, instance, config) = unsafe {
        let (handler, instance) = (raw.handler.text(), raw.instance.text());
        (handler, instance, raw.config.text())
    };
    let create = Create {
        handler: &handler,
        instance: &instance,
        config: &config,
        worker: raw.worker,
        generation: raw.generation,
    };
    let given = host.clone();
    let running = Running::instance(&host);
    let created = guard::guarded(|| P::create(given, &create));
    drop(running);
    let (code, text) = match created {
        Ok(Ok(instance)) => {
            current::built(&host);
            let cell = Box::new(Cell {
                instance,
                host,
                poisoned: false,
            });
            let raw = RawHandler {
                context: Box::into_raw(cell).cast(),
                functions: HandlerFunctions_Ref(HANDLER.static_as_prefix()),
            };
            // SAFETY: the caller passes a place for the instance.
            unsafe { out.write(raw) };
            return status::OK;
        }
        Ok(Err(Refusal::Config(text))) => (status::CONFIG, text),
        Ok(Err(Refusal::Unknown)) => (status::UNKNOWN, String::new()),
        Ok(Err(Refusal::Failed(text))) => (status::FAILED, text),
        Err(panic) => (status::FAILED, format!("it panicked: {panic}")),
    };
    put(sink, &text);
    code
}

unsafe extern "C" fn shutdown<P: Plugin>(deadline_ms: u64) -> i32 {
    match guard::guarded(|| P::shutdown(Duration::from_millis(deadline_ms))) {
        Ok(()) => status::OK,
        Err(_) => status::FAILED,
    }
}

unsafe extern "C" fn extension<P: Plugin>(name: RawBytes, version: u32) -> *const () {
    // SAFETY: the text lives for the call.
    let name = unsafe { name.text() };
    guard::guarded(|| P::extension(&name, version)).unwrap_or(std::ptr::null())
}

/// # Safety
/// `context` comes from [`create`], is not destroyed, and no other call is running on it.
unsafe fn cell<'a>(context: *mut ()) -> &'a mut Cell {
    // SAFETY: guaranteed by the caller.
    unsafe { &mut *context.cast::<Cell>() }
}

unsafe extern "C" fn handle(context: *mut (), call: Ptr<RawCall>) -> i32 {
    // SAFETY: the service calls an instance from one thread, between create and destroy.
    let cell = unsafe { cell(context) };
    if cell.poisoned {
        return status::POISONED;
    }
    // SAFETY: the call and what it points to live until this function returns.
    let Some(raw) = (unsafe { call.read() }) else {
        cell.host.log(0, TOO_SMALL);
        return status::POISONED;
    };
    let call = Call {
        raw: &raw,
        host: &cell.host,
        thread_bound: PhantomData,
    };
    let instance = &mut cell.instance;
    let running = Running::call(&call);
    let end = guard::guarded(|| instance.handle(&call));
    drop(running);
    match end {
        Ok(CallEnd::Usable) => status::OK,
        Ok(CallEnd::Poisoned) => {
            cell.poisoned = true;
            status::POISONED
        }
        Ok(CallEnd::Unavailable) => {
            cell.poisoned = true;
            status::UNAVAILABLE
        }
        Err(panic) => {
            cell.poisoned = true;
            cell.host
                .log(0, &format!("handler panicked outside its records: {panic}"));
            status::POISONED
        }
    }
}

unsafe extern "C" fn health(context: *mut (), sink: RawSink) -> i32 {
    // SAFETY: as in `handle`.
    let checked = unsafe { cell(context) }.run(sink, |instance| instance.health());
    match checked {
        status::FAILED => status::UNHEALTHY,
        other => other,
    }
}

unsafe extern "C" fn partition(
    context: *mut (),
    event: Ptr<RawPartitionEvent>,
    sink: RawSink,
) -> i32 {
    // SAFETY: as in `handle`; the event and its text live for the call.
    let (cell, raw) = unsafe { (cell(context), event.read()) };
    let Some(raw) = raw else {
        put(sink, TOO_SMALL);
        return status::FAILED;
    };
    let change = match raw.kind {
        partition_event::ASSIGNED => PartitionChange::Assigned,
        partition_event::REVOKED => PartitionChange::Revoked,
        partition_event::LOST => PartitionChange::Lost,
        // Of a later minor.
        _ => return status::OK,
    };
    // SAFETY: as above.
    let topic = unsafe { raw.topic.text() };
    let event = PartitionEvent {
        change,
        topic: &topic,
        partition: raw.partition,
        epoch: raw.epoch,
        start_offset: (raw.start_offset >= 0).then_some(raw.start_offset),
        deadline: (raw.deadline_ms != 0).then(|| Duration::from_millis(raw.deadline_ms)),
    };
    cell.run(sink, |instance| instance.partition(&event))
}

unsafe extern "C" fn drain(context: *mut (), deadline_ms: u64, sink: RawSink) -> i32 {
    // SAFETY: as in `handle`.
    unsafe { cell(context) }.run(sink, |instance| {
        instance.drain(Duration::from_millis(deadline_ms))
    })
}

unsafe extern "C" fn reconfigure(context: *mut (), config: RawBytes, sink: RawSink) -> i32 {
    // SAFETY: as in `handle`; the text lives for the call.
    let (cell, config) = unsafe { (cell(context), config.text()) };
    let mut refusal = status::OK;
    let ran = cell.run(sink, |instance| {
        let refused = instance.reconfigure(&config);
        refused.map_err(|refused| match refused {
            Refusal::Config(text) => {
                refusal = status::CONFIG;
                text
            }
            Refusal::Unknown => "it cannot be reconfigured".to_owned(),
            Refusal::Failed(text) => text,
        })
    });
    if ran == status::FAILED && refusal != status::OK {
        return refusal;
    }
    ran
}

unsafe extern "C" fn destroy(context: *mut (), sink: RawSink) -> i32 {
    // SAFETY: created by `create` with `Box::into_raw`, and destroyed once.
    let cell = unsafe { Box::from_raw(context.cast::<Cell>()) };
    let Cell {
        instance,
        host,
        poisoned: _,
    } = *cell;
    let running = Running::instance(&host);
    let end = guard::guarded(|| drop(instance));
    drop(running);
    current::destroyed(&host);
    drop(host);
    match end {
        Ok(()) => status::OK,
        Err(panic) => {
            put(sink, &panic);
            status::POISONED
        }
    }
}
