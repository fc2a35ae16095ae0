//! How workers process batches, and how their outcomes update the model.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};
use sluicegate_engine::dispatch::{Inbox, Published, PumpMessage};
use sluicegate_engine::emit::{Delivery, EmitFailure, Emitter, FailureKind, Sent, Way};
use sluicegate_engine::event::Event;
use sluicegate_engine::source::AssignmentId;

use super::model::Check;
use super::pools::{Emitted, SimPool};
use super::share::Stage;
use super::world::{Message, Running, ShareKey, Unanswered, World};

/// How a worker finishes one record.
enum End {
    Outcome(u16),
    /// A panic; the rest of the batch is not run.
    Panic,
    /// A hang: the call returns long after its timeout.
    Hang,
}

impl World {
    /// Advances one batch by one record, or returns it once complete.
    pub fn work(&mut self) -> Check {
        let able: Vec<usize> = (0..self.running.len())
            .filter(|&at| !self.running[at].hung && !self.running[at].stuck)
            .collect();
        if able.is_empty() {
            return Ok(());
        }
        let at = *self.random.pick(&able);
        if self.running[at].outcomes.len() == self.running[at].batch.records.len() {
            return self.return_batch(at);
        }
        self.run_one(at)
    }

    fn run_one(&mut self, at: usize) -> Check {
        let Self {
            running,
            model,
            script,
            ..
        } = self;
        let run = &mut running[at];
        let index = run.outcomes.len();
        if run.batch.cancel.is_set() {
            let records = run.batch.records.len();
            model.coverage.recalled += (records - index) as u64;
            run.outcomes.resize(records, RawOutcome::default());
            return Ok(());
        }
        let record = &run.batch.records[index];
        if record.lane != 0 && run.blocked.contains(&record.lane) {
            run.outcomes.push(RawOutcome::default());
            return Ok(());
        }
        if self.random.chance(self.faults.not_run) {
            run.outcomes.push(RawOutcome::default());
            run.blocked.push(record.lane);
            return Ok(());
        }
        let handler = run.batch.handler.0;
        let before: Vec<i64> = run.batch.records[..index]
            .iter()
            .filter(|other| other.epoch == record.epoch)
            .map(|other| other.offset)
            .collect();
        let in_batch = run.takes_batches.then_some(before.as_slice());
        model.start(
            record.epoch,
            record.offset,
            handler,
            record.attempt,
            &script.logs,
            in_batch,
        )?;
        match self.any_end() {
            End::Hang => self.hang(at),
            End::Panic => {
                let run = &mut self.running[at];
                run.batch.output.details.push("boom".into());
                run.outcomes.push(outcome(
                    outcome_code::PANICKED,
                    run.batch.output.details.len(),
                ));
                run.outcomes
                    .resize(run.batch.records.len(), RawOutcome::default());
                Ok(())
            }
            End::Outcome(code) => {
                self.end_with(at, index, code);
                Ok(())
            }
        }
    }

    fn any_end(&mut self) -> End {
        let faults = self.faults;
        let choices = [
            (faults.retry, End::Outcome(outcome_code::RETRY)),
            (faults.dead_letter, End::Outcome(outcome_code::DEAD_LETTER)),
            (faults.drop, End::Outcome(outcome_code::DROP)),
            (faults.retry / 8, End::Outcome(77)),
            (faults.panic, End::Panic),
            (faults.hang, End::Hang),
        ];
        for (percent, end) in choices {
            if self.random.chance(percent) {
                return end;
            }
        }
        End::Outcome(outcome_code::ACK)
    }

    fn end_with(&mut self, at: usize, index: usize, code: u16) {
        let keeps_emits = matches!(
            code,
            outcome_code::ACK | outcome_code::DROP | outcome_code::DEAD_LETTER
        );
        let emits = keeps_emits && self.random.chance(self.faults.emit);
        let emitted = self.random.between(1, 3) as u32;
        let explained = code != outcome_code::ACK && self.random.chance(70);
        let run = &mut self.running[at];
        let record = &run.batch.records[index];
        if explained {
            run.batch.output.details.push("because".into());
        }
        let detail = if explained {
            run.batch.output.details.len()
        } else {
            0
        };
        let mut outcome = outcome(code, detail);
        if emits {
            outcome.flags |= outcome_flag::EMITTED;
            run.emits.push((index, emitted));
        }
        run.outcomes.push(outcome);
        let frees = matches!(code, outcome_code::ACK | outcome_code::DROP);
        if !frees && !run.takes_batches && record.lane != 0 {
            run.blocked.push(record.lane);
        }
        let handler = run.batch.handler.0;
        if frees
            && let Some(share) = self.model.share(record.epoch, record.offset, handler)
            && !share.skipped
        {
            share.stage = Stage::Acked;
        }
    }

