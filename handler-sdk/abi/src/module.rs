//! Functions and data of the ABI.
//!
//! `abi_stable` checks the function tables when a plugin is loaded. They are prefix types: what stands behind the last prefix field may
//! be missing on the other side, and later minors append to it. Structs that are passed by a [`Ptr`] begin with their size and grow at their end only: a field of a later
//! minor is read only if the size includes it. `docs/reference/abi.md` is the contract.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU32;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::marker_type::UnsafeIgnoredType;
use abi_stable::sabi_types::VersionStrings;

use crate::progress::OutcomeSlot;
use crate::record::RawRecord;

/// Return codes of the ABI functions.
pub mod status {
    /// Done; after a call the instance is ready for the next.
    pub const OK: i32 = 0;
    /// The instance panicked and must not be called again.
    pub const POISONED: i32 = 1;
    /// The handler refuses its config; the reason is in the sink.
    pub const CONFIG: i32 = 2;
    /// The plugin has no handler of that name.
    pub const UNKNOWN: i32 = 3;
    /// The instance is not healthy; the reason is in the sink.
    pub const UNHEALTHY: i32 = 4;
    /// After a call: what the instance needs is away, and it must not be called again. Records without an outcome were not run;
    /// the detail of one of them is the reason.
    pub const UNAVAILABLE: i32 = 5;
    /// Another failure; the reason is in the sink, if there is one.
    pub const FAILED: i32 = -1;
}

/// Return codes of [`HostFunctions::emit`]. A later minor may add some: an unknown one is a refusal.
pub mod emit_status {
    /// The record was taken.
    pub const OK: i32 = 0;
    /// The call has emitted as much as it may.
    pub const FULL: i32 = 1;
    /// The record cannot be produced: it has no topic, or a part of it is too large.
    pub const DENIED: i32 = 2;
    /// The call is cancelled: what it emits does not count.
    pub const CANCELLED: i32 = 3;
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

/// A struct that begins with its size in bytes, and grows at its end.
///
/// # Safety
/// It is `#[repr(C)]`, its first field is a `u32`, and all fields may be zero: a field that the sender does not know is.
pub unsafe trait SizedStruct: Copy {
    /// Its size in ABI 1.0.
    const FIRST_SIZE: usize;
}

/// A pointer to a struct that begins with its size, borrowed for the function that it is passed to. `abi_stable` does not
/// check what is behind it, so that the struct can grow.
#[repr(transparent)]
#[derive(StableAbi)]
#[sabi(unsafe_unconstrained(T))]
pub struct Ptr<T> {
    to: *const (),
    of: UnsafeIgnoredType<T>,
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ptr<T> {}

impl<T: SizedStruct> Ptr<T> {
    /// Passes a struct.
    #[inline]
    #[must_use]
    pub fn of(value: &T) -> Self {
        Self {
            to: std::ptr::from_ref(value).cast(),
            of: UnsafeIgnoredType::NEW,
        }
    }

    /// Copies the struct that was passed. Fields of a later minor that the sender does not know are zero. `None` if it is smaller
    /// than in ABI 1.0, which no sender of this major passes.
    ///
    /// # Safety
    /// It was passed by the other side of this ABI, which has not returned since or waits for this call.
    #[inline]
    #[must_use]
    pub unsafe fn read(self) -> Option<T> {
        // SAFETY: the caller guarantees that a struct is there, which begins with its size.
        let size = unsafe { self.to.cast::<u32>().read() } as usize;
        if size < T::FIRST_SIZE {
            return None;
        }
        let mut copy = MaybeUninit::<T>::zeroed();
        // SAFETY: as many bytes are there and have room; fields that are not copied are zero, which is valid.
        unsafe {
            let bytes = copy.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(self.to.cast(), bytes, size.min(size_of::<T>()));
            Some(copy.assume_init())
        }
    }
}

macro_rules! sized {
    ($($name:ident = $first_size:literal),+) => {
        $(
            // SAFETY: `repr(C)`, with `size: u32` as the first field, of integers, raw pointers and `RawBytes`.
            unsafe impl SizedStruct for $name {
                const FIRST_SIZE: usize = $first_size;
            }

            impl $name {
                /// What its `size` is in this minor.
                pub const SIZE: u32 = size_of::<Self>() as u32;
            }
        )+
    };
}

sized!(
    RawEmit = 88,
    RawCall = 80,
    RawCreate = 64,
    RawPartitionEvent = 56,
    RawLog = 56,
    RawMetric = 32
);

/// A record emitted by a handler.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawEmit {
    /// Of this struct, in bytes.
    pub size: u32,
    /// Index in the call of the record that it is emitted for.
    pub record: u32,
    /// Bits of [`emit_flag`].
    pub flags: u32,
    /// Target partition; -1 lets the producer choose.
    pub partition: i32,
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
#[derive(Clone, Copy)]
pub struct RawCall {
    /// Of this struct, in bytes.
    pub size: u32,
    /// How many records.
    pub count: u32,
    /// Distance in bytes from one record to the next: a record of a later minor is larger.
    pub record_stride: u32,
    /// Zero.
    pub reserved: u32,
    /// The records.
    pub records: *const RawRecord,
    /// A slot for each record, cleared.
    pub outcomes: *const OutcomeSlot,
    /// Index of the record that is to blame if the call hangs or panics.
    pub progress: *const AtomicU32,
    /// Non-zero: no further record may start. Odd: the result is not needed either.
    pub cancelled: *const AtomicU32,
    /// Passed to `HostFunctions::{emit, detail}`.
    pub output: *mut (),
    /// Counts the calls of the instance, from 1.
    pub serial: u64,
    /// Timeout of the whole call in milliseconds; 0 means no limit.
    pub timeout_ms: u64,
    /// Timeout of each record in milliseconds, from when it starts; 0 means no limit of its own.
    pub record_timeout_ms: u64,
}

/// An instance to be created.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawCreate {
    /// Of this struct, in bytes.
    pub size: u32,
    /// Number of the worker that will call it, from 0.
    pub worker: u32,
    /// Number of the generation that it belongs to.
    pub generation: u64,
    /// Name of the handler in the plugin.
    pub handler: RawBytes,
    /// Name of the handler in the service.
    pub instance: RawBytes,
    /// Its config, JSON.
    pub config: RawBytes,
}

/// Values of [`RawPartitionEvent::kind`]. A later minor may add some, which an instance ignores.
pub mod partition_event {
    /// The partition was assigned: its records may follow.
    pub const ASSIGNED: u32 = 0;
    /// It was revoked: no more records of this epoch follow.
    pub const REVOKED: u32 = 1;
    /// It was lost: as revoked, and another member may have it already.
    pub const LOST: u32 = 2;
}

/// Something happens to a partition.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawPartitionEvent {
    /// Of this struct, in bytes.
    pub size: u32,
    /// One of [`partition_event`].
    pub kind: u32,
    /// The partition.
    pub partition: i32,
    /// Zero.
    pub reserved: u32,
    /// The assignment's fencing number.
    pub epoch: u64,
    /// Offset of the first record that can follow; -1 if it is not known, or none follows.
    pub start_offset: i64,
    /// Time for it in milliseconds; 0 means no limit.
    pub deadline_ms: u64,
    /// Topic.
    pub topic: RawBytes,
}

