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
//! A record has one slab entry, however many handlers receive it; the last handler settles its offset (G1). Settling an
//! offset twice is a broken invariant (G13). An entry is freed only when no batch contains it, because a hung call may
//! still read its bytes (G14). Unrun records return to their lanes before any lane is released, or a later record of
//! the key would overtake them (G4). Outcomes with emits that a hung call has published do not count: the emits are
//! stuck in the call.

use std::sync::Arc;

use sluicegate_runtime::{RawOutcome, RawRecord, outcome_code, outcome_flag};

use super::Flow;
use super::place::lane_of_key;
use super::produce::{REASON_TERMINAL, terminal_error};
use super::rest::MAX_REQUESTED_DELAY_MS;
use super::tasks::{Ending, Stage, Task};
use crate::dispatch::{Batch, EntryKey, FlightKey, HandlerIx};
use crate::partition::assignment::AssignmentState;
use crate::record::Record;
use crate::source::AssignmentId;

/// Prefetch distance, in records: the memory of a record this far ahead is fetched early, so that freeing it does not
/// stall.
const PREFETCH: usize = 8;

const REASON_EXHAUSTED: &str = "retries_exhausted";
const REASON_FAILED: &str = "handler_failed";

impl<R: Record> Flow<R> {
    /// Handles a returned batch.
    pub(super) fn finished(&mut self, mut batch: Box<Batch>) {
        if !self.flights.is_live(batch.flight) {
            self.late(batch);
            return;
        }
        let ix = batch.handler;
        let (recalled, stopped) = self
            .flights
            .get(batch.flight)
            .map_or((false, false), |flight| (flight.recalled, flight.stopped));
        let contended = self.flights.end(batch.flight);
        let count = batch.keys.len();
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.in_flight_records -= count as u32;
            handler.in_flight_bytes -= batch.bytes;
            handler.blocked = false;
            let run = batch
                .outcomes
                .iter()
                .filter(|outcome| outcome.code != outcome_code::NOT_RUN)
                .count();
            handler.learn_cost(run as u32, batch.elapsed_us);
            if !recalled && !stopped {
                self.back_off_after(ix, run, batch.elapsed_us);
            }
        }
        let quick = batch.emits_pending.is_empty();
        let mut acked = 0;
        let mut back = Vec::new();
        let mut freed = contended;
        let mut records = std::mem::take(&mut batch.records);
        for (i, (record, &key)) in records.drain(..).zip(&batch.keys).enumerate() {
            if let Some(&later) = batch.keys.get(i + PREFETCH) {
                self.slab.prefetch(later);
            }
            let outcome = batch.outcomes.get(i).copied().unwrap_or_default();
            let (lane, attempt) = (record.lane, record.attempt);
            self.return_record(key, record);
            if outcome.code == outcome_code::ACK && quick && attempt == 1 {
                acked += 1;
                self.settle_share(key);
                continue;
            }
            if attempt > 1 {
                // Other records may have waited in the lane since before this batch.
                freed.push(lane);
            }
            // A cancelled call may request a retry of a record that is still owned: no attempt is counted for it.
            let cancelled = recalled && outcome.code == outcome_code::RETRY;
            if outcome.code == outcome_code::NOT_RUN || cancelled {
                back.push((lane, key, attempt));
                continue;
            }
            let pending = batch.emits_pending.get(i).copied().unwrap_or(false);
            let detail = detail_of(&batch, outcome);
            self.outcome(ix, key, lane, attempt, outcome, pending, detail);
        }
        batch.records = records;
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.counts.ack += acked;
        }
        self.requeue_not_run(ix, &back, &mut freed);
        self.call_ended(stopped);
        for lane in freed {
            self.release_lane(ix, lane);
        }
        self.flights.recycle(batch);
        self.mark_dirty(ix);
        self.drop_if_retired(ix);
    }

    /// Requeues records that the call did not run: they go ahead of those waiting in their lanes, and no attempt is
    /// counted.
    fn requeue_not_run(
        &mut self,
        ix: HandlerIx,
        back: &[(u64, EntryKey, u32)],
        freed: &mut Vec<u64>,
    ) {
        let first = freed.len();
        for &(lane, key, attempt) in back.iter().rev() {
            if self.is_over(key) {
                self.free_if_done(key);
                continue;
            }
            let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
                return;
            };
            if attempt > 1 {
                self.park_now(ix, key, lane, attempt);
            } else if lane == 0 {
                handler.backlog.push_front(key);
            } else {
                let flights = &self.flights;
                handler
                    .lanes
                    .wait_first(lane, &[key], |flight| flights.is_live(flight));
                freed.push(lane);
            }
        }
        // Released in offset order.
        freed[first..].reverse();
    }

    /// Requeues a record of the second or a later attempt that was not run, with the same attempt number.
    pub(super) fn park_now(&mut self, ix: HandlerIx, key: EntryKey, lane: u64, attempt: u32) {
        let reason = self.tasks.get(ix, key).and_then(|task| task.reason.clone());
        self.hold(ix, lane);
        let stage = Stage::Parked {
            due_ms: self.now_ms,
        };
        let task = Task {
            attempt: attempt - 1,
            stage,
            since_ms: self.now_ms,
            lane,
            reason,
            class: REASON_EXHAUSTED,
            ending: Ending::Ack,
            refusal: None,
            slot: self.slot_of(key),
            follows: self.follows(ix, key, lane),
        };
        self.tasks.set(ix, key, task);
    }

    #[allow(clippy::too_many_arguments)]
    fn outcome(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        lane: u64,
        attempt: u32,
        outcome: RawOutcome,
        emits_pending: bool,
        detail: Option<Arc<str>>,
    ) {
        if self.is_over(key) {
            self.free_if_done(key);
            return;
        }
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        if emits_pending && let Some(ending) = ending_of(outcome.code) {
            handler.exclusive = true;
            self.hold(ix, lane);
            let task = Task {
                attempt,
                stage: Stage::Emitting,
                since_ms: self.now_ms,
                lane,
                reason: detail,
                class: REASON_TERMINAL,
                ending,
                refusal: None,
                slot: self.slot_of(key),
                follows: self.follows(ix, key, lane),
            };
            self.tasks.set(ix, key, task);
            return;
        }
        match outcome.code {
            outcome_code::ACK => {
                handler.counts.ack += 1;
                self.tasks.remove(ix, key);
                self.settle_share(key);
            }
            outcome_code::DROP => {
                handler.counts.drop += 1;
                self.tasks.remove(ix, key);
                self.settle_share(key);
            }
            outcome_code::DEAD_LETTER => {
                let reason = detail.unwrap_or_else(terminal_error);
                self.hold(ix, lane);
                self.dead_letter(ix, key, lane, attempt, REASON_TERMINAL, reason);
            }
            outcome_code::RETRY => {
                let reason = detail.unwrap_or_else(|| "the handler requested a retry".into());
                self.failed_attempt(ix, key, lane, attempt, reason, outcome.arg);
            }
            outcome_code::PANICKED => {
                handler.counts.panics += 1;
                let reason = detail.unwrap_or_else(|| "the handler panicked".into());
                self.failed_attempt(ix, key, lane, attempt, reason, 0);
            }
            unknown => {
                let reason = format!(
                    "unknown outcome code {unknown}; the plugin is newer than this service"
                )
                .into();
                self.failed_attempt(ix, key, lane, attempt, reason, 0);
            }
        }
    }

    /// Parks the record for its next attempt, or dead-letters it after the last one.
    fn failed_attempt(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        lane: u64,
        attempt: u32,
        reason: Arc<str>,
        requested_ms: u64,
    ) {
        let random = self.random.unit();
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        handler.last_error = Some(reason.clone());
        let retry = handler.settings.retry;
        self.hold(ix, lane);
        if attempt >= retry.max_attempts {
            self.dead_letter(ix, key, lane, attempt, REASON_EXHAUSTED, reason);
            return;
        }
        let delay_ms = if requested_ms > 0 {
            requested_ms.min(MAX_REQUESTED_DELAY_MS)
        } else {
            retry.delay_ms(attempt, random)
        };
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.counts.retry += 1;
        }
        self.detach(key);
        let stage = Stage::Parked {
            due_ms: self.now_ms.saturating_add(delay_ms),
        };
        let task = Task {
            attempt,
            stage,
            since_ms: self.now_ms,
            lane,
            reason: Some(reason),
            class: REASON_EXHAUSTED,
            ending: Ending::Ack,
            refusal: None,
            slot: self.slot_of(key),
            follows: self.follows(ix, key, lane),
        };
        self.tasks.set(ix, key, task);
    }

    /// Handles a call timeout; its worker is lost. Its completed outcomes count, the record that it hangs on has
    /// failed.
    pub(super) fn call_timed_out(&mut self, flight: FlightKey, completed: &[RawOutcome]) {
        let now_ms = self.now_ms;
        let Some(hung) = self.flights.get(flight) else {
            return;
        };
        let Some(ix) = hung.handler else { return };
        let keys = std::mem::take(&mut hung.keys);
        let stopped = hung.stopped;
        let seconds = now_ms.saturating_sub(hung.submitted_ms) as f64 / 1_000.0;
        let mut freed = self.flights.end(flight);
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        handler.counts.timeouts += 1;
        handler.blocked = false;
        handler.in_flight_records -= keys.len() as u32;
        let bytes: u64 = keys
            .iter()
            .filter_map(|key| self.slab.get(*key))
            .map(|entry| u64::from(entry.charge))
            .sum();
        handler.in_flight_bytes -= bytes;
        let order = handler.order;
        let mut back = Vec::new();
        for (i, &key) in keys.iter().enumerate() {
            let lane = lane_of_key(&self.slab, order, key);
            let attempt = self.tasks.get(ix, key).map_or(1, |task| task.attempt);
            if attempt > 1 {
                freed.push(lane);
            }
            match completed.get(i) {
                // Its emits are stuck in the call, so it is run again; a detail text stuck there is dropped.
                Some(outcome)
                    if outcome.code != outcome_code::NOT_RUN
                        && outcome.flags & outcome_flag::EMITTED == 0 =>
                {
                    self.outcome(ix, key, lane, attempt, *outcome, false, None);
                }
                None if i == completed.len() && !self.is_over(key) => {
                    let reason: Arc<str> = format!(
                        "the call exceeded its timeout and was still hung after {seconds:.1} s"
                    )
                    .into();
                    self.log_hung(ix, key, attempt, &reason);
                    self.failed_attempt(ix, key, lane, attempt, reason, 0);
                }
                _ => back.push((lane, key, attempt)),
            }
        }
        self.requeue_not_run(ix, &back, &mut freed);
        self.call_ended(stopped);
        for lane in freed {
            self.release_lane(ix, lane);
        }
        self.mark_dirty(ix);
    }

    /// A batch that was abandoned earlier: its records are returned, its outcomes are discarded.
    fn late(&mut self, mut batch: Box<Batch>) {
        self.late_outcomes += batch.keys.len() as u64;
        for (record, &key) in batch.records.drain(..).zip(&batch.keys) {
            self.return_record(key, record);
            self.free_if_done(key);
        }
        self.flights.recycle(batch);
    }

    /// Runs what is due: next attempts, and resends of what the producer refused.
    pub(super) fn run_due(&mut self) {
        let handlers = &self.handlers;
        self.refusals.log_ended(self.now_ms, |ix| {
            let handler = handlers.get(ix.0 as usize)?.as_ref()?;
            Some(handler.settings.name.clone())
        });
        while let Some((ix, key)) = self.tasks.take_due(self.now_ms) {
            let Some(task) = self.tasks.get(ix, key).cloned() else {
                continue;
            };
            match task.stage {
                Stage::Parked { .. } => self.run_parked(ix, key, task),
                Stage::EmitsDue { .. } => self.send_emits_again(ix, key, task),
                Stage::DeadLetterDue { .. } => self.send_dead_letter(ix, key, task),
                Stage::Running | Stage::Emitting | Stage::DeadLettering => {}
            }
        }
    }

    /// Starts the next attempt of a parked record whose time has come, or queues it until its handler has room.
    fn run_parked(&mut self, ix: HandlerIx, key: EntryKey, task: Task) {
        if self.tasks.predecessor(ix, key, &task).is_some() {
            return;
        }
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        if !handler.has_room() {
            handler.due.push_back(key);
            return;
        }
        let (lane, attempt) = (task.lane, task.attempt + 1);
        let task = Task {
            attempt,
            stage: Stage::Running,
            since_ms: self.now_ms,
            ..task
        };
        self.tasks.set(ix, key, task);
        self.held_less(ix);
        self.requeue(ix, key, lane, attempt);
    }

    /// Starts parked records that were due while their handler had no room, as far as it has room now.
    pub(super) fn run_queued_due(&mut self, ix: HandlerIx) {
        while let Some(handler) = self.handlers[ix.0 as usize].as_mut()
            && handler.has_room()
            && let Some(key) = handler.due.pop_front()
        {
            // It may be over, or parked again.
            let task = self.tasks.get(ix, key).cloned();
            let now_ms = self.now_ms;
            let is_due =
                |task: &Task| matches!(task.stage, Stage::Parked { due_ms } if due_ms <= now_ms);
            if let Some(task) = task.filter(is_due) {
                self.run_parked(ix, key, task);
            }
        }
    }

    /// The assignment of a record that some handler defers.
    pub(super) fn slot_of(&self, key: EntryKey) -> AssignmentId {
        let entry = self.slab.get(key);
        entry.map_or(AssignmentId(u32::MAX), |entry| entry.slot)
    }

    /// The record's offset, if it has to follow other deferred records of its lane: those that failed in the same call of a
    /// batch handler. It has to until it is over, also if a new generation no longer takes batches.
    pub(super) fn follows(&self, ix: HandlerIx, key: EntryKey, lane: u64) -> Option<i64> {
        if let Some(known) = self.tasks.get(ix, key).and_then(|task| task.follows) {
            return Some(known);
        }
        let handler = self.handlers[ix.0 as usize].as_ref()?;
        let entry = self.slab.get(key)?;
        (handler.settings.takes_batches && lane != 0).then(|| entry.offset())
    }

    /// Dead-letters all queued records of a failed handler. Returns whether there were any.
    pub(super) fn dead_letter_queued(&mut self, ix: HandlerIx) -> bool {
        let queued = self.take_queued(ix, |_| true);
        for &(key, lane) in &queued {
            let attempt = self.tasks.get(ix, key).map_or(1, |task| task.attempt);
            self.hold(ix, lane);
            self.dead_letter(
                ix,
                key,
                lane,
                attempt,
                REASON_FAILED,
                "the handler has failed".into(),
            );
        }
        !queued.is_empty()
    }

    /// Settles a record for one handler; the last handler settles its offset.
    pub(super) fn settle_share(&mut self, key: EntryKey) {
        let Some(entry) = self.slab.get_mut(key) else {
            return;
        };
        if entry.unsettled == 0 {
            self.free_if_done(key);
            return;
        }
        entry.unsettled -= 1;
        if entry.unsettled > 0 {
            return;
        }
        let assignment = &mut self.partitions[entry.slot];
        assignment.unsettled -= 1;
        if assignment.state != AssignmentState::Released {
            let before = assignment.ledger.frontier();
            if !assignment.ledger.settle(entry.offset()) {
                self.fault = Some(
                    format!(
                        "offset {} of {} was settled twice (G13)",
                        entry.offset(),
                        assignment.at
                    )
                    .into(),
                );
            }
            if assignment.ledger.frontier() != before {
                assignment.moved_ms = self.now_ms;
            }
        }
        self.free_if_done(key);
    }

    /// Whether nothing more is expected of a record: it is settled, or its partition was revoked (G5).
    pub(super) fn is_over(&self, key: EntryKey) -> bool {
        self.slab.get(key).is_none_or(|entry| entry.unsettled == 0)
    }

    /// Frees a record that all handlers have settled and no batch points to.
    pub(super) fn free_if_done(&mut self, key: EntryKey) {
        let Some(entry) = self.slab.get_mut(key) else {
            return;
        };
        if entry.unsettled > 0 {
            return;
        }
        let charge = u64::from(entry.charge);
        let assignment = &mut self.partitions[entry.slot];
        if !entry.stranded {
            assignment.usage.entry_bytes -= charge;
        }
        if entry.is_lent() {
            entry.stranded = true;
            return;
        }
        self.charged -= charge;
        assignment.entries -= 1;
        assignment.usage.freed_bytes += charge;
        let slot = entry.slot;
        let released = assignment.state == AssignmentState::Released;
        self.slab.remove(key);
        if released {
            self.partitions.free_if_over(slot);
        }
    }

    pub(super) fn return_record(&mut self, key: EntryKey, record: RawRecord) {
        if let Some(entry) = self.slab.get_mut(key) {
            entry.return_record(record);
        }
    }

    /// Copies a record that will wait, so that it does not keep a whole fetch buffer alive.
    pub(super) fn detach(&mut self, key: EntryKey) {
        if let Some(entry) = self.slab.get_mut(key) {
            entry.detach();
        }
    }

    pub(super) fn hold(&mut self, ix: HandlerIx, lane: u64) {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        handler.held += 1;
        if lane != 0 {
            let flights = &self.flights;
            handler.lanes.hold(lane, |flight| flights.is_live(flight));
        }
    }

    pub(super) fn unhold(&mut self, ix: HandlerIx, lane: u64) {
        self.held_less(ix);
        if lane != 0
            && let Some(handler) = self.handlers[ix.0 as usize].as_mut()
        {
            handler.lanes.unhold(lane);
        }
    }

    pub(super) fn held_less(&mut self, ix: HandlerIx) {
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.held -= 1;
        }
        // The last one may be what the next records wait for: an order that changes.
        self.mark_dirty(ix);
    }

    pub(super) fn count(
        &mut self,
        ix: HandlerIx,
        add: impl FnOnce(&mut super::handler::OutcomeCounts),
    ) {
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            add(&mut handler.counts);
        }
    }

    pub(super) fn drop_if_retired(&mut self, ix: HandlerIx) {
        if self.handlers[ix.0 as usize]
            .as_ref()
            .is_some_and(|handler| handler.retiring)
        {
            self.drop_retired();
        }
    }
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
