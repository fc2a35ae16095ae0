//! Catches panics of an author's code and records their message and location.
//!
//! A plugin library has its own copy of the standard library, so the hook set here receives only that plugin's panics.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// While it exists, panics of this thread are recorded instead of printed.
///
/// It covers a whole call, so that [`catch`] has no per-record cost.
#[derive(Debug)]
pub struct Scope(());

impl Scope {
    /// Starts recording panics of this thread.
    #[must_use]
    pub fn enter() -> Self {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                    before(info);
                } else {
                    record(info);
                }
            }));
        });
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

fn record(info: &PanicHookInfo<'_>) {
    let place = info
        .location()
        .map_or_else(|| "unknown place".to_string(), ToString::to_string);
    let said = said(info.payload());
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Some(format!("{said} ({place})"));
        }
    });
}

fn said(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without text")
}

/// Runs `work` and converts a panic into its message and location. Must be called within a [`Scope`].
///
/// # Errors
/// The panic's text, as `message (file:line:column)`. A text, since that is what crosses the ABI.
#[inline]
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(caught)
}

/// The text of a caught panic. Consumes the payload, whose drop may panic too.
#[cold]
#[must_use]
pub fn caught(payload: Box<dyn Any + Send>) -> String {
    let noted = LAST
        .try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take()))
        .ok()
        .flatten();
    let text = noted.unwrap_or_else(|| said(payload.as_ref()).to_string());
    // A payload's drop can panic too; that panic's payload is leaked, because dropping it could panic again.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
        let _ = LAST.try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take()));
    }
    text
}

/// [`catch`] within its own [`Scope`].
///
/// # Errors
/// As [`catch`].
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let _scope = Scope::enter();
    catch(work)
}
