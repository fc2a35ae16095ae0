//! Records passed to the producer by workers and by the flow: attributes them, and checks whether they may be sent.

use sluicegate_engine::emit::FailureKind;
use sluicegate_engine::queue::OnFailure;

use super::model::Check;
use super::pools::{DeadLetter, Handed, InProducer};
use super::share::Stage;
use super::workers::{failure, taken};
use super::world::{ShareKey, Unanswered, World};

impl World {
    /// Takes the records that a worker, or else the flow, passed to the producer. Refused ones are completed immediately.
    pub fn see_given(&mut self, by_worker: bool) -> Check {
        for given in self.producer.given() {
            let InProducer {
                what,
                way,
                refused,
                ticket,
            } = given;
            let (share, written) = match what {
                Handed::Letter(letter) => (self.check_dead_letter(&letter)?, None),
                Handed::Emit(emitted) => {
                    let written = self.model.emitted(&emitted, !refused, by_worker)?;
                    let share = ShareKey {
                        epoch: emitted.epoch,
                        offset: emitted.offset,
                        handler: emitted.handler,
                    };
                    (share, written)
                }
            };
            if !refused {
                self.unanswered.push(Unanswered {
                    share,
                    way,
                    ticket,
                    written,
                });
                continue;
            }
            let kind = *self
                .random
                .pick(&[FailureKind::Cluster, FailureKind::Target]);
            ticket.failed(failure(kind));
            let pushed = taken(&self.inbox);
            self.expect(pushed, Some(share))?;
        }
        Ok(())
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
        let gives_up =
            on_failure == Some(&OnFailure::DeadLetter) && self.closing.has_failed(letter.handler);
        let share = self
            .model
            .share(epoch, letter.offset, letter.handler)
            .ok_or_else(|| format!("an unexpected dead letter: {letter:?}"))?;
        match share.stage {
            Stage::Failed if share.dead_lettered => {}
            // Queued records of a failed handler are dead-lettered without an attempt.
            Stage::Queued | Stage::Failed if gives_up => {}
            // So is one that was to be run again instead of having its emits produced again.
            Stage::Producing if gives_up && share.may_run_again() => {}
            stage => return Err(format!("a dead letter while {stage:?}: {letter:?}")),
        }
        share.stage = Stage::Producing;
        share.dead_lettered = true;
        Ok(ShareKey {
            epoch,
            offset: letter.offset,
            handler: letter.handler,
        })
    }
}
