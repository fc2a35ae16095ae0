//! The group coordinator: commits that it accepts or refuses, rebalances that overlap them, and partitions that are
//! released after their last commit.

use std::collections::BTreeMap;

use sluicegate_engine::event::Event;
use sluicegate_engine::partition::assignment::AssignmentState;
use sluicegate_engine::partition::committer::{HandOver, LAST_COMMIT_GRACE_MS};
use sluicegate_engine::source::starts::Commit;
use sluicegate_engine::source::{
    AssignmentId, CommitEntry, CommitError, CommitErrorKind, CommitResult, Rejection, SourceEvent,
    TopicPartition,
};

use super::client::Client;
use super::coverage::Coverage;
use super::model::{Check, Committed};
use super::world::World;

/// A commit in flight, with the broker's eventual response.
pub struct CommitUnderWay {
    pub results: Vec<CommitResult>,
    pub error: Option<CommitError>,
}

/// Partitions being revoked.
pub struct Revoke {
    pub slots: Vec<AssignmentId>,
    pub deadline_ms: u64,
    /// Their last commit has been refused at least once since they were drained.
    pub refused: bool,
}

/// The coordinator's side.
#[derive(Default)]
pub struct Group {
    /// Members are joining: every commit is refused until the rebalance completes.
    pub rebalancing: bool,
    /// Why the latest commit of a partition was refused.
    refused: BTreeMap<AssignmentId, CommitErrorKind>,
    /// By log: number of consecutive owners that inherited finished records.
    inherited: BTreeMap<usize, u64>,
}

impl Group {
    /// A partition gets an owner.
    pub fn assigned(&mut self, log: usize, inherits: bool, coverage: &mut Coverage) {
        let owners = self.inherited.entry(log).or_default();
        *owners = if inherits { *owners + 1 } else { 0 };
        coverage.inherited_again += u64::from(*owners > 1);
    }
}

impl World {
    /// Starts a rebalance, or completes the current one with a new generation.
    pub fn rebalance(&mut self) -> Check {
        if self.group.rebalancing {
            return self.settle_group();
        }
        self.model.trace(|| "the group rebalances".into());
        self.group.rebalancing = true;
        Ok(())
    }

    /// The rebalance completes; every member is notified, even if its assignment is unchanged.
    pub fn settle_group(&mut self) -> Check {
        if std::mem::take(&mut self.group.rebalancing) {
            self.model.trace(|| "the group has settled".into());
            return self.assign(&[]);
        }
        Ok(())
    }

    /// The group revokes partitions, of which some may not have been started.
    pub fn revoke(&mut self, epochs: &[u64]) -> Check {
        self.rejoins = false;
        self.model.trace(|| format!("revoke {epochs:?}"));
        let owned = epochs
            .iter()
            .map(|epoch| self.model.owned[epoch].at.clone());
        let mut partitions: Vec<TopicPartition> = owned.collect();
        let offered: Vec<TopicPartition> = self.client.offered.iter().cloned().collect();
        for at in offered {
            if self.random.chance(30) {
                self.model.coverage.offers_revoked += 1;
                self.forget_offers(std::slice::from_ref(&at));
                partitions.push(at);
            }
        }
        // The group assigns them to no member until they are released.
        self.client.revoking.extend(partitions.iter().cloned());
        let lost = false;
        self.tell_source(SourceEvent::Revoked { partitions, lost })
    }

    /// Takes over which partitions the engine has begun to drain.
    pub fn see_drains(&mut self) -> Check {
        let latest_ms = self.now_ms + self.script.drain_ms;
        let mut begun: BTreeMap<u64, Vec<AssignmentId>> = BTreeMap::new();
        for owned in self.model.owned.values_mut() {
            if owned.released || owned.draining {
                continue;
            }
            let AssignmentState::Draining { deadline_ms } =
                self.engine.flow().assignment(owned.slot).state()
            else {
                continue;
            };
            if deadline_ms > latest_ms {
                return Err(format!(
                    "the drain of {} may take until {deadline_ms}, not {latest_ms}",
                    owned.at
                ));
            }
            owned.draining = true;
            owned.records.retain(|_, held| held.admitted);
            begun.entry(deadline_ms).or_default().push(owned.slot);
        }
        for (deadline_ms, slots) in begun {
            self.model.trace(|| format!("drain {slots:?}"));
            self.revokes.push(Revoke {
                slots,
                deadline_ms,
                refused: false,
            });
        }
        Ok(())
    }

