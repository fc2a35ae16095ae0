//! What the model knows of emitted records: their copies in the output topic, in which order these are, and which records of a
//! lane wait for them.

use sluicegate_engine::partition::commit::{CommitMetadata, CommitTarget};
use sluicegate_engine::queue::Order;
use sluicegate_engine::source::{AssignmentId, CommitEntry};

use super::model::{Check, Model, Owned};
use super::pools::Emitted;
use super::script::Log;
use super::share::{Share, Stage};
use super::world::ShareKey;

impl Model {
    /// A handler emitted `count` records for a record.
    pub fn emits(&mut self, of: &ShareKey, count: u32) {
        if let Some(share) = self.share(of.epoch, of.offset, of.handler) {
            share.emits = count;
            share.written.clear();
        }
    }

    /// An emitted record was passed to the producer; if `taken`, returns its index among the share's written copies.
    pub fn emitted(
        &mut self,
        emitted: &Emitted,
        taken: bool,
        by_worker: bool,
    ) -> Result<Option<usize>, String> {
        let Emitted {
            epoch,
            offset,
            handler,
            index,
        } = *emitted;
        let Some(share) = self.share(epoch, offset, handler) else {
            return match by_worker {
                true => Ok(None),
                false => Err(format!(
                    "emits of {offset} are produced again after its release (G5)"
                )),
            };
        };
        if share.dead_lettered {
            return Err(format!(
                "emits of {offset} are produced after its last attempt"
            ));
        }
        if share.skipped && !by_worker {
            return Err(format!(
                "emits of {offset} are produced again after it was skipped"
            ));
        }
        share.refused = None;
        share.letter_due = false;
        let unsettled = share.stage == Stage::Settled && !share.claimed && !share.skipped;
        if unsettled {
            // It has waited for those before it in its lane, and is written again behind them.
            share.stage = Stage::Producing;
        }
        let again = share
            .written
            .iter()
            .any(|(copy, at)| *copy == index && at.is_some());
        self.coverage.written_again += u64::from(again);
        let log = self.owned.get(&epoch).map(|owned| owned.log);
        if unsettled && let Some(log) = log {
            self.settled_ever.remove(&(log, offset));
        }
        let Some(share) = self.share(epoch, offset, handler) else {
            return Ok(None);
        };
        if !taken {
            return Ok(None);
        }
        share.written.push((index, None));
        Ok(Some(share.written.len() - 1))
    }

    /// The broker acknowledged an emitted record.
    pub fn acknowledged(&mut self, of: &ShareKey, written: Option<usize>) -> Check {
        self.written += 1;
        let place = self.written;
        if let Some(share) = self.share(of.epoch, of.offset, of.handler)
            && let Some(copy) = written.and_then(|at| share.written.get_mut(at))
        {
            copy.1 = Some(place);
            if share.claimed && !share.skipped {
                return Err(format!(
                    "an emit of {} is written after its commit (G4)",
                    of.offset
                ));
            }
        }
        Ok(())
    }

    /// Whether a share runs again that has run, because one before it in its lane does.
    pub fn may_follow_again(&self, of: &ShareKey, logs: &[Log]) -> bool {
        let ShareKey {
            epoch,
            offset,
            handler,
        } = *of;
        let Some(owned) = self.owned.get(&epoch) else {
            return false;
        };
        let held = owned.records.get(&offset);
        let Some(this) = held.and_then(|held| held.shares.get(&handler)) else {
            return false;
        };
        if this.claimed || this.skipped || !matches!(this.stage, Stage::Producing | Stage::Settled)
        {
            return false;
        }
        // Lanes can have merged since.
        let by_partition = |one: &Share| one.order != Order::Key;
        owned.records.iter().any(|(&other, held)| {
            held.shares.get(&handler).is_some_and(|before| {
                let same_lane = by_partition(this)
                    || by_partition(before)
                    || owned.in_one_lane(logs, Order::Key, (offset, other));
                // A later one that was started under an order without this lane stands before it where they have merged.
                let overtook = |first| !owned.in_one_lane(logs, first, (other, offset));
                let stands_before = match other < offset {
                    true => true,
                    false => other > offset && before.first_order.is_some_and(overtook),
                };
                before.could_run_again && same_lane && stands_before
            })
        })
    }

    /// Whether a record before it in its lane waits for the producer, or has waited after a refusal: it settles after that one, and
    /// perhaps only when it is written again.
    pub fn waits_in_lane(&self, of: &ShareKey, logs: &[Log]) -> bool {
        let Some(owned) = self.owned.get(&of.epoch).filter(|owned| !owned.released) else {
            return false;
        };
        let share = owned.records.get(&of.offset);
        let Some(share) = share.and_then(|held| held.shares.get(&of.handler)) else {
            return false;
        };
        owned.records.range(..of.offset).any(|(earlier, held)| {
            let before = held.shares.get(&of.handler);
            let waits = |before: &Share| before.stage == Stage::Producing && !before.skipped;
            before.is_some_and(|before| waits(before) || before.was_refused)
                && owned.in_one_lane(logs, share.order, (of.offset, *earlier))
        })
    }