    /// The worker is abandoned: the pump receives the outcomes up to the hanging record.
    fn hang(&mut self, at: usize) -> Check {
        let run = &mut self.running[at];
        run.hung = true;
        if run.takes_batches && self.random.chance(50) {
            // It settles none before the end.
            run.outcomes.clear();
        }
        let handler = run.batch.handler.0;
        let shares = run.batch.records.iter().map(|record| {
            let share = ShareKey {
                epoch: record.epoch,
                offset: record.offset,
                handler,
            };
            (share, record.lane)
        });
        let shares = (shares.collect(), run.takes_batches);
        self.timed_out.insert(run.batch.id, shares);
        let message = PumpMessage::CallTimedOut {
            handler: run.batch.handler,
            batch: run.batch.id,
            published: Published::up_to(run.outcomes.clone()),
        };
        self.messages.push_back(Message {
            message,
            share: None,
        });
        // A new thread takes its place.
        let (pool, worker) = (run.pool.clone(), run.worker);
        self.free_worker(&pool, worker);
        Ok(())
    }

    fn free_worker(&mut self, pool: &Arc<SimPool>, worker: usize) {
        if pool.free(worker) {
            self.messages.push_back(Message {
                message: PumpMessage::PoolFree,
                share: None,
            });
        }
    }

    /// The drain of these partitions times out: what calls have finished of them settles, unless it has emits or the handler
    /// may still replace it.
    pub fn publish(&mut self, overdue: &[AssignmentId]) {
        let mut finished = Vec::new();
        for run in &self.running {
            run.pool.publish(run.batch.id, run.outcomes.clone());
            if run.takes_batches || self.is_abandoned(run.batch.id) {
                continue;
            }
            let mut open = BTreeSet::new();
            for (record, outcome) in run.batch.records.iter().zip(&run.outcomes) {
                let share = ShareKey {
                    epoch: record.epoch,
                    offset: record.offset,
                    handler: run.batch.handler.0,
                };
                let succeeded = matches!(outcome.code, outcome_code::ACK | outcome_code::DROP);
                let settles = succeeded && outcome.flags & outcome_flag::EMITTED == 0;
                if !settles {
                    open.insert(record.lane);
                } else if record.lane == 0 || !open.contains(&record.lane) {
                    finished.push((share, *outcome));
                }
            }
        }
        for (share, outcome) in finished {
            let owned = self.model.owned.get(&share.epoch);
            if owned.is_some_and(|owned| {
                overdue.contains(&owned.slot) && !owned.fenced && !owned.released
            }) {
                self.model.coverage.published += 1;
                self.count(&share, outcome, false);
            }
        }
    }

    /// A hung call returns after all: its outcomes are ignored.
    pub fn return_hung(&mut self) {
        if let Some(at) = self.running.iter().position(|run| run.hung) {
            let mut run = self.running.swap_remove(at);
            run.outcomes
                .resize(run.batch.records.len(), RawOutcome::default());
            run.batch.outcomes = run.outcomes;
            run.batch.output.clear();
            self.messages.push_back(Message {
                message: PumpMessage::Finished(run.batch),
                share: None,
            });
        }
    }

    /// Returns a batch that was not started.
    pub fn send_back(&mut self, at: usize) {
        let Running {
            pool,
            worker,
            mut batch,
            ..
        } = self.running.swap_remove(at);
        batch.not_run();
        self.model.coverage.recalled += batch.records.len() as u64;
        self.messages.push_back(Message {
            message: PumpMessage::Finished(batch),
            share: None,
        });
        self.free_worker(&pool, worker);
    }

    fn return_batch(&mut self, at: usize) -> Check {
        let mut run = self.running.swap_remove(at);
        self.emit(&mut run)?;
        let Running {
            pool,
            worker,
            mut batch,
            outcomes,
            ..
        } = run;
        batch.outcomes = outcomes;
        batch.elapsed_us = self.random.below(3_000) as u64;
        self.messages.push_back(Message {
            message: PumpMessage::Finished(batch),
            share: None,
        });
        self.free_worker(&pool, worker);
        Ok(())
    }

