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
use super::context::Context;
use super::deferred::{Attempt, Ending, Refusal, Share, ShareState};
use super::refusals::ProduceKind;
use crate::dispatch::RecordId;
use crate::emit::outbox::answer_unsent;
use crate::emit::shipment::{RefusedEmits, ShippedAt};
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
    pub(crate) fn produced<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        refused: Option<RefusedEmits>,
    ) {
        let Some(share) = self.deferred.get(key).cloned() else {
            ctx.outbox.forget(refused);
            return;
        };
        match (share.state, refused) {
            (ShareState::Emitting, None) => self.emits_acknowledged(ctx, key, &share),
            (ShareState::Emitting, Some(refused)) => self.emits_refused(ctx, key, share, refused),
            (ShareState::DeadLettering, None) => {
                self.counts.of(&share.ran_by).dead_letter += 1;
                self.log_dead_letter(ctx, key, &share);
                self.finish_share(ctx, key, &share);
            }
            (ShareState::DeadLettering, Some(refused)) => {
                self.schedule_resend(ctx, key, share, refused.failure, None);
            }
            (
                ShareState::Parked { .. }
                | ShareState::Running
                | ShareState::EmitsDue { .. }
                | ShareState::DeadLetterDue { .. },
                refused,
            ) => ctx.outbox.forget(refused),
        }
    }

    fn emits_acknowledged<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: &Share,
    ) {
        match share.ending {
            Ending::Ack => self.counts.of(&share.ran_by).ack += 1,
            Ending::Drop => self.counts.of(&share.ran_by).drop += 1,
            Ending::DeadLetter => {
                self.end_refusal(ctx, share);
                let reason = share.reason.clone().unwrap_or_else(terminal_error);
                self.dead_letter(ctx, &Attempt::of(key, share), REASON_TERMINAL, reason);
                return;
            }
        }
        self.finish_share(ctx, key, share);
    }

    /// Settles a share that waited for the producer.
    fn finish_share<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: &Share) {
        self.end_refusal(ctx, share);
        self.end_deferral(ctx, key);
        ctx.records.settle_share(key, ctx.now_ms);
        self.unhold(share.lane);
        self.release_lane(ctx, share.lane);
    }

    fn emits_refused<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        refused: RefusedEmits,
    ) {
        if refused.failure.kind != FailureKind::Record {
            let emits = (refused.at, refused.first);
            self.schedule_resend(ctx, key, share, refused.failure, Some(emits));
            return;
        }
        self.end_refusal(ctx, &share);
        ctx.outbox.release(refused.at);
        self.refusals.count();
        let mut reason = format!(
            "an emitted record is permanently rejected: {}",
            refused.failure
        );
        if let (Ending::DeadLetter, Some(given)) = (share.ending, &share.reason) {
            reason.push_str(&format!(
                "; the handler had dead-lettered the record: {given}"
            ));
        }
        let attempt = Attempt::of(key, &share);
        self.dead_letter(ctx, &attempt, REASON_EMIT_REFUSED, reason.into());
    }

    /// Holds a record until its refused part is resent.
    fn schedule_resend<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        failure: EmitFailure,
        emits: Option<(ShippedAt, u32)>,
    ) {
        let random = ctx.random.unit();
        ctx.records.detach(key);
        let now_ms = ctx.now_ms;
        self.count_refusal_end(ctx, &share);
        let before = share.refusal.as_deref();
        let tries = before.map_or(0, |before| before.tries) + 1;
        let alone_before = before.is_some_and(|before| before.way == Way::Alone);
        let by_batch = failure.kind == FailureKind::Batch && !alone_before;
        let due_ms = match by_batch {
            // The refusal of the batch says nothing about this record: resend it alone, at once.
            true => now_ms,
            false => now_ms + RESEND.delay_ms(tries, random),
        };
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
        let mut refusal = Refusal {
            since_ms: before.map_or(now_ms, |before| before.since_ms),
            tries,
            way: if by_batch || alone_before {
                Way::Alone
            } else {
                Way::Batched
            },
            held_bytes: emits.map_or(0, |(at, _)| ctx.outbox.bytes(at)),
            counted_as: failure.topic.clone(),
            failure,
            emits,
        };
        ctx.keep_refused(refusal.held_bytes);
        self.refusals
            .begin(&self.settings.name, what, &mut refusal, now_ms);
        let state = match what {
            ProduceKind::Emits => ShareState::EmitsDue { due_ms },
            ProduceKind::DeadLetter => ShareState::DeadLetterDue { due_ms },
        };
        let refusal = Some(Box::new(refusal));
        let share = Share {
            state,
            refusal,
            ..share
        };
        self.defer(ctx, key, share);
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
        let Some((at, first)) = refusal.emits else {
            return;
        };
        let way = refusal.way;
        let state = ShareState::Emitting;
        self.defer(ctx, key, Share { state, ..share });
        ctx.outbox
            .send_again(at, first, way, &*ctx.emitter, &ctx.inbox);
    }

    fn run_again<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        self.end_refusal(ctx, &share);
        let (lane, attempt) = (share.lane, share.attempt);
        if self.changes_order() || self.deferred.predecessor(key, &share).is_some() {
            // It is due again when the order has changed or that one is over; with the same attempt, since none was made.
            let due_ms = ctx.now_ms;
            let share = Share {
                attempt: attempt - 1,
                state: ShareState::Parked { due_ms },
                since_ms: ctx.now_ms,
                refusal: None,
                ..share
            };
            self.defer(ctx, key, share);
            return;
        }
        self.held -= 1;
        if attempt == 1 && share.follows.is_none() {
            self.end_deferral(ctx, key);
        } else {
            let share = Share {
                state: ShareState::Running,
                since_ms: ctx.now_ms,
                refusal: None,
                ..share
            };
            self.defer(ctx, key, share);
        }
        self.requeue(ctx, key, lane, attempt);
        // Other records may have waited in the lane since before this batch.
        if lane != 0 {
            self.mark_contended(lane);
        }
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
        let share = Share {
            reason: Some(reason),
            class,
            ending: Ending::DeadLetter,
            ..self.share(ctx, attempt, ShareState::DeadLettering)
        };
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

    /// Ends a refusal: the record is produced, dead-lettered, or run again. What was refused is not kept any longer.
    fn end_refusal<R: Record>(&mut self, ctx: &mut Context<R>, share: &Share) {
        self.count_refusal_end(ctx, share);
        let refusal = share.refusal.as_ref();
        if let Some((at, _)) = refusal.and_then(|refusal| refusal.emits) {
            ctx.outbox.release(at);
        }
    }

    /// A refusal is over for the reports, or another follows.
    fn count_refusal_end<R: Record>(&mut self, ctx: &mut Context<R>, share: &Share) {
        if let Some(refusal) = &share.refusal {
            ctx.drop_refused(refusal.held_bytes);
            if self.refusals.end(refusal) {
                ctx.agenda.push_refusals_over(self.ix);
            }
        }
    }

    /// Ends the deferral of a share that is over without its outcome, and its refusal.
    pub(super) fn end_share<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
    ) -> Option<Share> {
        let share = self.end_deferral(ctx, key)?;
        self.end_refusal(ctx, &share);
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
