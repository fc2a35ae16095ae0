//! Functions and data of the ABI, whose layout `abi_stable` checks when a plugin is loaded.
//!
//! Function tables are prefix types: a later minor appends functions that an older side ignores. The plain structs are
//! frozen within a major; their `reserved` fields are zero.

use std::sync::atomic::AtomicU32;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;

use crate::board::OutcomeSlot;
use crate::record::RawRecord;

/// Return codes of the ABI functions.
pub mod status {
    /// Done; after a call the instance is ready for the next.
    pub const OK: i32 = 0;
    /// The instance panicked and must not be called again.
    pub const SPENT: i32 = 1;
    /// The handler refuses its config; the reason is in the sink.
    pub const CONFIG: i32 = 2;
    /// The plugin has no handler of that name.
    pub const UNKNOWN: i32 = 3;
    /// Another failure; the reason is in the sink, if there is one.
    pub const FAILED: i32 = -1;
}

/// Borrowed bytes; texts are UTF-8. The pointer is unspecified when `len` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct RawBytes {
    /// First byte.
    pub ptr: *const u8,
    /// Number of bytes.
    pub len: usize,
}

/// Output for a text; the receiver owns the memory.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RawSink {
    /// Passed to `put`.
    pub context: *mut (),
    /// Appends bytes.
    pub put: unsafe extern "C" fn(*mut (), RawBytes),
}

/// A record emitted by a handler; borrowed for the call of `HostFunctions::emit`.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RawEmit {
    /// Index in the call of the record that it is emitted for.
    pub record: u32,
    /// Bits of [`emit_flag`].
    pub flags: u32,
    /// Target partition; -1 lets the producer choose.
    pub partition: i32,
    /// Zero.
    pub reserved: u32,
    /// Timestamp in milliseconds; valid with [`emit_flag::TIMESTAMP`].
    pub timestamp_ms: i64,
    /// Target topic.
    pub topic: RawBytes,
    /// Key.
    pub key: RawBytes,
    /// Value.
    pub value: RawBytes,
    /// Header block; empty is none.
    pub headers: RawBytes,
}

/// Bits of [`RawEmit::flags`].
pub mod emit_flag {
    /// The key is null.
    pub const KEY_NULL: u32 = 1;
    /// The value is null.
    pub const VALUE_NULL: u32 = 2;
    /// The timestamp is set.
    pub const TIMESTAMP: u32 = 4;
}

/// One call: its records, the memory for outcomes, and the call's progress for the caller.
///
/// All pointers are valid until the call returns; `outcomes` has `count` slots.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RawCall {
    /// The records.
    pub records: *const RawRecord,
    /// A slot for each record, cleared.
    pub outcomes: *const OutcomeSlot,
    /// Index of the record being handled.
    pub progress: *const AtomicU32,
    /// Non-zero: no further record may start. Odd: the result is not needed either.
    pub cancelled: *const AtomicU32,
    /// Passed to `HostFunctions::{emit, detail}`.
    pub output: *mut (),
    /// Counts the calls of the instance, from 1.
    pub serial: u64,
    /// Timeout of the whole call in milliseconds; 0 means no limit.
    pub timeout_ms: u64,
    /// How many records.
    pub count: u32,
    /// Zero.
    pub reserved_small: u32,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Host functions for a plugin. They neither unwind nor retain their arguments.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostFunctions_Ref, prefix_fields = HostFunctions_Prefix)))]
#[sabi(missing_field(option))]
pub struct HostFunctions {
    /// Increments the reference count of the host context.
    pub retain: unsafe extern "C" fn(*const ()),
    /// Decrements the reference count of the host context.
    pub release: unsafe extern "C" fn(*const ()),
    /// Host context, level (0 error .. 4 trace), message. From any thread.
    pub log: unsafe extern "C" fn(*const (), u32, RawBytes),
    /// Host context, kind (0 counter, 1 gauge, 2 histogram), name, value. From any thread.
    pub metric: unsafe extern "C" fn(*const (), u32, RawBytes, f64),
    /// Call output, emitted record. On the call's thread.
    pub emit: unsafe extern "C" fn(*mut (), *const RawEmit) -> i32,
    /// Call output, text; returns its index + 1. On the call's thread.
    #[sabi(last_prefix_field)]
    pub detail: unsafe extern "C" fn(*mut (), RawBytes) -> u32,
}

