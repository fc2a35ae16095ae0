//! Which instance's code runs on this thread: what a logging library, which knows nothing of calls, attributes its lines to.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Call, Host};

thread_local! {
    /// The call that runs on this thread.
    static CALL: Cell<*const Call<'static>> = const { Cell::new(std::ptr::null()) };
    /// The host of the instance that runs on this thread.
    static HOST: Cell<*const Host> = const { Cell::new(std::ptr::null()) };
    /// The host that a thread of the plugin's own works for.
    static OWN: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// The hosts of the living instances, for threads of the plugin's own.
static LIVING: Mutex<Vec<Host>> = Mutex::new(Vec::new());

/// Marks the instance that runs on this thread until it is dropped.
pub(super) struct Running<'a> {
    call: *const Call<'static>,
    host: *const Host,
    lives: PhantomData<&'a ()>,
}

impl<'a> Running<'a> {
    /// Runs code of an instance, outside of a call.
    pub(super) fn instance(host: &'a Host) -> Self {
        Self::enter(std::ptr::null(), host)
    }

    /// Runs a call.
    pub(super) fn call(call: &'a Call<'a>) -> Self {
        Self::enter(std::ptr::from_ref(call).cast(), call.host)
    }

    fn enter(call: *const Call<'static>, host: &'a Host) -> Self {
        Self {
            call: CALL.replace(call),
            host: HOST.replace(host),
            lives: PhantomData,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        CALL.set(self.call);
        HOST.set(self.host);
    }
}

/// An instance was built.
pub(super) fn built(host: &Host) {
    living().push(host.clone());
}

/// An instance is destroyed.
pub(super) fn destroyed(host: &Host) {
    let mut living = living();
    if let Some(at) = living.iter().position(|one| one.is_same(host)) {
        // Dropped after the lock: it calls the service.
        let host = living.swap_remove(at);
        drop(living);
        drop(host);
    }
}

fn living() -> MutexGuard<'static, Vec<Host>> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says for which host this thread, one of the plugin's own, works as long as it lives.
pub fn adopt(host: &Host) {
    // The thread may be ending.
    let _ending = OWN.try_with(|own| own.replace(Some(host.clone())));
}

/// Calls `work` with the service and the call that run on this thread: on a thread of the plugin's own, with the service as one of its
/// instances sees it, if there is one.
pub fn with(work: impl FnOnce(&Host, Option<&Call<'_>>)) {
    // SAFETY: both are set for as long as what they point to is borrowed by a `Running` on this thread, which resets them.
    let (call, host) = unsafe { (CALL.get().as_ref(), HOST.get().as_ref()) };
    match host {
        Some(host) => work(host, call),
        None => {
            // A copy, so that `work` may come here again.
            let own = OWN.try_with(|own| own.borrow().clone()).ok().flatten();
            if let Some(host) = own.or_else(|| living().last().cloned()) {
                work(&host, None);
            }
        }
    }
}
