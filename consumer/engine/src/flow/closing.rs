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

use super::Flow;
use super::handler::{Closing, HandlerFlow, OnFailure};
use super::tasks::{Stage, Task};
use crate::dispatch::{EntryKey, FlightKey, HandlerIx, PoolState};
use crate::record::Record;

/// Time between two checks of closing handlers.
const CHECK_INTERVAL_MS: u64 = 50;

impl HandlerFlow {
    /// Whether no new record reaches it.
    fn is_closed(&self) -> bool {
        self.retiring || !self.settings.gate_open
    }

    /// Whether nothing runs its records.
    fn has_failed(&self) -> bool {
        let pool = self.settings.pool.as_ref();
        pool.is_none_or(|pool| pool.state() == PoolState::Failed)
    }

    fn settled(&self) -> u64 {
        self.counts.ack + self.counts.drop + self.counts.dead_letter
    }
}

impl<R: Record> Flow<R> {
    /// Called for a new plan: finds the handlers that are switched off or removed, and skips at once the records that
    /// no handler will run.
    pub(super) fn record_closed(&mut self) {
        self.closing.clear();
        for (place, handler) in self.handlers.iter_mut().enumerate() {
            let Some(handler) = handler else { continue };
            if !handler.is_closed() || handler.is_idle() {
                handler.closing = None;
                continue;
            }
            let now = Closing {
                moved_ms: self.now_ms,
                settled: handler.settled(),
            };
            handler.closing.get_or_insert(now);
            self.closing.push(HandlerIx(place as u32));
        }
        self.check_closing();
    }

    /// Checks closing handlers, once per `CHECK_INTERVAL_MS`.
    pub(super) fn run_closing(&mut self) {
        if !self.closing.is_empty() && self.now_ms >= self.closing_due_ms {
            self.check_closing();
            self.drop_retired();
        }
    }

    fn check_closing(&mut self) {
        self.closing_due_ms = self.now_ms + CHECK_INTERVAL_MS;
        let mut closing = std::mem::take(&mut self.closing);
        closing.retain(|&ix| self.still_closes(ix));
        self.closing = closing;
    }