/// A log line.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawLog {
    /// Of this struct, in bytes.
    pub size: u32,
    /// 0 error, 1 warn, 2 info, 3 debug, 4 trace. Others count as trace.
    pub level: u32,
    /// What wrote it, such as a module path; may be empty.
    pub target: RawBytes,
    /// The message.
    pub message: RawBytes,
    /// Fields, as a JSON object; may be empty.
    pub fields: RawBytes,
}

/// A change of a metric.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawMetric {
    /// Of this struct, in bytes.
    pub size: u32,
    /// 0 adds to a counter, 1 sets a gauge, 2 records an observation of a histogram. Others are ignored.
    pub kind: u32,
    /// Its name.
    pub name: RawBytes,
    /// What is added, set or observed.
    pub value: f64,
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
    /// Host context, line. From any thread.
    pub log: unsafe extern "C" fn(*const (), Ptr<RawLog>),
    /// Host context, change. From any thread.
    pub metric: unsafe extern "C" fn(*const (), Ptr<RawMetric>),
    /// Call output, emitted record; one of [`emit_status`]. On the call's thread.
    pub emit: unsafe extern "C" fn(*mut (), Ptr<RawEmit>) -> i32,
    /// Call output, text; returns its index + 1, or 0 if it has no room. On the call's thread.
    #[sabi(last_prefix_field)]
    pub detail: unsafe extern "C" fn(*mut (), RawBytes) -> u32,
    /// Host context, name and version of a table of further functions, which lives as long as the process; null if this service
    /// has none of that name and version. From any thread.
    pub extension: unsafe extern "C" fn(*const (), RawBytes, u32) -> *const (),
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

/// Functions of an instance, always called on the thread that created it. A text in the sink explains any result but `OK`.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HandlerFunctions_Ref, prefix_fields = HandlerFunctions_Prefix)))]
#[sabi(missing_field(option))]
pub struct HandlerFunctions {
    /// Handles the records of a call; `status::{OK, POISONED, UNAVAILABLE}`.
    pub handle: unsafe extern "C" fn(*mut (), Ptr<RawCall>) -> i32,
    /// `status::{OK, UNHEALTHY, POISONED}`.
    pub health: unsafe extern "C" fn(*mut (), RawSink) -> i32,
    /// `status::{OK, FAILED, POISONED}`.
    pub partition: unsafe extern "C" fn(*mut (), Ptr<RawPartitionEvent>, RawSink) -> i32,
    /// Deadline in milliseconds; then `status::{OK, FAILED, POISONED}`.
    pub drain: unsafe extern "C" fn(*mut (), u64, RawSink) -> i32,
    /// Takes a new config (JSON); `OK`; `CONFIG` or `FAILED`, keeping the old config; or `POISONED`. Called only if the
    /// handler's description declares `takes_config`.
    pub reconfigure: unsafe extern "C" fn(*mut (), RawBytes, RawSink) -> i32,
    /// Destroys the instance; `OK`, or an error if its `Drop` panicked.
    #[sabi(last_prefix_field)]
    pub destroy: unsafe extern "C" fn(*mut (), RawSink) -> i32,
}

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
    /// Host (the instance owns this count of it), what to create, sink for an error text, destination of the instance.
    pub create: unsafe extern "C" fn(RawHost, Ptr<RawCreate>, RawSink, *mut RawHandler) -> i32,
    /// Stops the plugin's background work, within this many milliseconds. All instances have been destroyed before.
    #[sabi(last_prefix_field)]
    pub shutdown: unsafe extern "C" fn(u64) -> i32,
    /// Name and version of a table of further functions, which lives as long as the library; null if there is none.
    pub extension: unsafe extern "C" fn(RawBytes, u32) -> *const (),
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