    /// Whether no partition is kept longer than its last commit may take.
    pub fn check_revokes(&self) -> Check {
        for revoke in &self.revokes {
            // A member that stops leaves with all its partitions at once.
            let deadlines = self.revokes.iter().map(|revoke| revoke.deadline_ms);
            let deadline_ms = match self.engine.is_stopping() {
                true => deadlines.max().unwrap_or_default(),
                false => revoke.deadline_ms,
            };
            let last_ms = deadline_ms + LAST_COMMIT_GRACE_MS;
            if self.now_ms >= last_ms {
                return Err(format!("{:?} are kept beyond {last_ms}", revoke.slots));
            }
        }
        Ok(())
    }

    /// The engine hands partitions over. Returns how many without their last commit; `reported` of this step are known to
    /// the engine.
    pub fn release(&mut self, partitions: &[TopicPartition], reported: u64) -> Result<u64, String> {
        self.forget_offers(partitions);
        let owned = partitions.iter().filter_map(|at| self.model.current(at));
        let slots: Vec<AssignmentId> = owned.map(|owned| owned.slot).collect();
        self.hand_over(&slots, reported)
    }

    fn hand_over(&mut self, slots: &[AssignmentId], reported: u64) -> Result<u64, String> {
        let mut left = 0;
        for &slot in slots {
            let revoke = self
                .revokes
                .iter()
                .find(|revoke| revoke.slots.contains(&slot))
                .ok_or_else(|| format!("slot {} is released without a drain", slot.0))?;
            (self.model).leave_what_runs_again(slot, &self.script.logs);
            let (in_time, was_refused) = (self.now_ms < revoke.deadline_ms, revoke.refused);
            // The engine fences at the deadline and does not count records that finish later.
            left += u64::from(in_time && self.model.uncommitted(slot, true).is_some());
            let hopeless = matches!(
                self.group.refused.get(&slot),
                Some(CommitErrorKind::NotMember | CommitErrorKind::Rejected(_))
            );
            let finished = self.model.uncommitted(slot, false);
            if in_time
                && !hopeless
                && let Some(offset) = finished
            {
                return Err(format!(
                    "slot {} is released in time, but its finished offset {offset} is not committed (G3)",
                    slot.0
                ));
            }
            self.model.coverage.accepted_later += u64::from(was_refused && reported == 0);
            self.group.refused.remove(&slot);
            self.model.release(slot, in_time && finished.is_none());
        }
        self.forget_revoked(slots);
        Ok(left)
    }

    fn forget_revoked(&mut self, slots: &[AssignmentId]) {
        for revoke in &mut self.revokes {
            revoke.slots.retain(|slot| !slots.contains(slot));
        }
        self.revokes.retain(|revoke| !revoke.slots.is_empty());
    }

    /// The member leaves the group; then a new client joins it, or another process.
    pub fn leave(&mut self, renew: bool, reported: u64) -> Result<u64, String> {
        let ours = self.model.owned.values().filter(|owned| !owned.released);
        let slots: Vec<AssignmentId> = ours.map(|owned| owned.slot).collect();
        let left = self.hand_over(&slots, reported)?;
        self.model
            .trace(|| format!("the member leaves, and renews its client: {renew}"));
        self.rejoins = false;
        // The old client's answers are lost with it.
        self.commit = None;
        self.client = Client::default();
        self.group.rebalancing = false;
        let confirmed = self.random.chance(80);
        self.tell(Event::Left { confirmed })?;
        if renew {
            self.model.coverage.clients_renewed += 1;
            self.tell(Event::ClientRenewed)?;
        } else {
            self.model.coverage.stops += 1;
            self.start_process();
        }
        Ok(left)
    }

    fn accept(&mut self, entry: &CommitEntry) {
        let Some(owned) = self.model.current(&entry.at) else {
            return;
        };
        let committed = Committed {
            commit: Commit {
                offset: entry.offset,
                leader_epoch: entry.leader_epoch,
                metadata: entry.metadata.clone(),
            },
            topic_id: self.script.logs[owned.log].topic_id,
        };
        self.model.committed.insert(entry.at.clone(), committed);
    }

