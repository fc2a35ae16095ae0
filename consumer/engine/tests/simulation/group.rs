//! The group coordinator: commits that it accepts or refuses, rebalances that overlap them, and partitions that are
//! released after their last commit.

use std::collections::BTreeMap;

use sluicegate_engine::flow::commits::{HandOver, LAST_COMMIT_GRACE_MS};
use sluicegate_engine::source::starts::Commit;
use sluicegate_engine::source::{
    AssignmentId, CommitEntry, CommitError, CommitErrorKind, CommitResult, Rejection,
};

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
    inherited: BTreeMap<usize, u32>,
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
    pub fn rebalance(&mut self) {
        if self.group.rebalancing {
            self.settle_group();
        } else {
            self.model.trace(|| "the group rebalances".into());
            self.group.rebalancing = true;
        }
    }

    /// The rebalance completes; every member is notified, even if its assignment is unchanged.
    pub fn settle_group(&mut self) {
        if std::mem::take(&mut self.group.rebalancing) {
            self.model.trace(|| "the group has settled".into());
            self.flow.group_settled();
        }
    }

    /// Releases drained partitions once their last commit is accepted, or can no longer be.
    pub fn finish_revokes(&mut self) -> Check {
        for revoke in std::mem::take(&mut self.revokes) {
            match self.flow.hand_over(&revoke.slots) {
                HandOver::Draining | HandOver::Committing => {
                    let last = revoke.deadline_ms + LAST_COMMIT_GRACE_MS;
                    if self.now_ms >= last {
                        return Err(format!("{:?} are kept beyond {last}", revoke.slots));
                    }
                    self.revokes.push(revoke);
                }
                HandOver::Ready { uncommitted } => self.release(revoke, uncommitted)?,
            }
        }
        Ok(())
    }

    fn release(&mut self, revoke: Revoke, uncommitted: usize) -> Check {
        let in_time = self.now_ms < revoke.deadline_ms;
        let mut left = 0;
        for &slot in &revoke.slots {
            // The flow fences at the deadline and does not count records that finish later.
            left += usize::from(in_time && self.model.uncommitted(slot, true).is_some());
            let hopeless = matches!(
                self.group.refused.get(&slot),
                Some(CommitErrorKind::NotMember | CommitErrorKind::Rejected(_))
            );
            if in_time
                && !hopeless
                && let Some(offset) = self.model.uncommitted(slot, false)
            {
                return Err(format!(
                    "slot {} is released in time, but its finished offset {offset} is not committed (G3)",
                    slot.0
                ));
            }
        }
        if left > uncommitted {
            return Err(format!(
                "{left} last commits are missing, {uncommitted} are reported"
            ));
        }
        self.model.coverage.accepted_later += u64::from(revoke.refused && uncommitted == 0);
        self.flow.release(&revoke.slots);
        for slot in revoke.slots {
            let clean = in_time && self.model.uncommitted(slot, false).is_none();
            self.group.refused.remove(&slot);
            self.model.release(slot, clean);
        }
        Ok(())
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

    /// Sends the flow's due commits; the broker decides immediately and responds later.
    pub fn send_commit(&mut self) -> Check {
        let mut entries = self.flow.commits_due();
        entries.sort_by(|a, b| a.at.cmp(&b.at));
        if entries.is_empty() {
            return Ok(());
        }
        if self.commit.is_some() {
            return Err("a second commit while one is in flight".into());
        }
        for entry in &entries {
            self.model.check_commit(entry, &self.script.logs)?;
        }
        let fails = self.faults.commit_fails;
        if self.random.chance(fails / 4) {
            self.flow
                .commit_not_sent(&refusal(CommitErrorKind::Unavailable));
            return Ok(());
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
            && self.flow.hand_over(&revoke.slots) == HandOver::Committing
        {
            revoke.refused = true;
            self.model.coverage.last_refused += 1;
        }
    }

    /// The broker's response arrives.
    pub fn answer_commit(&mut self) {
        if let Some(commit) = self.commit.take() {
            self.flow.committed(&commit.results, commit.error.as_ref());
        }
    }

    /// Partitions are lost without notice.
    pub fn lose(&mut self, epochs: &[u32]) {
        self.rejoins = false;
        let slots: Vec<AssignmentId> = epochs
            .iter()
            .filter_map(|epoch| self.model.owned.get(epoch))
            .map(|owned| owned.slot)
            .collect();
        for revoke in &mut self.revokes {
            let committing = self.flow.hand_over(&revoke.slots) == HandOver::Committing;
            let before = revoke.slots.len();
            revoke.slots.retain(|slot| !slots.contains(slot));
            if committing {
                self.model.coverage.lost_before_last_commit += (before - revoke.slots.len()) as u64;
            }
        }
        self.flow.release(&slots);
        for slot in slots {
            self.group.refused.remove(&slot);
            self.model.release(slot, false);
        }
    }
}

fn refusal(kind: CommitErrorKind) -> CommitError {
    CommitError {
        kind,
        reason: format!("{kind:?}"),
    }
}
