//! Bounds on waits that a plugin has a say in.
//!
//! Calls that return without having run any of their records: the handler rests before the next one, longer each time, so
//! that a plugin that never runs what it is given does not keep the pump and its workers busy.

use super::Flow;
use crate::dispatch::HandlerIx;

/// The longest wait that a handler can wish for before the next attempt: the record holds its partition's frontier for it.
pub(super) const LONGEST_WISH_MS: u64 = 60 * 60 * 1_000;

/// Rest after the first such call; doubled with each further one.
const FIRST_REST_MS: u64 = 10;
/// The longest rest.
const LONGEST_REST_MS: u64 = 1_000;
/// Such calls in a row after which it is logged, once.
const LOGGED_AFTER: u32 = 5;

impl Flow {
    /// A batch has come back in which `run` records were run; `elapsed_us` is 0 for one that was given back without a call.
    pub(super) fn rest_after(&mut self, ix: HandlerIx, run: usize, elapsed_us: u64) {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        if run > 0 {
            handler.fruitless_calls = 0;
            return;
        }
        if elapsed_us == 0 {
            return;
        }
        let doublings = handler.fruitless_calls.min(16);
        let rest_ms = (FIRST_REST_MS << doublings).min(LONGEST_REST_MS);
        handler.fruitless_calls = handler.fruitless_calls.saturating_add(1);
        if handler.fruitless_calls == LOGGED_AFTER {
            tracing::warn!(
                handler = &*handler.settings.name,
                calls = LOGGED_AFTER,
                "calls return without having run any of their records; the handler rests between them, up to {LONGEST_REST_MS} ms"
            );
            handler.last_error = Some("its calls return without having run any record".into());
        }
        let until_ms = self.now_ms.saturating_add(rest_ms);
        handler.rests_until_ms = Some(until_ms);
        self.resting.insert((until_ms, ix));
    }

    /// Lets the handlers go on whose rest is over.
    pub(super) fn end_rests(&mut self) {
        while let Some(&(until_ms, ix)) = self.resting.first()
            && until_ms <= self.now_ms
        {
            self.resting.pop_first();
            if let Some(handler) = self.handlers[ix.0 as usize].as_mut()
                && handler.rests_until_ms == Some(until_ms)
            {
                handler.rests_until_ms = None;
                self.list(ix);
            }
        }
    }
}
