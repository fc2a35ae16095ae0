//! What calls have published before they return: each outcome, record by record (ADR 0011). It tells which record of a call that
//! takes long is the one it is at, and what counts of a call that outlasts a drain.

use std::collections::HashSet;

use sluicegate_runtime::{RawOutcome, outcome_code, outcome_flag};

use super::HandlerQueue;
use super::context::Context;
use super::lane::lane_of_key;
use crate::dispatch::RecordId;
use crate::record::Record;
use crate::records::Records;
use crate::status::WaitsFor;

impl HandlerQueue {
    /// Settles the records that `wanted` selects and that running calls have finished, before their partitions are fenced: the
    /// next owner would handle them again (G3). Outcomes with emits do not count: the emits are not handed over yet. Nor do those
    /// of a batch handler, which may replace them until its call ends.
    pub(crate) fn settle_published<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        wanted: impl Fn(&Records<R>, &RecordId) -> bool,
    ) {
        for id in self.batches.submitted_keys() {
            let Some(call) = self.batches.peek(id) else {
                continue;
            };
            if call.takes_batches() || !call.keys.iter().any(|key| wanted(&ctx.records, key)) {
                continue;
            }
            let published = call.published(id, &ctx.inbox).unwrap_or_default();
            let finished = call.keys.iter().zip(&published.outcomes);
            // Those behind an unfinished one of their lane would settle before it.
            let mut open: HashSet<u64> = HashSet::new();
            let lane = |key: RecordId| lane_of_key(&ctx.records.slab, self.order, key);
            let finished: Vec<(RecordId, u16)> = finished
                .filter(|(key, outcome)| {
                    let lane = lane(**key);
                    let is_first = lane == 0 || !open.contains(&lane);
                    if !settles_at_once(outcome) {
                        open.insert(lane);
                    }
                    // Nor do those settle before the ones of their lane that wait for the producer.
                    let settles = is_first && settles_at_once(outcome) && !self.chains.has(lane);
                    settles && wanted(&ctx.records, key)
                })
                .map(|(key, outcome)| (*key, outcome.code))
                .collect();
            let ran_by = call.ran_by();
            for (key, code) in finished {
                let counts = self.counts.of(ran_by.as_deref().unwrap_or(&self.current));
                match code {
                    outcome_code::DROP => counts.drop += 1,
                    _ => counts.ack += 1,
                }
                self.errors.succeeded();
                self.end_share(ctx, key);
                ctx.records.settle_share(key, ctx.now_ms);
            }
        }
    }

    /// What a record waits for that is in a call: its outcome, or the record that the call is at.
    pub(super) fn waits_in_call<R: Record>(
        &self,
        ctx: &Context<R>,
        key: RecordId,
    ) -> Option<(u64, WaitsFor)> {
        let calls = self.batches.submitted_keys().into_iter();
        let mut calls = calls.filter_map(|id| Some((id, self.batches.peek(id)?)));
        let (id, call) = calls.find(|(_, call)| call.keys.contains(&key))?;
        // A batch handler has all records of the call at once.
        let in_turn = !call.takes_batches();
        let published = in_turn.then(|| call.published(id, &ctx.inbox)).flatten();
        let current = published.and_then(|published| call.keys.get(published.current));
        let other = current.filter(|current| **current != key);
        let entry = other.and_then(|other| ctx.records.slab.get(*other));
        // An offset of another partition would say nothing.
        let entry = entry.filter(|entry| entry.slot == ctx.records.slot_of(key));
        let waits_for = match entry {
            Some(entry) => WaitsFor::Call {
                runs: entry.offset(),
            },
            None => WaitsFor::Handler,
        };
        Some((call.submitted_ms, waits_for))
    }
}

/// Whether a published outcome settles its record at once.
fn settles_at_once(outcome: &RawOutcome) -> bool {
    outcome.succeeds() && outcome.flags & outcome_flag::EMITTED == 0
}
