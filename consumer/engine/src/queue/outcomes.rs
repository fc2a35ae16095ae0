//! Outcomes: results of batches, calls that time out, and settling records.
//!
//! ```text
//!  Finished ─► still in flight? ─ no ─► late: the records' memory is returned, the outcomes are discarded
//!                 │ yes: the batch ends, which frees its lanes; then for each record
//!                 ├─ ack, drop ──────────────────► settled; with emits only once these are acknowledged (`produce`)
//!                 ├─ dead letter ────────────────► holds its lane; written after its emits, settled once acknowledged
//!                 ├─ retry, panic, unknown code ─► holds its lane, parked; after the last attempt dead-lettered
//!                 └─ not run ────────────────────► back to the head of its lane, as the same attempt
//!  CallTimedOut ─► published outcomes count, the record after them has failed, the others go back like unrun ones
//! ```
//!
//! Unrun records return to their lanes before any lane is released, or a later record of the key would overtake them (G4).
//! Outcomes with emits that a hung call has published do not count: the emits are stuck in the call.

use std::collections::HashSet;
use std::sync::Arc;

use sluicegate_runtime::{RawOutcome, outcome_code, outcome_flag};

use super::HandlerQueue;
use super::backoff::MAX_REQUESTED_DELAY_MS;
use super::batches::Ended;
use super::context::Context;
use super::deferred::{Attempt, Ending, Share, ShareState};
use super::lane::lane_of_key;
use super::produce::{REASON_TERMINAL, terminal_error};
use super::targets::GenerationId;
use crate::dispatch::{Batch, BatchId, Published, RecordId};
use crate::emit::EmitToken;
use crate::emit::shipment::ShippedAt;
use crate::record::Record;
use crate::records::SettledRun;
use crate::records::slab::RecordEntry;

/// Prefetch distance, in records: the memory of a record this far ahead is fetched early, so that freeing it does not
/// stall.
const PREFETCH: usize = 8;

/// Whether the emits that an outcome needs are stuck in a call that hangs.
fn has_stuck_emits(outcome: &RawOutcome) -> bool {
    outcome.flags & outcome_flag::EMITTED != 0 && ending_of(outcome.code).is_some()
}

const REASON_EXHAUSTED: &str = "retries_exhausted";
const REASON_FAILED: &str = "handler_failed";

/// Which records of a batch have emitted, in order.
struct Emitting {
    records: std::iter::Peekable<std::vec::IntoIter<u32>>,
    asked: u32,
}

