//! Troubles: a refused emit holds its lane until it, and what stands behind it, is written again in order (ADR 0037).
//!
//! ```text
//!  refused ─► is it the first of its lane? ─ no ─► it waits; what stands behind is tainted
//!                 │ yes                                     ▲ the one before it is over
//!                 ├─ back-off ─► sent again ─► acknowledged ┘
//!                 └─ a newer generation may not emit to that topic: the lane runs again from here on, record by record
//! ```

use super::chains::{Ahead, First, LinkState};
use super::context::Context;
use super::deferred::{Ending, Share, ShareState};
use super::{HandlerQueue, MAX_UNANSWERED};
use crate::dispatch::RecordId;
use crate::emit::shipment::RefusedEmits;
use crate::emit::{FailureKind, Way};
use crate::record::Record;
use crate::records::slab::RecordEntry;

/// Time between two checks whether a lane may run again, in milliseconds.
const RERUN_CHECK_MS: u64 = 100;

impl HandlerQueue {
    /// The producer has refused emits of a linked record: what stands behind it in its lane is written again after it.
    pub(super) fn refused_in_lane<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        refused: RefusedEmits,
    ) {
        let (lane, number) = (share.lane, share.linked.unwrap_or_default());
        // What can never be written leaves nothing behind which others would have to stand.
        if refused.failure.kind != FailureKind::Record {
            let topics = ctx.outbox.refusing_topics(refused.at);
            if self.chains.begin_trouble(lane, number + 1, &topics) {
                self.hold(lane);
                self.defer_pending_of(ctx, lane);
            }
        }
        let share = self.refuse(ctx, key, share, refused.failure, Some(refused.at));
        self.defer(ctx, key, share);
        if self.chains.set(lane, number, LinkState::Refused) {
            self.advance(ctx, lane);
        }
    }

    /// Does what the first record of a lane waits for, until it waits for something else or no record is left.
    pub(super) fn advance<R: Record>(&mut self, ctx: &mut Context<R>, lane: u64) {
        // A record of the lane is acknowledged: the cluster takes records again.
        let mut accepts = false;
        loop {
            let (key, is_refused) = match self.chains.first(lane) {
                First::Waits if accepts => return self.write_ahead(ctx, lane),
                First::Waits => return,
                First::None => break,
                First::Refused(key) => (key, true),
                First::Done(key) => (key, false),
            };
            let Some(share) = self.deferred.get(key).cloned() else {
                debug_assert!(false, "a linked record has no share");
                return;
            };
            if is_refused {
                match accepts {
                    true => self.resend_now(ctx, key, share),
                    false => self.resend(ctx, key, share),
                }
                continue;
            }
            let number = share.linked.unwrap_or_default();
            let taint = self.chains.take_taint(lane, number);
            accepts = true;
            self.chains.accepted(lane);
            if !taint.is_empty() && self.write_again(ctx, key, &share, &taint, Way::Batched) {
                self.chains.begin_writing(lane, number, Way::Batched);
                continue;
            }
            self.finish_share(ctx, key, share);
        }
        if !self.chains.is_over(lane) {
            return;
        }
        let batches = &self.batches;
        if self.lanes.is_taken(lane, |id| batches.is_live(id)) {
            // The call may have emitted before what stands before it was written again.
            self.to_advance.push(lane);
            return;
        }
        self.end_trouble(ctx, lane);
    }

    /// The records of a lane run again, those first that were due in its trouble.
    fn end_trouble<R: Record>(&mut self, ctx: &mut Context<R>, lane: u64) {
        let Some(parked) = self.chains.end(lane) else {
            return;
        };
        for key in parked {
            let share = self.deferred.get(key);
            if let Some(due_ms) = share.and_then(|share| share.state.due_ms()) {
                ctx.agenda.add_due(self.ix, key, due_ms);
            }
        }
        self.unhold(lane);
        self.release_lane(ctx, lane);
    }

    /// The cluster takes records of a lane again: those behind the first one are written again too, in order, as far as nothing of
    /// them is with the producer and as it has room.
    fn write_ahead<R: Record>(&mut self, ctx: &mut Context<R>, lane: u64) {
        let first = self.chains.first_key(lane);
        let first = first.and_then(|first| self.deferred.get(first));
        // Else it waits for a time, or for the lane to run again.
        if first.is_none_or(|first| first.state != ShareState::Emitting) {
            return;
        }
        while ctx.outbox.unanswered(self.ix) < MAX_UNANSWERED
            && let Some(next) = self.chains.ahead(lane)
            && let Some(share) = self.deferred.get(next.key).cloned()
        {
            match next.state {
                // It is written again once it is answered.
                LinkState::Open if next.stands_behind => return,
                LinkState::Open => {
                    self.chains.take_taint(lane, next.number);
                }
                LinkState::Refused => {
                    if !self.may_be_ahead(ctx, &next, &share) {
                        return;
                    }
                    self.chains.set(lane, next.number, LinkState::Open);
                    self.send_emits_again(ctx, next.key, share);
                }
                LinkState::Done => {
                    let taint = self.chains.take_taint(lane, next.number);
                    if !taint.is_empty()
                        && self.write_again(ctx, next.key, &share, &taint, next.way)
                    {
                        self.chains.set(lane, next.number, LinkState::Open);
                    }
                }
            }
        }
    }

    /// Whether a refused record that is not the first of its lane may be sent again: in the same way as those before it.
    fn may_be_ahead<R: Record>(&self, ctx: &Context<R>, next: &Ahead, share: &Share) -> bool {
        let Some(refusal) = &share.refusal else {
            return false;
        };
        let is_current = share.ran_by == *self.generation_for(ctx, next.key);
        let runs_again = refusal.failure.kind == FailureKind::Target && !is_current;
        refusal.way == next.way && !share.is_rejected() && !runs_again
    }

    /// Writes again what a record has written to these topics behind a refused one. Returns whether there is something.
    fn write_again<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: &Share,
        topics: &[String],
        way: Way,
    ) -> bool {
        let Some(at) = share.shipped else {
            return false;
        };
        let emitter = ctx.emitter.clone();
        let sends = (ctx.outbox).send_again(at, topics, way, &*emitter, &ctx.inbox);
        if sends {
            let state = ShareState::Emitting;
            let share = Share {
                state,
                ..share.clone()
            };
            self.defer(ctx, key, share);
        }
        sends
    }

    /// A share that was about to be sent again waits until those before it in its lane are over.
    pub(super) fn wait_for_turn<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        if let Some(number) = share.linked {
            self.chains.set(share.lane, number, LinkState::Refused);
        }
        let state = ShareState::Emitting;
        self.defer(ctx, key, Share { state, ..share });
    }

    /// A linked share has no lane any more: it does what it waited for.
    pub(super) fn part<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        state: LinkState,
    ) {
        let Some(share) = self.deferred.get(key).cloned() else {
            return;
        };
        if share.passes {
            self.hold(0);
        }
        let share = Share {
            passes: false,
            linked: None,
            ..share
        };
        self.defer(ctx, key, share.clone());
        match state {
            LinkState::Open => {}
            LinkState::Refused => self.resend(ctx, key, share),
            LinkState::Done => self.finish_share(ctx, key, share),
        }
    }

    pub(super) fn run_again<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        if share.linked.is_some() {
            self.run_lane_again(ctx, key, share);
            return;
        }
        self.end_refusal(ctx, &share);
        if let Some(at) = share.shipped {
            ctx.outbox.release(at);
        }
        let attempt = share.attempt;
        let share = Share {
            shipped: None,
            refusal: None,
            since_ms: ctx.now_ms,
            ..share
        };
        if self.changes_order() || share.lane != 0 {
            // It is due again when the order has changed, or in its turn if it had no lane when it ran; with the same attempt,
            // since none was made.
            self.park_again(ctx, key, share);
            return;
        }
        self.held -= 1;
        if attempt == 1 {
            self.end_deferral(ctx, key);
        } else {
            let state = ShareState::Running;
            self.defer(ctx, key, Share { state, ..share });
        }
        self.requeue(ctx, key, 0, attempt);
    }

    /// A share runs again, as the same attempt, once it may.
    fn park_again<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        let due_ms = ctx.now_ms;
        let share = Share {
            attempt: share.attempt - 1,
            state: ShareState::Parked { due_ms },
            since_ms: ctx.now_ms,
            ..share
        };
        self.defer(ctx, key, share);
    }

    /// The first record of a lane runs again, and so do those that have run since, in their order: what the newer generation writes,
    /// and to which topics, is known only then. Waits until no call has records of the lane, and the producer none of their emits.
    fn run_lane_again<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        let lane = share.lane;
        let mut keys = self.chains.keys(lane);
        keys.extend(self.deferred.following(lane));
        let place = |key: &RecordId| (ctx.records.slab.get(*key).map(RecordEntry::offset), *key);
        keys.sort_by_key(place);
        keys.dedup();
        let batches = &self.batches;
        let is_taken = self.lanes.is_taken(lane, |id| batches.is_live(id));
        let is_unanswered = |key: &RecordId| {
            let shipped = self.deferred.get(*key).and_then(|share| share.shipped);
            shipped.is_some_and(|at| ctx.outbox.is_unanswered(at))
        };
        if is_taken || self.changes_order() || keys.iter().any(is_unanswered) {
            let due_ms = ctx.now_ms + RERUN_CHECK_MS;
            let state = ShareState::EmitsDue { due_ms };
            self.defer(ctx, key, Share { state, ..share });
            return;
        }
        for &key in &keys {
            self.unlink_to_run(ctx, key);
        }
        if self.chains.is_troubled(lane) {
            self.end_trouble(ctx, lane);
        }
    }

    /// A share of a lane that runs again from its first record on leaves the chain.
    fn unlink_to_run<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId) {
        let Some(share) = self.deferred.get(key).cloned() else {
            return;
        };
        if let Some(number) = share.linked {
            self.chains.unlink(share.lane, number);
        }
        let offset = ctx.records.slab.get(key).map(RecordEntry::offset);
        let share = Share {
            linked: None,
            // The others of the lane wait for it.
            follows: share.follows.or(offset),
            ..share
        };
        match share.state {
            // Its letter is written: it is over.
            ShareState::Done if share.ending == Ending::Written => {
                self.defer(ctx, key, share.clone());
                self.finish_share(ctx, key, share);
            }
            ShareState::Emitting | ShareState::EmitsDue { .. } | ShareState::Done => {
                self.end_refusal(ctx, &share);
                if let Some(at) = share.shipped {
                    ctx.outbox.release(at);
                }
                if share.passes {
                    self.hold(share.lane);
                }
                let share = Share {
                    passes: false,
                    shipped: None,
                    refusal: None,
                    ..share
                };
                self.park_again(ctx, key, share);
            }
            ShareState::Parked { .. }
            | ShareState::Running
            | ShareState::DeadLettering
            | ShareState::DeadLetterDue { .. } => self.defer(ctx, key, share),
        }
    }
}
