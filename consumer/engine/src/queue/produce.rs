//! Records that wait for the producer: emits and dead letters, their acknowledgements, and the resending of refused
//! ones.
//!
//! ```text
//!  emits ──► Emitting ──► acknowledged ──► ack, drop: settle · dead letter: write it
//!               ▲  └────► refused because of the record ──► dead-letter it, no attempt counted
//!               │              because of the cluster ──► EmitsDue ──┐ back-off, or at once and alone after a batch was refused
//!               └──────────────────────────────────────────────────┘
//!  dead letter ──► DeadLettering ──► acknowledged ──► settle
//!                    ▲  └────► refused, for any reason ──► DeadLetterDue ──┐ back-off
//!                    └──────────────────────────────────────────────────────┘
//! ```
//!
//! A refusal by the cluster is not the record's fault (ADR 0020): the record's lane stays held, `explain` shows why,
//! and no attempt is counted.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::spec::dead_letter_topic;

use super::HandlerQueue;
use super::chains::LinkState;
use super::context::Context;
use super::deferred::{Attempt, Ending, Refusal, Share, ShareState};
use super::refusals::ProduceKind;
use super::targets::GenerationId;
use crate::dispatch::RecordId;
use crate::emit::outbox::answer_unsent;
use crate::emit::shipment::{Answered, RefusedEmits, ShippedAt};
use crate::emit::{EmitFailure, FailureKind, Way};
use crate::record::Record;
use crate::settlement::{RetryPolicy, dead_letter};

/// The handler dead-lettered the record.
pub(super) const REASON_TERMINAL: &str = "terminal";
/// A record that the handler emitted can never be produced.
const REASON_EMIT_REFUSED: &str = "emit_refused";

/// Delays between resends of refused records.
const RESEND: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    delay: Duration::from_millis(100),
    multiplier: 2.0,
    max_delay: Duration::from_secs(25),
    jitter: 0.2,
};

impl HandlerQueue {
    /// The producer has answered for all emits of a record that were sent, or for its dead letter.
    pub(crate) fn produced<R: Record>(&mut self, ctx: &mut Context<R>, one: &mut Answered) {
        let key = one.key;
        if one.refused.is_none()
            && match one.pending {
                Some(pending) => self.settle_pending(ctx, one, pending),
                None => self.settle_emitted(ctx, key),
            }
        {
            return;
        }
        self.defer_pending(ctx, key, one.at);
        let refused = one.refused.take();
        let Some(share) = self.deferred.get(key).cloned() else {
            ctx.outbox.forget(refused);
            return;
        };
        match (share.state, refused) {
            (ShareState::Emitting, None) => self.done(ctx, key, share),
            (ShareState::Emitting, Some(refused)) if share.linked.is_some() => {
                self.refused_in_lane(ctx, key, share, *refused);
            }
            (ShareState::Emitting, Some(refused)) => self.emits_refused(ctx, key, share, *refused),
            (ShareState::DeadLettering, None) => {
                self.log_dead_letter(ctx, key, &share);
                let ending = Ending::Written;
                self.done(ctx, key, Share { ending, ..share });
            }
            (ShareState::DeadLettering, Some(refused)) => {
                let share = self.refuse(ctx, key, share, refused.failure, None);
                self.resend(ctx, key, share);
            }
            (
                ShareState::Parked { .. }
                | ShareState::Running
                | ShareState::Done
                | ShareState::EmitsDue { .. }
                | ShareState::DeadLetterDue { .. },
                refused,
            ) => ctx.outbox.forget(refused),
        }
    }