    /// Passes the batch's emits to the producer, as a worker does.
    fn emit(&mut self, run: &mut Running) -> Check {
        for &(index, count) in &run.emits {
            let record = &run.batch.records[index];
            let share = ShareKey {
                epoch: record.epoch,
                offset: record.offset,
                handler: run.batch.handler.0,
            };
            self.model.emits(&share, count);
            let emitted = |number| Emitted {
                epoch: share.epoch,
                offset: share.offset,
                handler: share.handler,
                index: number,
            };
            for number in 0..count {
                emitted(number).emit(index as u32, &mut run.batch.output.emits);
            }
        }
        // What the flow has sent before is not the worker's.
        self.see_given(false)?;
        let mut stopped = None;
        for (place, emit) in run.batch.output.emits.iter().enumerate() {
            let token = run.batch.shipment.at(place);
            let Some(token) = token.filter(|_| stopped != Some(emit.record)) else {
                run.batch.unsent.push(place as u32);
                continue;
            };
            self.refuse_some(self.faults.produce_fails / 8);
            let sent = (self.producer).send(&emit.to, Way::Batched, &self.inbox, token);
            if matches!(sent, Sent::Refused(_)) {
                stopped = Some(emit.record);
            }
            self.see_given(true)?;
            // Some answers arrive before the call ends.
            if self.random.chance(10) {
                self.answer_produce()?;
            }
        }
        Ok(())
    }

    /// The producer completes one record.
    pub fn answer_produce(&mut self) -> Check {
        if self.unanswered.is_empty() || self.random.chance(self.faults.produce_late) {
            return Ok(());
        }
        // Each producer answers in the order in which it was given the records; librdkafka continues behind a refused one.
        let way = self.unanswered[self.random.below(self.unanswered.len())].way;
        let first = self.unanswered.iter().position(|one| one.way == way);
        let at = first.unwrap_or_default();
        let Unanswered {
            share,
            way,
            token,
            written,
        } = self.unanswered.remove(at);
        if self.random.chance(self.faults.produce_fails) {
            let own = match way {
                Way::Batched => FailureKind::Batch,
                Way::Alone => FailureKind::Record,
            };
            let target = FailureKind::Target;
            let kinds = match self.faults.renew {
                0 => [FailureKind::Cluster, own, target],
                _ => [
                    *self.random.pick(&[FailureKind::Cluster, own]),
                    target,
                    target,
                ],
            };
            let failure = failure(*self.random.pick(&kinds));
            self.deliver(Delivery::failed(token, failure), share);
        } else {
            self.model.acknowledged(&share, written)?;
            self.deliver(Delivery::acknowledged(token), share);
        }
        Ok(())
    }

    /// The flow receives the oldest message; the model receives it just before.
    pub fn deliver_message(&mut self) -> Check {
        let Some(Message { message, share }) = self.messages.pop_front() else {
            return Ok(());
        };
        self.model.trace(|| match &message {
            PumpMessage::Finished(batch) => {
                let codes = batch.outcomes.iter().map(|outcome| outcome.code);
                let offsets = batch.records.iter().map(|record| record.offset);
                let all: Vec<_> = offsets.zip(codes).collect();
                format!("received h{} finished {all:?}", batch.handler.0)
            }
            PumpMessage::CallTimedOut {
                batch, published, ..
            } => {
                let of = self.timed_out.get(batch);
                format!("received timeout of {of:?} after {}", published.current)
            }
            PumpMessage::Delivered(deliveries) => {
                let kind = |one: &Delivery| one.failure.as_ref().map(|failure| failure.kind);
                let why: Vec<_> = deliveries.iter().map(kind).collect();
                format!("received answer {share:?}: {why:?}")
            }
            _ => "received pool free".into(),
        });
        let mut shipped = Vec::new();
        match (&message, share) {
            // The model has already accounted for a batch that timed out.
            (PumpMessage::Finished(batch), _) if self.timed_out.remove(&batch.id).is_none() => {
                let emits = &batch.output.emits;
                for (i, record) in batch.records.iter().enumerate() {
                    let pending = emits.iter().any(|emit| emit.record == i as u32);
                    let share = ShareKey {
                        epoch: record.epoch,
                        offset: record.offset,
                        handler: batch.handler.0,
                    };
                    let mut outcome = batch.outcomes[i];
                    if batch.cancel.is_cancelled() && outcome.code == outcome_code::RETRY {
                        // A retry requested by a cancelled call is not a failed attempt.
                        outcome = RawOutcome::default();
                    }
                    self.count(&share, outcome, pending);
                    if pending {
                        shipped.push(share);
                    }
                }
            }
            (
                PumpMessage::CallTimedOut {
                    batch, published, ..
                },
                _,
            ) => {
                self.count_timeout(*batch, &published.outcomes);
            }
            (PumpMessage::Delivered(deliveries), Some(share)) => {
                for one in deliveries {
                    let kind = one.failure.as_ref().map(|failure| failure.kind);
                    self.count_answer(&share, kind)?;
                }
            }
            _ => {}
        }
        for share in shipped {
            self.ship(&share)?;
        }
        self.tell(Event::Message(message))
    }

