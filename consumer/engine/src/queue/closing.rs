//! Handlers that are switched off or removed. They finish their in-flight records, so that closing a gate costs no
//! record; but a failed or hung handler finishes nothing, and must not hold its partitions because of that (ADR 0019).
//!
//! ```text
//!  gate closed, or removed ─► healthy: finishes its records
//!                          ├► failed: records not in a call are skipped at once, calls may end until `drain_timeout`
//!                          └► no record settles for `drain_timeout`: all its records are skipped, its calls are abandoned
//! ```
//!
//! Progress is a settled record, not a running call: a slow handler that settles one record per `drain_timeout` keeps
//! all of them. A skipped record is settled for this handler and counted, as a new record is while the gate is closed
//! (G1). With `on_failure: dead_letter` a failed handler's records go to the dead-letter topic instead. Dead letters no
//! longer belong to the handler, and are awaited (G7). An abandoned call ends like one that timed out: its outcomes are
//! discarded when it returns, since its records are settled already and settling again is a fault (G13).

use super::context::Context;
use super::deferred::{Attempt, Share, ShareState};
use super::{HandlerQueue, OnFailure};
use crate::dispatch::{BatchId, RecordId};
use crate::record::Record;

/// State of a handler that is switched off or removed and still has records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    /// When its last record settled, or else when it was switched off; on the flow's clock.
    pub(super) moved_ms: u64,
    /// Records that it had settled by then.
    settled: u64,
}

/// Result of checking a closing handler.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClosingCheck {
    /// It still has records.
    pub(crate) has_records: bool,
    /// A call was abandoned that draining partitions waited for.
    pub(crate) stopped_call_ended: bool,
}

impl HandlerQueue {
    /// Whether no new record reaches it.
    fn is_closed(&self) -> bool {
        self.retiring || !self.settings.gate_open
    }

    fn settled(&self) -> u64 {
        self.counts.settled()
    }

    /// Called for a new plan: finds out whether it is switched off or removed and still has records.
    pub(crate) fn closes(&mut self, now_ms: u64) -> bool {
        if !self.is_closed() || self.is_idle() {
            self.closing = None;
            return false;
        }
        let now = Closing {
            moved_ms: now_ms,
            settled: self.settled(),
        };
        self.closing.get_or_insert(now);
        true
    }