    /// Settles a record whose emits are acknowledged and that waits for nothing else, which is what nearly all do; `false`: it waits.
    fn settle_emitted<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId) -> bool {
        let share = self.deferred.get(key);
        let is_plain = |share: &&Share| {
            share.state == ShareState::Emitting
                && share.refusal.is_none()
                && share.ending != Ending::DeadLetter
        };
        let Some(share) = share.filter(is_plain) else {
            return false;
        };
        let (lane, holds) = (share.lane, share.holds());
        let next_is_done = match share.linked {
            None => false,
            Some(number) => match self.chains.take_first(lane, number) {
                Some(next_is_done) => next_is_done,
                None => return false,
            },
        };
        let Some(share) = self.end_deferral(ctx, key) else {
            return false;
        };
        self.count(&share.ran_by, share.ending);
        if let Some(at) = share.shipped {
            ctx.outbox.release(at);
        }
        ctx.records.settle_share(key, ctx.now_ms);
        if holds {
            self.unhold(lane);
            self.release_lane(ctx, lane);
        }
        if next_is_done {
            self.advance(ctx, lane);
        }
        true
    }

    /// A call has emitted for a record: it settles once that is acknowledged, and after those before it in its lane.
    pub(super) fn emitted<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        returned: &Attempt,
        at: ShippedAt,
        ending: Ending,
        detail: Option<Arc<str>>,
    ) {
        let passes = returned.lane != 0 && ending != Ending::DeadLetter;
        if !passes {
            self.hold(returned.lane);
        }
        let mut share = Share {
            reason: detail,
            ending,
            passes,
            shipped: Some(at),
            ..self.share(ctx, returned, ShareState::Emitting)
        };
        self.link(returned.key, &mut share, LinkState::Open);
        self.defer(ctx, returned.key, share);
    }

    /// A call has handled a record and emitted nothing for it: it settles now, or after those before it in its lane.
    pub(super) fn handled<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        returned: &Attempt,
        ending: Ending,
    ) {
        let key = returned.key;
        if !self.chains.has(returned.lane) {
            self.count(&returned.ran_by, ending);
            self.end_deferral(ctx, key);
            ctx.records.settle_share(key, ctx.now_ms);
            return;
        }
        let mut share = Share {
            ending,
            passes: true,
            ..self.share(ctx, returned, ShareState::Done)
        };
        self.link(key, &mut share, LinkState::Done);
        let is_first = |number| self.chains.is_first(returned.lane, number);
        if share.linked.is_some_and(is_first) {
            // Once the records that the call did not run are back in their lanes: it may release them.
            self.to_advance.push(returned.lane);
        }
        self.defer(ctx, key, share);
    }

    /// Counts an outcome that has taken effect.
    fn count(&mut self, ran_by: &GenerationId, ending: Ending) {
        let counts = self.counts.of(ran_by);
        match ending {
            Ending::Ack => counts.ack += 1,
            Ending::Drop => counts.drop += 1,
            Ending::DeadLetter | Ending::Written => counts.dead_letter += 1,
        }
    }

    /// Links a share behind those of its lane.
    fn link(&mut self, key: RecordId, share: &mut Share, state: LinkState) {
        if share.lane != 0 && share.linked.is_none() {
            share.linked = Some(self.chains.link(share.lane, key, state));
        }
    }

    /// A share waits for nothing but those before it in its lane: it is over, or it waits for them.
    fn done<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        self.end_refusal(ctx, &share);
        let share = Share {
            refusal: None,
            ..share
        };
        let Some(number) = share.linked else {
            self.finish_share(ctx, key, share);
            return;
        };
        let lane = share.lane;
        let held = share.holds() && share.ending != Ending::DeadLetter;
        if held {
            self.unhold(lane);
        }
        let is_first = self.chains.set(lane, number, LinkState::Done);
        let share = Share {
            state: ShareState::Done,
            passes: share.ending != Ending::DeadLetter,
            shipped: match is_first {
                true => share.shipped,
                // The producer, whose queue is bounded, does not have it any more.
                false => share.shipped.map(|at| ctx.outbox.keep(at)),
            },
            ..share
        };
        self.defer(ctx, key, share);
        if is_first {
            self.advance(ctx, lane);
        }
        if held {
            self.release_lane(ctx, lane);
        }
    }

    /// Settles a share that is done, or writes its dead letter.
    pub(super) fn finish_share<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        if share.ending == Ending::DeadLetter {
            let reason = share.reason.clone().unwrap_or_else(terminal_error);
            self.dead_letter(ctx, &Attempt::of(key, &share), REASON_TERMINAL, reason);
            return;
        }
        self.count(&share.ran_by, share.ending);
        self.end_deferral(ctx, key);
        if let Some(at) = share.shipped {
            ctx.outbox.release(at);
        }
        if let Some(number) = share.linked {
            self.chains.unlink(share.lane, number);
        }
        ctx.records.settle_share(key, ctx.now_ms);
        if share.holds() {
            self.unhold(share.lane);
            self.release_lane(ctx, share.lane);
        }
    }

    /// The producer has refused emits of a record: it is its turn to be sent again, or to be dead-lettered.
    pub(super) fn emits_refused<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        refused: RefusedEmits,
    ) {
        let share = self.refuse(ctx, key, share, refused.failure, Some(refused.at));
        self.resend(ctx, key, share);
    }

    /// Sends again what was refused of a record, or dead-letters it if it can never be produced.
    pub(super) fn resend_now<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        match share.is_rejected() {
            true => self.dead_letter_refused(ctx, key, share),
            false => self.send_emits_again(ctx, key, share),
        }
    }

    /// As [`Self::resend_now`], after a delay.
    pub(super) fn resend<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        let Some(refusal) = share.refusal.as_deref() else {
            return;
        };
        if share.is_rejected() {
            self.dead_letter_refused(ctx, key, share);
            return;
        }
        let random = ctx.random.unit();
        let due_ms = match refusal.at_once {
            true => ctx.now_ms,
            false => ctx.now_ms + RESEND.delay_ms(refusal.tries, random),
        };
        let state = match refusal.emits {
            Some(_) => ShareState::EmitsDue { due_ms },
            None => ShareState::DeadLetterDue { due_ms },
        };
        self.defer(ctx, key, Share { state, ..share });
    }

    fn dead_letter_refused<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        self.end_refusal(ctx, &share);
        if share.passes {
            self.hold(share.lane);
        }
        let failure = share.refusal.as_deref().map(|refusal| &refusal.failure);
        let mut reason = "an emitted record is permanently rejected".to_owned();
        if let Some(failure) = failure {
            reason.push_str(&format!(": {failure}"));
        }
        if let (Ending::DeadLetter, Some(given)) = (share.ending, &share.reason) {
            reason.push_str(&format!(
                "; the handler had dead-lettered the record: {given}"
            ));
        }
        let attempt = Attempt::of(key, &share);
        self.dead_letter(ctx, &attempt, REASON_EMIT_REFUSED, reason.into());
    }

    /// Keeps what was refused of a record, and counts it as waiting.
    pub(super) fn refuse<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        failure: EmitFailure,
        emits: Option<ShippedAt>,
    ) -> Share {
        ctx.records.detach(key);
        let now_ms = ctx.now_ms;
        self.end_refusal(ctx, &share);
        let before = share.refusal.as_deref();
        let tries = before.map_or(0, |before| before.tries) + 1;
        let alone_before = before.is_some_and(|before| before.way == Way::Alone);
        let by_batch = failure.kind == FailureKind::Batch && !alone_before;
        let what = match emits {
            Some(_) => ProduceKind::Emits,
            None => ProduceKind::DeadLetter,
        };
        // A deleted dead-letter topic is recreated by topic maintenance, if it may be created.
        if what == ProduceKind::DeadLetter && failure.kind == FailureKind::Target {
            ctx.miss_target();
        }
        if !by_batch {
            let reason = format!("{what} refused: {failure}").into();
            self.errors.record(reason, now_ms);
        }
        let emits = emits.map(|at| ctx.outbox.keep(at));
        let mut refusal = Refusal {
            since_ms: before.map_or(now_ms, |before| before.since_ms),
            tries,
            way: if by_batch || alone_before {
                Way::Alone
            } else {
                Way::Batched
            },
            at_once: by_batch,
            counted_as: failure.topic.clone(),
            failure,
            emits,
        };
        match refusal.failure.kind {
            // Its dead letter follows: nothing waits for the topic.
            FailureKind::Record if emits.is_some() => self.refusals.count(),
            _ => self
                .refusals
                .begin(&self.settings.name, what, &mut refusal, now_ms),
        }
        Share {
            shipped: emits.or(share.shipped),
            refusal: Some(Box::new(refusal)),
            ..share
        }
    }

    /// Resends emits from the first refused record on. If a newer generation or config is active and the topic was the
    /// reason, the record is run again instead, as the same attempt: the newer one may not emit to that topic.
    pub(super) fn send_emits_again<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        let Some(refusal) = &share.refusal else {
            return;
        };
        let outdated = share.ran_by != *self.generation_for(ctx, key);
        if outdated && refusal.failure.kind == FailureKind::Target {
            self.run_again(ctx, key, share);
            return;
        }
        let Some(at) = refusal.emits else {
            return;
        };
        let way = refusal.way;
        let taint = match share.linked {
            Some(number) => {
                let taint = self.chains.take_taint(share.lane, number);
                self.chains.begin_writing(share.lane, number, way);
                taint
            }
            None => Vec::new(),
        };
        let state = ShareState::Emitting;
        self.defer(ctx, key, Share { state, ..share });
        let emitter = ctx.emitter.clone();
        (ctx.outbox).send_again(at, &taint, way, &*emitter, &ctx.inbox);
    }

    /// Writes the dead letter; the record settles when it is acknowledged (G7). The caller holds its lane.
    pub(super) fn dead_letter<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        attempt: &Attempt,
        class: &'static str,
        reason: Arc<str>,
    ) {
        self.errors.record(reason.clone(), ctx.now_ms);
        let emitted = self
            .deferred
            .get(attempt.key)
            .and_then(|share| share.shipped);
        if let Some(at) = emitted {
            // Nothing of it is written again once its letter is.
            ctx.outbox.release(at);
        }
        let mut share = Share {
            reason: Some(reason),
            class,
            ending: Ending::DeadLetter,
            ..self.share(ctx, attempt, ShareState::DeadLettering)
        };
        if self.chains.has(attempt.lane) {
            self.link(attempt.key, &mut share, LinkState::Open);
        }
        self.send_dead_letter(ctx, attempt.key, share);
    }

    /// Sends or resends a record's dead letter.
    pub(super) fn send_dead_letter<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
    ) {
        let way = share.refusal.as_ref().map_or(Way::Batched, |r| r.way);
        let (attempts, class, message) = (share.attempt, share.class, share.reason.clone());
        let ran_by = share.ran_by.clone();
        let state = ShareState::DeadLettering;
        self.defer(ctx, key, Share { state, ..share });
        let records = &ctx.records;
        let Some(entry) = records.slab.get(key) else {
            return;
        };
        let drains_until_ms = records.partitions[entry.slot].drains_until_ms();
        if drains_until_ms.is_some_and(|deadline_ms| ctx.now_ms >= deadline_ms) {
            // The record is about to be left to the next owner, which would write another.
            return;
        }
        let Some(lease) = entry.lease() else { return };
        let at = records.partitions[entry.slot].at();
        let target = dead_letter_topic(&self.settings.dead_letter_topic, &at.topic);
        let provenance = dead_letter::Provenance {
            topic: &at.topic,
            partition: at.partition,
            offset: entry.offset(),
            timestamp_ms: entry.timestamp_ms(),
            group: &ctx.group,
            handler: &self.settings.name,
            version: &ran_by.version,
            attempts,
            reason: class,
            message: message.as_deref().unwrap_or("unknown"),
            target: &target,
        };
        let token = ctx.outbox.dead_letter(self.ix, key);
        let sent = dead_letter::send(lease, &provenance, &*ctx.emitter, way, &ctx.inbox, token);
        answer_unsent(sent, &target, &ctx.inbox, token);
    }

    /// Ends a refusal: the record is produced, dead-lettered, or about to be sent or run again.
    pub(super) fn end_refusal<R: Record>(&mut self, ctx: &mut Context<R>, share: &Share) {
        if let Some(refusal) = &share.refusal
            && self.refusals.end(refusal)
        {
            ctx.agenda.push_refusals_over(self.ix);
        }
    }

    /// Ends the deferral of a share that is over, and its refusal; what it has emitted is not kept any longer.
    pub(super) fn end_share<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
    ) -> Option<Share> {
        let share = self.end_deferral(ctx, key)?;
        if let Some(refusal) = &share.refusal {
            self.refusals.leave_unwritten(refusal);
        }
        self.end_refusal(ctx, &share);
        if let Some(at) = share.shipped {
            ctx.outbox.release(at);
        }
        if let Some(number) = share.linked {
            self.chains.unlink(share.lane, number);
            self.to_advance.push(share.lane);
            self.mark_dirty(ctx);
        }
        Some(share)
    }

    /// Logs refusals that have ended, once.
    pub(crate) fn log_ended_refusals(&mut self, now_ms: u64) {
        self.refusals.log_ended(&self.settings.name, now_ms);
    }
}

pub(super) fn terminal_error() -> Arc<str> {
    "terminal error".into()
}
