//! Records passed to the producer by workers and by the flow: attributes them, and checks whether they may be sent.

use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_engine::emit::{Delivery, FailureKind};
use sluicegate_engine::queue::OnFailure;

use super::model::Check;
use super::pools::{DeadLetter, Handed, InProducer};
use super::share::Stage;
use super::workers::{failure, taken};
use super::world::{Message, ShareKey, Unanswered, World};

impl World {
    /// The producer refuses what it is given next, in so many percent of the cases.
    pub fn refuse_some(&mut self, percent: u32) {
        let kinds = [FailureKind::Cluster, FailureKind::Target];
        let kind = (self.random.chance(percent)).then(|| *self.random.pick(&kinds));
        self.producer.set_refusing(kind);
    }

    /// Takes the records that a worker, or else the flow, passed to the producer. Refused ones are answered immediately.
    pub fn see_given(&mut self, by_worker: bool) -> Check {
        let mut refusals = Vec::new();
        for given in self.producer.given() {
            let InProducer {
                what,
                way,
                refused,
                token,
            } = given;
            let (share, written) = match what {
                Handed::Letter(letter) => (self.check_dead_letter(&letter)?, None),
                Handed::Emit(emitted) => {
                    let taken = refused.is_none();
                    let written = self.model.emitted(&emitted, taken, by_worker)?;
                    let share = ShareKey {
                        epoch: emitted.epoch,
                        offset: emitted.offset,
                        handler: emitted.handler,
                    };
                    (share, written)
                }
            };
            let round = self.rounds.entry(share.clone()).or_default();
            round.unanswered += 1;
            round.shipped |= !by_worker;
            match refused {
                Some(kind) => refusals.push((token, kind, share)),
                None => self.unanswered.push(Unanswered {
                    share,
                    way,
                    token,
                    written,
                }),
            }
        }
        // The flow has answered them itself.
        let answered = if by_worker { refusals.len() } else { 0 };
        if taken(&self.inbox).len() + answered != refusals.len() {
            return Err("a refused record is not answered".into());
        }
        for (token, kind, share) in refusals {
            self.deliver(Delivery::failed(token, failure(kind)), share);
        }
        Ok(())
    }

    /// The flow will receive an answer.
    pub fn deliver(&mut self, delivery: Delivery, share: ShareKey) {
        self.messages.push_back(Message {
            message: PumpMessage::Delivered(vec![delivery]),
            share: Some(share),
        });
    }

    /// The flow receives an answer; the share is over, or refused, once it has all of them.
    pub fn count_answer(&mut self, share: &ShareKey, failure: Option<FailureKind>) -> Check {
        let Some(round) = self.rounds.get_mut(share) else {
            return Err("an answer for what was not sent".into());
        };
        round.unanswered -= 1;
        round.worst = round.worst.max(failure);
        self.end_round(share)
    }

    /// The flow learns what a call has emitted for a share.
    pub fn ship(&mut self, share: &ShareKey) -> Check {
        self.rounds.entry(share.clone()).or_default().shipped = true;
        self.end_round(share)
    }

    fn end_round(&mut self, share: &ShareKey) -> Check {
        let round = self.rounds.get(share);
        if round.is_none_or(|round| round.unanswered > 0 || !round.shipped) {
            return Ok(());
        }
        let worst = self.rounds.remove(share).and_then(|round| round.worst);
        self.count_produced(share, worst)
    }

    fn check_dead_letter(&mut self, letter: &DeadLetter) -> Result<ShareKey, String> {
        let found = self.model.owned.iter().find(|(_, owned)| {
            !owned.released
                && *owned.at.topic == *letter.topic
                && owned.at.partition == letter.partition
        });
        let Some((&epoch, owned)) = found else {
            return Err(format!("a dead letter of a released partition: {letter:?}"));
        };
        let record = self.script.logs[owned.log].record(letter.offset);
        let faithful = record.is_some_and(|record| {
            record.key == letter.key
                && Some(&record.value) == letter.value.as_ref()
                && record.headers == letter.headers
                && letter.to == format!("{}.dlt", letter.topic)
        });
        if !faithful {
            return Err(format!("a dead letter is not its record (G7): {letter:?}"));
        }
        let on_failure = self.on_failure_of.get(&letter.handler);
        let dead_letters =
            on_failure == Some(&OnFailure::DeadLetter) && self.closing.has_failed(letter.handler);
        let of = ShareKey {
            epoch,
            offset: letter.offset,
            handler: letter.handler,
        };
        let again = (self.model).may_follow_again(&of, &self.script.logs);
        let share = self
            .model
            .share(epoch, letter.offset, letter.handler)
            .ok_or_else(|| format!("an unexpected dead letter: {letter:?}"))?;
        match share.stage {
            Stage::Failed if share.dead_lettered => {}
            Stage::Producing if share.letter_due => share.owes_letter = false,
            // Queued records of a failed handler are dead-lettered without an attempt.
            Stage::Queued | Stage::Failed if dead_letters => {}
            // So is one that was to be run again instead of having its emits produced again.
            Stage::Producing | Stage::Settled if dead_letters && again => {}
            Stage::Producing if dead_letters && share.may_run_again() => {}
            stage => return Err(format!("a dead letter while {stage:?}: {letter:?}")),
        }
        share.stage = Stage::Producing;
        share.dead_lettered = true;
        Ok(of)
    }
}
