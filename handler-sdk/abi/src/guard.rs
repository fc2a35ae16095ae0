//! Catches panics of an author's code and remembers what they said and where.
//!
//! A plugin library has its own copy of the standard library, so the hook set here sees only that plugin's panics.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// While it lives, panics of this thread are noted instead of printed.
///
/// It is held around a whole call, so that [`catch`] costs nothing per record.
#[derive(Debug)]
pub struct Scope(());

impl Scope {
    /// Starts noting panics of this thread.
    #[must_use]
    pub fn enter() -> Self {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                    before(info);
                } else {
                    note(info);
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

fn note(info: &PanicHookInfo<'_>) {
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

/// Runs `work`; a panic becomes its message and place. Call it inside a [`Scope`].
///
/// # Errors
/// The panic's text, as `message (file:line:column)`.
#[inline]
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(caught)
}

/// The text of a caught panic; takes the payload, whose drop may panic as well.
#[cold]
#[must_use]
pub fn caught(payload: Box<dyn Any + Send>) -> String {
    let noted = LAST
        .try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take()))
        .ok()
        .flatten();
    let text = noted.unwrap_or_else(|| said(payload.as_ref()).to_string());
    // A payload's own drop can panic too; what that one carries is leaked, or there would be no end.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
        let _ = LAST.try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take()));
    }
    text
}

/// [`catch`] within a [`Scope`] of its own.
///
/// # Errors
/// As [`catch`].
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let _scope = Scope::enter();
    catch(work)
}
