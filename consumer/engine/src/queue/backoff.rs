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

use super::HandlerQueue;
use super::context::Context;
use crate::record::Record;

/// Maximum retry delay that a handler can request: the record holds its partition's frontier for that time.
pub(super) const MAX_REQUESTED_DELAY_MS: u64 = 60 * 60 * 1_000;

/// Backoff after the first such call; doubled with each further one.
const INITIAL_BACKOFF_MS: u64 = 10;
/// Maximum backoff.
const MAX_BACKOFF_MS: u64 = 1_000;
/// Consecutive calls of this kind before a warning is logged, once.
const LOGGED_AFTER: u32 = 5;

impl HandlerQueue {
    /// Called for a returned batch of which `run` records were run; `elapsed_us` is 0 if it was returned without a
    /// call.
    pub(super) fn back_off_after<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        run: usize,
        elapsed_us: u64,
    ) {
        if run > 0 {
            self.fruitless_calls = 0;
            return;
        }
        if elapsed_us == 0 {
            return;
        }
        // Together they may emit more than a call may, before one of them ends: until a call runs something, each is alone.
        self.batch_limit = 1;
        let doublings = self.fruitless_calls.min(16);
        let backoff_ms = (INITIAL_BACKOFF_MS << doublings).min(MAX_BACKOFF_MS);
        self.fruitless_calls = self.fruitless_calls.saturating_add(1);
        if self.fruitless_calls == LOGGED_AFTER {
            tracing::warn!(
                handler = &*self.settings.name,
                calls = LOGGED_AFTER,
                "calls return without running any of their records; backing off between calls, up to {MAX_BACKOFF_MS} ms"
            );
            let reason = "calls return without running any record".into();
            self.errors.record(reason, ctx.now_ms);
        }
        let until_ms = ctx.now_ms.saturating_add(backoff_ms);
        self.backoff_until_ms = Some(until_ms);
        ctx.agenda.back_off(self.ix, until_ms);
    }

    /// A backoff has ended; the handler resumes if it has not begun another one.
    pub(crate) fn end_backoff<R: Record>(&mut self, ctx: &mut Context<R>, until_ms: u64) {
        if self.backoff_until_ms == Some(until_ms) {
            self.backoff_until_ms = None;
            self.mark_dirty(ctx);
        }
    }
}