    /// Skips the records that a closing handler will not finish. Returns whether it still has records.
    fn still_closes(&mut self, ix: HandlerIx) -> bool {
        let (now_ms, drain_timeout_ms) = (self.now_ms, self.settings.drain_timeout_ms);
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return false;
        };
        let settled = handler.settled();
        let failed = handler.has_failed();
        let Some(closing) = handler.closing.as_mut() else {
            return false;
        };
        if closing.settled != settled {
            *closing = Closing {
                moved_ms: now_ms,
                settled,
            };
        }
        let overdue = now_ms.saturating_sub(closing.moved_ms) >= drain_timeout_ms;
        let to_dead_letter = failed && handler.settings.on_failure == OnFailure::DeadLetter;
        if to_dead_letter {
            self.dead_letter_unstarted(ix);
        }
        if overdue || (failed && !to_dead_letter) {
            self.skip_unstarted(ix, overdue);
        }
        let handler = self.handlers[ix.0 as usize].as_mut();
        match handler {
            Some(handler) if handler.is_idle() => {
                handler.closing = None;
                false
            }
            handler => handler.is_some(),
        }
    }

    /// Dead-letters the records that are not in a call, as `on_failure: dead_letter` does for a failed handler.
    fn dead_letter_unstarted(&mut self, ix: HandlerIx) {
        if self.may_have_queued(ix) {
            self.dead_letter_queued(ix);
        }
        for key in self.waiting_of(ix, false) {
            if let Some(task) = self.tasks.get(ix, key).cloned() {
                let reason = task
                    .reason
                    .unwrap_or_else(|| "the handler has failed".into());
                self.dead_letter(ix, key, task.lane, task.attempt, task.class, reason);
            }
        }
    }

    /// Settles as skipped the handler's records that are not in a call, and with `running` also those that are: these
    /// calls are abandoned.
    fn skip_unstarted(&mut self, ix: HandlerIx, running: bool) {
        let mut skipped: Vec<EntryKey> = Vec::new();
        if self.may_have_queued(ix) {
            for (key, _) in self.take_queued(ix, |_| true) {
                // A record that ran before has a task; its lane belonged to the batch.
                self.end_task(ix, key);
                skipped.push(key);
            }
        }
        for key in self.waiting_of(ix, running) {
            if let Some(task) = self.end_task(ix, key) {
                self.unhold(ix, task.lane);
                skipped.push(key);
            }
        }
        let mut calls = 0;
        if running {
            for flight in self.flights.submitted_of(ix) {
                calls += 1;
                skipped.append(&mut self.abandon_call(ix, flight));
            }
        }
        if calls > 0
            && let Some(handler) = &self.handlers[ix.0 as usize]
            && let Some(pool) = &handler.settings.pool
        {
            pool.recall();
        }
        let mut counted = 0;
        for key in skipped {
            counted += u64::from(!self.is_over(key));
            self.settle_share(key);
        }
        if counted == 0 && calls == 0 {
            return;
        }
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.counts.skipped += counted;
            tracing::warn!(
                handler = &*handler.settings.name,
                removed = handler.retiring,
                failed = handler.has_failed(),
                skipped = counted,
                abandoned_calls = calls,
                "handler is off and does not finish its records: they are skipped"
            );
        }
        self.mark_dirty(ix);
    }

    /// Stops waiting for a call: its outcomes are discarded when they arrive. Returns its records.
    fn abandon_call(&mut self, ix: HandlerIx, flight: FlightKey) -> Vec<EntryKey> {
        let (keys, stopped) = match self.flights.get(flight) {
            Some(flight) => {
                flight.recall();
                (std::mem::take(&mut flight.keys), flight.stopped)
            }
            None => return Vec::new(),
        };
        // No record waits in its lanes: queued records were taken out before.
        self.flights.end(flight);
        let bytes: u64 = keys
            .iter()
            .filter_map(|key| self.slab.get(*key))
            .map(|entry| u64::from(entry.charge))
            .sum();
        if let Some(handler) = self.handlers[ix.0 as usize].as_mut() {
            handler.blocked = false;
            handler.in_flight_records -= keys.len() as u32;
            handler.in_flight_bytes -= bytes;
        }
        for &key in &keys {
            self.end_task(ix, key);
        }
        self.call_ended(stopped);
        keys
    }

    fn end_task(&mut self, ix: HandlerIx, key: EntryKey) -> Option<Task> {
        let task = self.tasks.remove(ix, key)?;
        self.end_refusal(ix, &task);
        Some(task)
    }

    /// Whether it may have queued records; searching its queues costs more than checking these counters.
    fn may_have_queued(&self, ix: HandlerIx) -> bool {
        self.handlers[ix.0 as usize]
            .as_ref()
            .is_some_and(|handler| {
                handler.in_flight_records > 0
                    || !handler.backlog.is_empty()
                    || handler.lanes.waiters() > 0
            })
    }

    /// Records of a handler that wait for their next attempt, and with `refused` those that wait for the cluster to
    /// accept what they emitted; in offset order.
    fn waiting_of(&self, ix: HandlerIx, refused: bool) -> Vec<EntryKey> {
        let held = self.handlers[ix.0 as usize]
            .as_ref()
            .map_or(0, |handler| handler.held);
        if held == 0 {
            return Vec::new();
        }
        let waits = |stage: Stage| match stage {
            Stage::Parked { .. } => true,
            Stage::EmitsDue { .. } => refused,
            _ => false,
        };
        let mut waiting: Vec<(i64, EntryKey)> = self
            .tasks
            .iter()
            .filter(|(of, _, task)| *of == ix && waits(task.stage))
            .filter_map(|(_, key, _)| Some((self.slab.get(key)?.offset(), key)))
            .collect();
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, key)| key).collect()
    }
}
