//! Which handlers are switched off or removed and still have records; what happens to these is their queues' decision
//! (`queue::closing`).

use super::Flow;
use crate::dispatch::HandlerIx;
use crate::record::Record;

/// Time between two checks of closing handlers.
const CHECK_INTERVAL_MS: u64 = 50;

impl<R: Record> Flow<R> {
    /// Called for a new plan: finds the handlers that are switched off or removed, and skips at once the records that
    /// no handler will run.
    pub(super) fn record_closed(&mut self) {
        self.closing.clear();
        for (place, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && queue.closes(self.ctx.now_ms)
            {
                self.closing.push(HandlerIx(place as u32));
            }
        }
        self.check_closing();
    }

    /// Checks closing handlers, once per `CHECK_INTERVAL_MS`.
    pub(super) fn run_closing(&mut self) {
        if !self.closing.is_empty() && self.ctx.now_ms >= self.closing_due_ms {
            self.check_closing();
            self.drop_retired();
        }
    }

    fn check_closing(&mut self) {
        self.closing_due_ms = self.ctx.now_ms + CHECK_INTERVAL_MS;
        let mut closing = std::mem::take(&mut self.closing);
        let drain_timeout_ms = self.settings.drain_timeout_ms;
        let mut stopped_call_ended = false;
        closing.retain(|&ix| {
            let Some(queue) = self.queues[ix.0 as usize].as_mut() else {
                return false;
            };
            let check = queue.check_closing(&mut self.ctx, drain_timeout_ms);
            stopped_call_ended |= check.stopped_call_ended;
            check.has_records
        });
        self.closing = closing;
        self.call_ended(stopped_call_ended);
    }
}