impl Emitting {
    /// Hands what the batch has emitted over to the outbox.
    fn ship<R: Record>(
        ctx: &mut Context<R>,
        batch: &mut Batch,
        ran_by: &Arc<GenerationId>,
    ) -> Self {
        let records = match batch.output.emits.is_empty() {
            true => Vec::new(),
            false => ctx.outbox.ship(batch, ran_by),
        };
        Self {
            records: records.into_iter().peekable(),
            asked: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    /// Whether the record at this place has emits. To be asked in order.
    fn is_next(&mut self, place: usize) -> bool {
        self.records.peek() == Some(&(place as u32))
    }

    /// Where the emits of the record at this place are, if it has some. To be asked in order.
    fn at<R: Record>(
        &mut self,
        ctx: &Context<R>,
        batch: &Batch,
        place: usize,
    ) -> Option<ShippedAt> {
        if !self.is_next(place) {
            return None;
        }
        self.records.next();
        self.asked += 1;
        Some(ctx.outbox.at(batch.shipment, self.asked - 1))
    }
}

impl HandlerQueue {
    /// Handles a returned batch. Returns whether draining partitions waited for it.
    pub(crate) fn finished<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        mut batch: Box<Batch>,
    ) -> bool {
        if !self.batches.is_live(batch.id) {
            let batch = ctx.return_late(batch);
            self.batches.recycle(batch);
            return false;
        }
        let ended = self.call_ended(ctx, &batch);
        let ran_by = ended.ran_by.unwrap_or_else(|| self.current.clone());
        let mut emitting = Emitting::ship(ctx, &mut batch, &ran_by);
        let (mut acked, mut succeeded) = (0, false);
        let mut settled = SettledRun::default();
        let mut back = Vec::new();
        let mut freed = ended.contended;
        let mut records = std::mem::take(&mut batch.records);
        self.touch_chains(&records, emitting.is_empty());
        for (i, (record, &key)) in records.drain(..).zip(&batch.keys).enumerate() {
            if let Some(&later) = batch.keys.get(i + PREFETCH) {
                ctx.records.slab.prefetch(later);
            }
            let outcome = batch.outcomes.get(i).copied().unwrap_or_default();
            let (lane, attempt) = (record.lane, record.attempt);
            let is_first = attempt == 1 && self.deferred.get(key).is_none();
            let is_plain = is_first && !emitting.is_next(i) && !self.chains.has(lane);
            if outcome.code == outcome_code::ACK && is_plain {
                let counts = (ctx.records).return_settled(&mut settled, key, record, ctx.now_ms);
                acked += u64::from(counts);
                succeeded = true;
                continue;
            }
            ctx.records.return_record(key, record);
            if !is_first {
                // Other records may have waited in the lane since before this batch.
                freed.push(lane);
            }
            let returned = || Attempt::new(key, lane, attempt, &ran_by);
            // A cancelled call may request a retry of a record that is still owned: no attempt is counted for it.
            let cancelled = ended.recalled && outcome.code == outcome_code::RETRY;
            if outcome.code == outcome_code::NOT_RUN || cancelled {
                back.push(returned());
                continue;
            }
            let shipped = emitting.at(ctx, &batch, i);
            if let Some(at) = shipped
                && is_first
                && self.pend(ctx, (key, lane), at, &ran_by, outcome.code)
            {
                succeeded = true;
                continue;
            }
            let detail = detail_of(&batch, outcome);
            self.outcome(ctx, &returned(), outcome, shipped, detail);
        }
        ctx.records.end_run(&mut settled, ctx.now_ms);
        batch.records = records;
        self.counts.of(&ran_by).ack += acked;
        if succeeded {
            self.errors.succeeded();
        }
        self.requeue_not_run(ctx, &back, &mut freed);
        // What was refused at once holds its lane.
        self.answer_early(ctx, batch.shipment);
        self.follow_producer(ctx);
        for lane in freed {
            self.release_lane(ctx, lane);
        }
        self.batches.recycle(batch);
        self.mark_dirty(ctx);
        ended.stopped
    }

    /// A call has returned: what was counted for it is over.
    fn call_ended<R: Record>(&mut self, ctx: &mut Context<R>, batch: &Batch) -> Ended {
        let ended = self.end_batch(ctx, batch.id);
        self.in_flight_records -= batch.keys.len() as u32;
        self.in_flight_bytes -= batch.bytes;
        self.open.unblock();
        let is_run = |outcome: &&RawOutcome| outcome.code != outcome_code::NOT_RUN;
        let run = batch.outcomes.iter().filter(is_run).count();
        let ran_by = ended.ran_by.as_ref().unwrap_or(&self.current).clone();
        self.learn_cost(run as u32, batch.elapsed_us, &ran_by);
        if !ended.recalled && !ended.stopped {
            self.back_off_after(ctx, run, batch.elapsed_us);
        }
        ended
    }

    /// Handles the producer's answers that came before the call had ended.
    fn answer_early<R: Record>(&mut self, ctx: &mut Context<R>, shipment: EmitToken) {
        let early = ctx.outbox.take_early(shipment);
        if early.is_empty() {
            return;
        }
        let mut answered = Vec::new();
        ctx.outbox.answer(early, &mut answered);
        for mut one in answered {
            self.produced(ctx, &mut one);
        }
    }

    /// Requeues records that the call did not run: they go ahead of those waiting in their lanes, and no attempt is
    /// counted.
    fn requeue_not_run<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        back: &[Attempt],
        freed: &mut Vec<u64>,
    ) {
        let first = freed.len();
        for returned in back.iter().rev() {
            let (key, lane) = (returned.key, returned.lane);
            if ctx.records.is_over(key) {
                ctx.records.free_if_done(key);
                continue;
            }
            if self.stands_before_parked(ctx, returned) {
                self.park_in_turn(ctx, std::slice::from_ref(returned));
                continue;
            }
            // The first attempt has a share too if it is made again because its emits were refused.
            if returned.number > 1 || self.deferred.get(key).is_some() {
                self.park_now(ctx, key, lane, returned.number);
            } else if lane == 0 {
                self.backlog.push_front(key);
            } else {
                let batches = &self.batches;
                let is_live = |id| batches.is_live(id);
                self.lanes.wait_first(lane, &[key], is_live);
                freed.push(lane);
            }
        }
        // Released in offset order.
        freed[first..].reverse();
    }