    fn count(&mut self, share: &ShareKey, outcome: RawOutcome, pending: bool) {
        let ShareKey {
            epoch,
            offset,
            handler,
        } = *share;
        let most = self.max_attempts(handler);
        let counts = self.model.share(epoch, offset, handler).cloned();
        let settles = matches!(outcome.code, outcome_code::ACK | outcome_code::DROP)
            && !pending
            // It may have been settled before its call ended, for a drain.
            && counts.is_some_and(|share| !share.skipped && share.stage != Stage::Settled)
            && !self.model.waits_in_lane(share, &self.script.logs);
        self.closing.record_event(handler, settles, self.now_ms);
        match (outcome.code, self.model.share(epoch, offset, handler)) {
            (_, Some(share)) if share.skipped => {}
            (outcome_code::ACK | outcome_code::DROP, _) if !pending => {
                self.model.settle(epoch, offset, handler);
            }
            (code, Some(share)) if pending => {
                share.stage = Stage::Producing;
                share.has_passed = true;
                share.owes_letter = code == outcome_code::DEAD_LETTER;
            }
            (outcome_code::NOT_RUN, Some(share)) => share.not_run(),
            (outcome_code::DEAD_LETTER, Some(share)) => {
                share.stage = Stage::Failed;
                share.dead_lettered = true;
            }
            (_, Some(share)) => {
                share.stage = Stage::Failed;
                share.failures += 1;
                share.dead_lettered = share.failures >= most;
            }
            (_, None) => {}
        }
    }

    fn count_timeout(
        &mut self,
        batch: sluicegate_engine::dispatch::BatchId,
        completed: &[RawOutcome],
    ) {
        let (shares, takes_batches) = self.timed_out.get(&batch).cloned().unwrap_or_default();
        let mut again = BTreeSet::new();
        for (i, (share, lane)) in shares.into_iter().enumerate() {
            let outcome = match completed.get(i) {
                // A batch handler may replace it until its call ends.
                Some(known) if takes_batches && known.code != outcome_code::NOT_RUN => {
                    RawOutcome::default()
                }
                // It has had all of them.
                _ if takes_batches => outcome(outcome_code::RETRY, 0),
                // Its emits are lost with the call, so it runs again, and those behind it in its lane.
                Some(outcome) if outcome.flags & outcome_flag::EMITTED != 0 => {
                    again.insert(lane);
                    RawOutcome::default()
                }
                Some(outcome) if lane == 0 || !again.contains(&lane) => *outcome,
                None if i == completed.len() => outcome(outcome_code::RETRY, 0),
                _ => RawOutcome::default(),
            };
            if again.contains(&lane)
                && let Some(found) = self.model.share(share.epoch, share.offset, share.handler)
            {
                found.has_passed = true;
            }
            self.count(&share, outcome, false);
        }
    }

    /// The producer's result for all emits of a share; a refusal does not count as an attempt.
    pub fn count_produced(&mut self, share: &ShareKey, refused: Option<FailureKind>) -> Check {
        let ShareKey {
            epoch,
            offset,
            handler,
        } = *share;
        let Some(found) = self.model.share(epoch, offset, handler) else {
            return Ok(());
        };
        if found.skipped {
            return Ok(());
        }
        let settles = refused.is_none() && (found.dead_lettered || !found.owes_letter);
        let settles = settles && !self.model.waits_in_lane(share, &self.script.logs);
        let Some(found) = self.model.share(epoch, offset, handler) else {
            return Ok(());
        };
        self.closing.record_event(handler, settles, self.now_ms);
        match refused {
            // The refused record was the dead letter.
            Some(_) if found.dead_lettered => found.stage = Stage::Failed,
            None if found.dead_lettered => self.model.settle(epoch, offset, handler),
            Some(FailureKind::Record) => {
                found.stage = Stage::Failed;
                found.dead_lettered = true;
            }
            Some(kind) => {
                found.refused = Some(kind);
                found.was_refused = true;
                found.could_run_again |= found.may_run_again();
            }
            None => {
                found.written_in_order(offset)?;
                if found.owes_letter {
                    found.letter_due = true;
                } else {
                    self.model.settle(epoch, offset, handler);
                }
            }
        }
        Ok(())
    }

    /// Maximum attempts of a handler, by its last settings even if it has left the snapshot.
    fn max_attempts(&self, handler: u32) -> u32 {
        self.max_attempts_of.get(&handler).copied().unwrap_or(1)
    }
}

fn outcome(code: u16, detail: usize) -> RawOutcome {
    RawOutcome {
        code,
        detail: detail as u32,
        ..RawOutcome::default()
    }
}

/// A produce failure of the given kind.
pub fn failure(kind: FailureKind) -> EmitFailure {
    EmitFailure {
        kind,
        topic: "somewhere".into(),
        error: "refused".into(),
        remedy: "none".into(),
    }
}

/// Takes the messages pushed into the inbox.
pub fn taken(inbox: &Inbox) -> Vec<PumpMessage> {
    let mut pushed = Vec::new();
    inbox.take(&mut pushed);
    pushed
}