    /// Sends a commit; the broker decides immediately and responds later.
    pub fn send_commit(&mut self, mut entries: Vec<CommitEntry>) -> Check {
        entries.sort_by(|a, b| a.at.cmp(&b.at));
        if self.commit.is_some() {
            return Err("another commit while one is in flight".into());
        }
        for entry in &entries {
            self.model.check_commit(entry, &self.script.logs)?;
            self.model.claim(entry, &self.script.logs)?;
        }
        let fails = self.faults.commit_fails;
        if self.random.chance(fails / 4) {
            return self.tell_source(SourceEvent::Committed {
                results: Vec::new(),
                error: Some(refusal(CommitErrorKind::Unavailable)),
            });
        }
        let answer_lost = self.random.chance(fails / 2);
        let arrives = !answer_lost || self.random.chance(50);
        let mut results = Vec::new();
        for entry in entries {
            let refused = self.refuses(fails);
            let slot = self.model.current(&entry.at).map(|owned| owned.slot);
            if arrives && refused.is_none() {
                self.accept(&entry);
            }
            if let Some(slot) = slot {
                match refused {
                    Some(kind) if !answer_lost => drop(self.group.refused.insert(slot, kind)),
                    _ => drop(self.group.refused.remove(&slot)),
                }
                self.see_refusal(slot, refused);
            }
            results.push(CommitResult {
                at: entry.at,
                offset: entry.offset,
                error: refused.map(refusal),
            });
        }
        self.commit = Some(CommitUnderWay {
            results: if answer_lost { Vec::new() } else { results },
            error: answer_lost.then(|| refusal(CommitErrorKind::Unavailable)),
        });
        Ok(())
    }

    fn refuses(&mut self, fails: u32) -> Option<CommitErrorKind> {
        if self.group.rebalancing {
            return Some(CommitErrorKind::Rebalancing);
        }
        let kinds = [
            CommitErrorKind::Unavailable,
            CommitErrorKind::Rebalancing,
            CommitErrorKind::Rejected(Rejection::Other),
        ];
        self.random.chance(fails).then(|| *self.random.pick(&kinds))
    }

    fn see_refusal(&mut self, slot: AssignmentId, refused: Option<CommitErrorKind>) {
        let revoke = self
            .revokes
            .iter_mut()
            .find(|revoke| revoke.slots.contains(&slot));
        if let Some(revoke) = revoke
            && refused == Some(CommitErrorKind::Rebalancing)
            && self.engine.flow().hand_over(&revoke.slots) == HandOver::Committing
        {
            revoke.refused = true;
            self.model.coverage.last_refused += 1;
        }
    }

    /// The broker's response arrives.
    pub fn answer_commit(&mut self) -> Check {
        match self.commit.take() {
            None => Ok(()),
            Some(CommitUnderWay { results, error }) => {
                self.tell_source(SourceEvent::Committed { results, error })
            }
        }
    }

    /// Partitions are lost without notice.
    pub fn lose(&mut self, epochs: &[u64]) -> Check {
        self.rejoins = false;
        let ours = epochs
            .iter()
            .filter_map(|epoch| self.model.owned.get(epoch));
        let (slots, partitions): (Vec<AssignmentId>, Vec<TopicPartition>) =
            ours.map(|owned| (owned.slot, owned.at.clone())).unzip();
        self.forget(&slots);
        let lost = true;
        self.tell_source(SourceEvent::Revoked { partitions, lost })
    }

    /// The model releases partitions that are about to be lost.
    pub fn forget(&mut self, slots: &[AssignmentId]) {
        for revoke in &self.revokes {
            let committing = self.engine.flow().hand_over(&revoke.slots) == HandOver::Committing;
            if committing {
                let gone = revoke.slots.iter().filter(|slot| slots.contains(slot));
                self.model.coverage.lost_before_last_commit += gone.count() as u64;
            }
        }
        self.forget_revoked(slots);
        for &slot in slots {
            self.group.refused.remove(&slot);
            self.model.release(slot, false);
        }
    }

    /// The client alone reaches no broker: it is replaced, and its partitions are lost.
    pub fn replace_client(&mut self) -> Check {
        let ours = self.model.owned.values().filter(|owned| !owned.released);
        let slots: Vec<AssignmentId> = ours.map(|owned| owned.slot).collect();
        self.forget(&slots);
        self.tell(Event::ClientStuck)
    }
}

fn refusal(kind: CommitErrorKind) -> CommitError {
    CommitError {
        kind,
        reason: format!("{kind:?}"),
    }
}
