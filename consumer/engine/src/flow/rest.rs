//! Bounds on delays that a plugin influences.
//!
//! A handler whose calls return without running any of their records backs off before the next call, longer each time
//! (10 ms to 1 s). Its records go back to their lanes, and without a delay the next dispatch would submit them again at
//! once: pump and worker would pass the same batch to and fro at full speed, and neither an attempt nor a timeout would
//! end it. Batches that were returned without a call, recalled or stopped do not count, because the plugin had no part
//! in it.
//!
//! The delay that a handler requests for a retry is bounded for another reason: a parked record holds its partition's
//! frontier, and with it the commits of every other handler of the topic (G8).

use super::Flow;
use crate::dispatch::HandlerIx;
use crate::record::Record;

/// Maximum retry delay that a handler can request: the record holds its partition's frontier for that time.
pub(super) const MAX_REQUESTED_DELAY_MS: u64 = 60 * 60 * 1_000;

/// Backoff after the first such call; doubled with each further one.
const INITIAL_BACKOFF_MS: u64 = 10;
/// Maximum backoff.
const MAX_BACKOFF_MS: u64 = 1_000;
/// Consecutive calls of this kind before a warning is logged, once.
const LOGGED_AFTER: u32 = 5;

impl<R: Record> Flow<R> {
    /// Called for a returned batch of which `run` records were run; `elapsed_us` is 0 if it was returned without a
    /// call.
    pub(super) fn back_off_after(&mut self, ix: HandlerIx, run: usize, elapsed_us: u64) {
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
        let backoff_ms = (INITIAL_BACKOFF_MS << doublings).min(MAX_BACKOFF_MS);
        handler.fruitless_calls = handler.fruitless_calls.saturating_add(1);
        if handler.fruitless_calls == LOGGED_AFTER {
            tracing::warn!(
                handler = &*handler.settings.name,
                calls = LOGGED_AFTER,
                "calls return without running any of their records; backing off between calls, up to {MAX_BACKOFF_MS} ms"
            );
            handler.last_error = Some("calls return without running any record".into());
        }
        let until_ms = self.now_ms.saturating_add(backoff_ms);
        handler.backoff_until_ms = Some(until_ms);
        self.backing_off.insert((until_ms, ix));
    }

    /// Resumes the handlers whose backoff has ended.
    pub(super) fn end_backoffs(&mut self) {
        while let Some(&(until_ms, ix)) = self.backing_off.first()
            && until_ms <= self.now_ms
        {
            self.backing_off.pop_first();
            if let Some(handler) = self.handlers[ix.0 as usize].as_mut()
                && handler.backoff_until_ms == Some(until_ms)
            {
                handler.backoff_until_ms = None;
                self.mark_dirty(ix);
            }
        }
    }
}