    /// Skips the records that a closing handler will not finish.
    pub(crate) fn check_closing<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        drain_timeout_ms: u64,
    ) -> ClosingCheck {
        let settled = self.settled();
        let failed = self.has_failed();
        let Some(closing) = self.closing.as_mut() else {
            return ClosingCheck::default();
        };
        if closing.settled != settled {
            *closing = Closing {
                moved_ms: ctx.now_ms,
                settled,
            };
        }
        let overdue = ctx.now_ms.saturating_sub(closing.moved_ms) >= drain_timeout_ms;
        let to_dead_letter = failed && self.settings.on_failure == OnFailure::DeadLetter;
        if to_dead_letter {
            self.dead_letter_unstarted(ctx);
        }
        let stopped_call_ended =
            (overdue || (failed && !to_dead_letter)) && self.skip_unstarted(ctx, overdue);
        let has_records = !self.is_idle();
        if !has_records {
            self.closing = None;
        }
        ClosingCheck {
            has_records,
            stopped_call_ended,
        }
    }

    /// Dead-letters the records that are not in a call, as `on_failure: dead_letter` does for a failed handler.
    fn dead_letter_unstarted<R: Record>(&mut self, ctx: &mut Context<R>) {
        if self.may_have_queued() {
            self.dead_letter_queued(ctx);
        }
        for key in self.waiting(ctx, false) {
            if let Some(share) = self.deferred.get(key).cloned() {
                let attempt = Attempt::of(key, &share);
                let reason = share
                    .reason
                    .unwrap_or_else(|| "the handler has failed".into());
                self.dead_letter(ctx, &attempt, share.class, reason);
            }
        }
    }

    /// Settles as skipped the records that are not in a call, and with `running` also those that are: these calls are
    /// abandoned. Returns whether draining partitions waited for one of them.
    fn skip_unstarted<R: Record>(&mut self, ctx: &mut Context<R>, running: bool) -> bool {
        let mut skipped: Vec<RecordId> = Vec::new();
        if self.may_have_queued() {
            for (key, _) in self.take_queued(ctx, |_| true) {
                // A record that ran before has a deferred share; its lane belonged to the batch.
                self.end_share(ctx, key);
                skipped.push(key);
            }
        }
        for key in self.waiting(ctx, running) {
            // A record that is not written again leaves those behind it as they are: each would wait for the cluster in turn.
            if let Some(share) = self.deferred.get(key)
                && self.chains.first_key(share.lane) == Some(key)
            {
                self.chains.clear_taint(share.lane);
            }
            if let Some(share) = self.end_share(ctx, key) {
                if share.holds() {
                    self.unhold(share.lane);
                }
                skipped.push(key);
            }
        }
        let (mut calls, mut stopped) = (0, false);
        if running {
            for id in self.batches.submitted_keys() {
                calls += 1;
                stopped |= self.abandon_call(ctx, id, &mut skipped);
            }
        }
        if calls > 0 {
            self.recall_queued();
        }
        let mut counted = 0;
        for key in skipped {
            counted += u64::from(!ctx.records.is_over(key));
            ctx.records.settle_share(key, ctx.now_ms);
        }
        if counted == 0 && calls == 0 {
            return stopped;
        }
        self.counts.of(&self.current).skipped += counted;
        tracing::warn!(
            handler = &*self.settings.name,
            removed = self.retiring,
            failed = self.has_failed(),
            skipped = counted,
            abandoned_calls = calls,
            "handler is off and does not finish its records: they are skipped"
        );
        self.mark_dirty(ctx);
        stopped
    }

    /// Stops waiting for a call: its outcomes are discarded when they arrive. Adds its records to `skipped`; returns whether
    /// draining partitions waited for it.
    fn abandon_call<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        id: BatchId,
        skipped: &mut Vec<RecordId>,
    ) -> bool {
        let Some(call) = self.batches.get(id) else {
            return false;
        };
        call.recall();
        let keys = std::mem::take(&mut call.keys);
        // No record waits in its lanes: queued records were taken out before.
        let ended = self.end_batch(ctx, id);
        self.open.unblock();
        self.in_flight_records -= keys.len() as u32;
        self.in_flight_bytes -= ctx.records.charge_of(&keys);
        for &key in &keys {
            self.end_share(ctx, key);
        }
        skipped.extend(keys);
        ended.stopped
    }

    /// Whether it may have queued records; searching its queues costs more than checking these counters.
    fn may_have_queued(&self) -> bool {
        self.in_flight_records > 0 || !self.backlog.is_empty() || self.lanes.waiters() > 0
    }

    /// Records that wait for their next attempt, and with `refused` those that wait for the cluster to accept what they
    /// emitted; in offset order.
    fn waiting<R: Record>(&self, ctx: &Context<R>, refused: bool) -> Vec<RecordId> {
        if self.deferred.is_empty() {
            return Vec::new();
        }
        let waits = |share: &Share| match share.state {
            ShareState::Parked { .. } => true,
            ShareState::EmitsDue { .. } => refused,
            // It waits for its turn to be sent again; what the producer has is awaited.
            ShareState::Emitting => {
                let number = share.linked.filter(|_| refused);
                number.is_some_and(|number| self.chains.is_refused(share.lane, number))
            }
            _ => false,
        };
        let mut waiting: Vec<(i64, RecordId)> = self
            .deferred
            .iter()
            .filter(|(_, share)| waits(share))
            .filter_map(|(key, _)| Some((ctx.records.slab.get(key)?.offset(), key)))
            .collect();
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, key)| key).collect()
    }
}