/// The service as a plugin sees it.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RawHost {
    /// Passed to the functions.
    pub context: *const (),
    /// The functions.
    pub functions: HostFunctions_Ref,
}

/// Functions of an instance, always called on the thread that created it.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HandlerFunctions_Ref, prefix_fields = HandlerFunctions_Prefix)))]
#[sabi(missing_field(option))]
pub struct HandlerFunctions {
    /// Handles the records of a call; `status::{OK, SPENT}`.
    pub handle: unsafe extern "C" fn(*mut (), *const RawCall) -> i32,
    /// `OK`, or an error and a text.
    pub health: unsafe extern "C" fn(*mut (), RawSink) -> i32,
    /// Topic, partition, epoch; then `OK`, or an error and a text.
    pub assigned: unsafe extern "C" fn(*mut (), RawBytes, i32, u32, RawSink) -> i32,
    /// Topic, partition, epoch; then `OK`, or an error and a text.
    pub revoked: unsafe extern "C" fn(*mut (), RawBytes, i32, u32, RawSink) -> i32,
    /// Deadline in milliseconds; then `OK`, or an error and a text.
    pub drain: unsafe extern "C" fn(*mut (), u64, RawSink) -> i32,
    /// Destroys the instance; `OK`, or an error and a text if its `Drop` panicked.
    #[sabi(last_prefix_field)]
    pub destroy: unsafe extern "C" fn(*mut (), RawSink) -> i32,
}

/// Takes an instance's context and its new config (JSON). Returns `OK`; `CONFIG` or `FAILED` and a text, keeping the old
/// config; or `SPENT` and a text. On the instance's thread; called only if the handler's description declares
/// `takes_config`.
pub type Reconfigure = unsafe extern "C" fn(*mut (), RawBytes, RawSink) -> i32;

/// An instance as the service sees it.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct RawHandler {
    /// Passed to the functions.
    pub context: *mut (),
    /// The functions.
    pub functions: HandlerFunctions_Ref,
}

/// The root of a plugin library.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModule_Ref, prefix_fields = PluginModule_Prefix)))]
#[sabi(missing_field(option))]
pub struct PluginModule {
    /// Writes a JSON document that lists the handlers; `OK` or an error.
    pub describe: unsafe extern "C" fn(RawSink) -> i32,
    /// Host, handler, instance name, config (JSON), sink for an error text, destination of the instance.
    pub create: unsafe extern "C" fn(
        RawHost,
        RawBytes,
        RawBytes,
        RawBytes,
        RawSink,
        *mut RawHandler,
    ) -> i32,
    /// Stops the plugin's background work, within this many milliseconds. All instances have been destroyed before.
    #[sabi(last_prefix_field)]
    pub shutdown: unsafe extern "C" fn(u64) -> i32,
}

impl RootModule for PluginModule_Ref {
    abi_stable::declare_root_module_statics! {PluginModule_Ref}
    const BASE_NAME: &'static str = "sluicegate_plugin";
    const NAME: &'static str = "sluicegate_plugin";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

impl RawBytes {
    /// Borrows `bytes`.
    #[must_use]
    pub const fn of(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }

    /// The bytes.
    ///
    /// # Safety
    /// The memory is readable and unchanged for `'a`.
    #[must_use]
    pub unsafe fn get<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller guarantees readable, unchanged memory.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The text, with invalid UTF-8 replaced.
    ///
    /// # Safety
    /// As for [`RawBytes::get`].
    #[must_use]
    pub unsafe fn text<'a>(self) -> std::borrow::Cow<'a, str> {
        // SAFETY: as above.
        String::from_utf8_lossy(unsafe { self.get() })
    }
}