    /// A commit covers records: what they have emitted is final, and stands in the order of their lanes.
    pub fn claim(&mut self, entry: &CommitEntry, logs: &[Log]) -> Check {
        let target = CommitTarget {
            group: "g",
            at: &entry.at,
            offset: entry.offset,
        };
        let read = CommitMetadata::decode(&entry.metadata, target);
        let finished = read.metadata.map(|read| read.finished).unwrap_or_default();
        let mut ours = self.owned.values_mut();
        let Some(owned) = ours.find(|owned| !owned.released && owned.at == entry.at) else {
            return Ok(());
        };
        let covered = |offset: i64| {
            offset < entry.offset || finished.iter().any(|range| range.contains(&offset))
        };
        let new: Vec<(i64, u32)> = owned
            .records
            .iter()
            .filter(|(offset, _)| covered(**offset))
            .flat_map(|(offset, held)| {
                let new = held.shares.iter().filter(|(_, share)| !share.claimed);
                new.map(|(handler, _)| (*offset, *handler))
            })
            .collect();
        for (offset, handler) in new {
            check_emits(owned, offset, handler, logs, covered)
                .map_err(|broken| format!("{}/{offset} in h{handler}: {broken} (G4)", owned.at))?;
            if let Some(held) = owned.records.get_mut(&offset)
                && let Some(share) = held.shares.get_mut(&handler)
            {
                share.claimed = true;
            }
        }
        Ok(())
    }

    /// A record is skipped that was perhaps to run again with its lane: then so is what stands behind it, although it had been
    /// written, and nothing is promised about its order.
    pub fn skip_what_runs_again(&mut self, of: &ShareKey) {
        let Some(owned) = self.owned.get_mut(&of.epoch) else {
            return;
        };
        let behind = owned.records.range_mut(of.offset + 1..);
        let shares = behind.filter_map(|(_, held)| held.shares.get_mut(&of.handler));
        for share in shares.filter(|share| share.stage == Stage::Settled && !share.claimed) {
            share.see_order(Order::Unordered);
        }
    }

    /// What was to run again with its lane when a partition is handed over is left to the next owner.
    pub fn leave_what_runs_again(&mut self, slot: AssignmentId, logs: &[Log]) {
        let ours = self.owned.iter();
        let ours = ours.filter(|(_, owned)| owned.slot == slot && !owned.released);
        let shares = ours.flat_map(|(&epoch, owned)| {
            owned.records.iter().flat_map(move |(&offset, held)| {
                let handlers = held.shares.iter();
                let settled = handlers.filter(|(_, share)| share.stage == Stage::Settled);
                settled.map(move |(&handler, _)| ShareKey {
                    epoch,
                    offset,
                    handler,
                })
            })
        });
        let again = |of: &ShareKey| self.may_follow_again(of, logs);
        for of in shares.filter(again).collect::<Vec<_>>() {
            if let Some(share) = self.share(of.epoch, of.offset, of.handler) {
                share.not_run();
            }
        }
    }
}

/// What a record has emitted stands behind what those before it in its lane have, and these are over.
fn check_emits(
    owned: &Owned,
    offset: i64,
    handler: u32,
    logs: &[Log],
    covered: impl Fn(i64) -> bool,
) -> Check {
    let share = &owned.records[&offset].shares[&handler];
    // What is left of one that was abandoned has no order.
    let is_written = !(share.skipped || share.dead_lettered);
    let Some((first, _)) = share.places().filter(|_| is_written) else {
        return Ok(());
    };
    let same_lane = |order: Option<Order>, other: i64| {
        order.is_some_and(|order| owned.in_one_lane(logs, order, (offset, other)))
    };
    for (&earlier, other) in owned.records.range(..offset) {
        let Some(before) = other.shares.get(&handler) else {
            continue;
        };
        let in_lane = same_lane(share.first_order, earlier)
            && same_lane(before.first_order, earlier)
            && [share.order, before.order, share.loosest, before.loosest]
                .into_iter()
                .all(|order| same_lane(Some(order), earlier));
        if !in_lane || before.skipped || before.started > share.started {
            continue;
        }
        if !covered(earlier) && before.passes() {
            return Err(format!("{earlier} before it is not settled"));
        }
        if let Some((_, last)) = before.places().filter(|_| !before.dead_lettered)
            && last > first
        {
            return Err(format!(
                "it was written before {earlier}, at {first} and {last}"
            ));
        }
    }
    Ok(())
}