    /// Whether a later record of its lane failed in the same call, that of a batch handler: it is parked, and would run first.
    fn stands_before_parked<R: Record>(&self, ctx: &Context<R>, returned: &Attempt) -> bool {
        let offset = ctx.records.slab.get(returned.key).map(RecordEntry::offset);
        returned.ran_by.takes_batches
            && offset.is_some_and(|offset| self.deferred.has_behind(returned.lane, offset))
    }

    /// Requeues a record of the second or a later attempt that was not run, with the same attempt number.
    pub(super) fn park_now<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        lane: u64,
        attempt: u32,
    ) {
        let known = self.deferred.get(key);
        let reason = known.and_then(|share| share.reason.clone());
        let ran_by = known.map_or_else(|| self.current.clone(), |share| share.ran_by.clone());
        self.hold(lane);
        let due_ms = ctx.now_ms;
        let state = ShareState::Parked { due_ms };
        let attempt = Attempt::new(key, lane, attempt - 1, &ran_by);
        let share = Share {
            reason,
            class: REASON_EXHAUSTED,
            ..self.share(ctx, &attempt, state)
        };
        self.defer(ctx, key, share);
    }

    /// Requeues records that run again one after the other, as the same attempt, with those of their lane that are parked.
    pub(super) fn park_in_turn<R: Record>(&mut self, ctx: &mut Context<R>, back: &[Attempt]) {
        for returned in back {
            if ctx.records.is_over(returned.key) {
                ctx.records.free_if_done(returned.key);
                continue;
            }
            self.park_now(ctx, returned.key, returned.lane, returned.number);
            self.follow(ctx, returned.key);
        }
    }

    /// A parked share waits for the deferred records before it in its lane.
    fn follow<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId) {
        let entry = ctx.records.slab.get(key);
        if let (Some(offset), Some(share)) =
            (entry.map(RecordEntry::offset), self.deferred.get(key))
            && share.state.is_parked()
        {
            let follows = share.follows.or(Some(offset));
            let share = Share {
                follows,
                ..share.clone()
            };
            self.defer(ctx, key, share);
        }
    }

    /// A share that is in a deferred state from now on, after this attempt.
    pub(super) fn share<R: Record>(
        &self,
        ctx: &Context<R>,
        attempt: &Attempt,
        state: ShareState,
    ) -> Share {
        let key = attempt.key;
        let known = self.deferred.get(key);
        Share {
            attempt: attempt.number,
            state,
            since_ms: ctx.now_ms,
            lane: attempt.lane,
            slot: ctx.records.slot_of(key),
            ran_by: attempt.ran_by.clone(),
            reason: None,
            class: REASON_TERMINAL,
            ending: Ending::Ack,
            passes: false,
            linked: known.and_then(|share| share.linked),
            shipped: None,
            refusal: None,
            follows: known
                .and_then(|share| share.follows)
                .or_else(|| follows(ctx, attempt)),
        }
    }

    fn outcome<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        returned: &Attempt,
        outcome: RawOutcome,
        shipped: Option<ShippedAt>,
        detail: Option<Arc<str>>,
    ) {
        let (key, lane) = (returned.key, returned.lane);
        if outcome.succeeds() {
            self.errors.succeeded();
        }
        if ctx.records.is_over(key) {
            if let Some(at) = shipped {
                ctx.outbox.release(at);
            }
            ctx.records.free_if_done(key);
            return;
        }
        match (shipped, ending_of(outcome.code)) {
            (Some(at), Some(ending)) => {
                self.emitted(ctx, returned, at, ending, detail);
                return;
            }
            // No worker sends the emits of an attempt that another one follows.
            (Some(at), None) => ctx.outbox.release(at),
            (None, _) => {}
        }
        match outcome.code {
            outcome_code::ACK => self.handled(ctx, returned, Ending::Ack),
            outcome_code::DROP => self.handled(ctx, returned, Ending::Drop),
            outcome_code::DEAD_LETTER => {
                let reason = detail.unwrap_or_else(terminal_error);
                self.errors.attempt_failed(reason.clone(), ctx.now_ms);
                self.hold(lane);
                self.dead_letter(ctx, returned, REASON_TERMINAL, reason);
            }
            outcome_code::RETRY => {
                let reason = detail.unwrap_or_else(|| "the handler requested a retry".into());
                self.failed_attempt(ctx, returned, reason, outcome.arg);
            }
            outcome_code::PANICKED => {
                let reason = detail.unwrap_or_else(|| "the handler panicked".into());
                self.failed_attempt(ctx, returned, reason, 0);
            }
            unknown => {
                let reason = format!(
                    "unknown outcome code {unknown}; the plugin is newer than this service"
                )
                .into();
                self.failed_attempt(ctx, returned, reason, 0);
            }
        }
    }

    /// Parks the record for its next attempt, or dead-letters it after the last one.
    fn failed_attempt<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        returned: &Attempt,
        reason: Arc<str>,
        requested_ms: u64,
    ) {
        let random = ctx.random.unit();
        self.errors.attempt_failed(reason.clone(), ctx.now_ms);
        let retry = self.settings.retry;
        self.hold(returned.lane);
        if returned.number >= retry.max_attempts {
            self.dead_letter(ctx, returned, REASON_EXHAUSTED, reason);
            return;
        }
        let delay_ms = if requested_ms > 0 {
            requested_ms.min(MAX_REQUESTED_DELAY_MS)
        } else {
            retry.delay_ms(returned.number, random)
        };
        self.counts.of(&returned.ran_by).retry += 1;
        ctx.records.detach(returned.key);
        let due_ms = ctx.now_ms.saturating_add(delay_ms);
        let share = Share {
            reason: Some(reason),
            class: REASON_EXHAUSTED,
            ..self.share(ctx, returned, ShareState::Parked { due_ms })
        };
        self.defer(ctx, returned.key, share);
        if self.chains.has(returned.lane) {
            // Those before it may run again with the lane.
            self.follow(ctx, returned.key);
        }
    }

    /// Handles a call timeout; its worker is lost. The published outcomes count, the record that it hangs on has failed; of a
    /// handler that takes batches, all without an outcome have, as after a panic. Returns whether draining partitions waited for the
    /// call.
    pub(crate) fn call_timed_out<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        id: BatchId,
        published: &Published,
    ) -> bool {
        let Some(hung) = self.batches.get(id) else {
            return false;
        };
        let keys = std::mem::take(&mut hung.keys);
        let seconds = ctx.now_ms.saturating_sub(hung.submitted_ms) as f64 / 1_000.0;
        let ended = self.end_batch(ctx, id);
        let mut freed = ended.contended;
        let ran_by = ended.ran_by.unwrap_or_else(|| self.current.clone());
        self.open.unblock();
        self.in_flight_records -= keys.len() as u32;
        self.in_flight_bytes -= ctx.records.charge_of(&keys);
        let reason: Arc<str> =
            format!("the call exceeded its timeout and was still hung after {seconds:.1} s").into();
        let mut back = Vec::new();
        // Lanes of which a record runs again that has run: those behind it follow it, whatever their outcome (G4).
        let mut again: HashSet<u64> = HashSet::new();
        // Of a batch handler that hangs after the last outcome, in a commit for example, every record has.
        let all_settled = (0..keys.len()).all(|i| published.outcome(i).is_some());
        for (i, &key) in keys.iter().enumerate() {
            let lane = lane_of_key(&ctx.records.slab, self.order, key);
            let known = self.deferred.get(key);
            let (number, is_first) = (known.map_or(1, |share| share.attempt), known.is_none());
            let returned = Attempt::new(key, lane, number, &ran_by);
            if !is_first {
                freed.push(returned.lane);
            }
            let outcome = published.outcome(i);
            // A batch handler may replace an outcome until its call ends. Emits are stuck in the call, so their record is run again; a
            // detail text that is stuck there is dropped.
            let counts = |outcome: &RawOutcome| {
                !ran_by.takes_batches && !has_stuck_emits(outcome) && !again.contains(&lane)
            };
            let hangs = match ran_by.takes_batches {
                true => outcome.is_none() || all_settled,
                false => outcome.is_none() && i == published.current,
            };
            if let Some(outcome) = outcome.filter(counts) {
                self.outcome(ctx, &returned, outcome, None, None);
            } else if hangs && !ctx.records.is_over(key) {
                if i == published.current {
                    self.log_hung(ctx, key, returned.number, &reason);
                }
                self.failed_attempt(ctx, &returned, reason.clone(), 0);
                if again.contains(&lane) {
                    self.follow(ctx, key);
                }
            } else {
                if outcome.is_some() {
                    ctx.count_handled_again(key);
                }
                if lane != 0 && !ran_by.takes_batches && outcome.is_some() {
                    again.insert(lane);
                }
                back.push(returned);
            }
        }
        let in_turn = back.extract_if(.., |returned| again.contains(&returned.lane));
        self.park_in_turn(ctx, &in_turn.collect::<Vec<_>>());
        self.requeue_not_run(ctx, &back, &mut freed);
        for lane in freed {
            self.release_lane(ctx, lane);
        }
        self.mark_dirty(ctx);
        ended.stopped
    }

    /// Runs a share whose time has come, if it is still due at that time: its next attempt, or a resend of what the producer
    /// refused.
    pub(crate) fn run_due<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, due_ms: u64) {
        let share = self.deferred.get(key);
        let is_due = |share: &&Share| share.state.due_ms() == Some(due_ms);
        let Some(share) = share.filter(is_due).cloned() else {
            return;
        };
        match share.state {
            ShareState::Parked { .. } => self.run_parked(ctx, key, share),
            ShareState::EmitsDue { .. } => self.send_emits_again(ctx, key, share),
            ShareState::DeadLetterDue { .. } => self.send_dead_letter(ctx, key, share),
            ShareState::Running
            | ShareState::Emitting
            | ShareState::Done
            | ShareState::DeadLettering => {}
        }
    }

    /// Starts the next attempt of a parked record whose time has come, or queues it until the handler has room and its order.
    fn run_parked<R: Record>(&mut self, ctx: &mut Context<R>, key: RecordId, share: Share) {
        if self.deferred.predecessor(key, &share).is_some() {
            return;
        }
        if self.chains.is_troubled(share.lane) {
            self.chains.park(share.lane, key);
            return;
        }
        if !self.has_room() || self.changes_order() {
            self.due.push_back(key);
            return;
        }
        let (lane, attempt) = (share.lane, share.attempt + 1);
        let share = Share {
            attempt,
            state: ShareState::Running,
            since_ms: ctx.now_ms,
            ..share
        };
        self.defer(ctx, key, share);
        self.held -= 1;
        self.requeue(ctx, key, lane, attempt);
    }

    /// Starts parked records that were due while the handler had no room, as far as it has room now.
    pub(super) fn run_queued_due<R: Record>(&mut self, ctx: &mut Context<R>) {
        while self.has_room()
            && let Some(key) = self.due.pop_front()
        {
            // It may be over, or parked again.
            let share = self.deferred.get(key);
            let is_due = |share: &&Share| matches!(share.state, ShareState::Parked { due_ms } if due_ms <= ctx.now_ms);
            if let Some(share) = share.filter(is_due).cloned() {
                self.run_parked(ctx, key, share);
            }
        }
    }

    /// Dead-letters all queued records of a failed handler. Returns whether there were any.
    pub(super) fn dead_letter_queued<R: Record>(&mut self, ctx: &mut Context<R>) -> bool {
        let queued = self.take_queued(ctx, |_| true);
        for &(key, lane) in &queued {
            let attempt = match self.deferred.get(key) {
                Some(share) => Attempt::of(key, share),
                None => Attempt::new(key, lane, 1, &self.current),
            };
            self.hold(lane);
            let reason = "the handler has failed".into();
            self.dead_letter(ctx, &attempt, REASON_FAILED, reason);
        }
        !queued.is_empty()
    }
}

/// The record's offset, if it has to follow other deferred records of its lane: those that failed in the same call of a batch
/// handler. It has to until it is over, also if a new generation does not take batches any more.
fn follows<R: Record>(ctx: &Context<R>, attempt: &Attempt) -> Option<i64> {
    if attempt.lane == 0 || !attempt.ran_by.takes_batches {
        return None;
    }
    ctx.records.slab.get(attempt.key).map(RecordEntry::offset)
}

/// What follows once the emits of an attempt are acknowledged; `None` if they do not count.
fn ending_of(code: u16) -> Option<Ending> {
    match code {
        outcome_code::ACK => Some(Ending::Ack),
        outcome_code::DROP => Some(Ending::Drop),
        outcome_code::DEAD_LETTER => Some(Ending::DeadLetter),
        _ => None,
    }
}

fn detail_of(batch: &Batch, outcome: RawOutcome) -> Option<Arc<str>> {
    let index = (outcome.detail as usize).checked_sub(1)?;
    batch
        .output
        .details
        .get(index)
        .map(|text| text.as_str().into())
}
