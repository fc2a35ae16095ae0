//! Hand-over of revoked partitions: drain, last commit, release.
//!
//! ```text
//!   Revoked ─ LearnPositions ─► drain ─► last commit ─ Release: acknowledged to the group
//! ```
//!
//! A rejected last commit is retried while the partitions are owned, until shortly after the drain deadline: a rebalancing
//! group accepts it once its new generation is agreed on. All other events are handled in the meantime, because the client
//! makes progress only while its events are served (G3, G5).

use std::collections::BTreeMap;

use super::Engine;
use crate::event::Effect;
use crate::partition::committer::HandOver;
use crate::record::Record;
use crate::source::{AssignmentId, TopicPartition};

/// Revoked partitions that still drain or commit.
struct Revoke {
    partitions: Vec<TopicPartition>,
    slots: Vec<AssignmentId>,
}

/// Partitions whose drain begins once their positions are known.
struct Drain {
    slots: Vec<AssignmentId>,
    deadline_ms: u64,
}

/// Hand-overs in progress.
#[derive(Default)]
pub(crate) struct Handovers {
    revokes: Vec<Revoke>,
    beginning: Vec<Drain>,
}

impl Handovers {
    /// Forgets partitions that were lost in the meantime: the group may assign them again before the others are released.
    fn forget_lost(&mut self, lost: &[TopicPartition]) {
        for revoke in &mut self.revokes {
            revoke.partitions.retain(|at| !lost.contains(at));
        }
        self.revokes.retain(|revoke| !revoke.partitions.is_empty());
    }

    fn forget_slots(&mut self, released: &[AssignmentId]) {
        let drains = self.beginning.iter_mut().map(|drain| &mut drain.slots);
        let revokes = self.revokes.iter_mut().map(|revoke| &mut revoke.slots);
        for slots in drains.chain(revokes) {
            slots.retain(|slot| !released.contains(slot));
        }
    }

    /// Forgets the revokes: their partitions are released with all others.
    pub(crate) fn forget_revokes(&mut self) {
        self.revokes.clear();
    }
}

impl<R: Record> Engine<R> {
    /// Releases assignments: nothing is known of them any more.
    pub(crate) fn release(&mut self, slots: &[AssignmentId]) {
        self.flow.release(slots);
        for slot in slots {
            self.troubles.forget(*slot);
        }
        self.handovers.forget_slots(slots);
    }

    /// The group revokes partitions, or has already reassigned them (`lost`).
    pub(crate) fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        self.offers.forget(&partitions);
        let slots: Vec<AssignmentId> = partitions
            .iter()
            .filter_map(|at| self.flow.slot(at))
            .collect();
        let mut of_topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for at in &partitions {
            of_topics.entry(&at.topic).or_default().push(at.partition);
        }
        for (topic, partitions) in of_topics {
            tracing::info!(topic, ?partitions, lost, "partitions revoked");
        }
        if lost && self.stopping.is_requested() {
            self.left.uncommitted += self.flow.count_lost(&slots) as u64;
        }
        if lost {
            self.flow.lose(&slots);
            self.release(&slots);
            self.handovers.forget_lost(&partitions);
        }
        if self.stopping.has_begun() {
            // Everything drains already. Acknowledging the revoke would make the client rejoin, and delay the last commit.
            return;
        }
        if lost {
            self.effects.push_back(Effect::Release(partitions));
            return;
        }
        self.begin_drain(&slots, self.now_ms);
        self.handovers.revokes.push(Revoke { partitions, slots });
    }

    /// Begins to drain partitions, with a deadline that counts from `requested_ms`. Their positions must be known before:
    /// from then on polled records are dropped, and a position would pass them.
    pub(crate) fn begin_drain(&mut self, slots: &[AssignmentId], requested_ms: u64) {
        self.handovers.beginning.push(Drain {
            slots: slots.to_vec(),
            deadline_ms: requested_ms + self.settings.flow.drain_timeout_ms,
        });
        self.effects
            .push_back(Effect::LearnPositions(slots.to_vec()));
    }

    /// Moves frontiers of idle partitions past control records and aborted data (G2), then begins the drains that waited
    /// for it. Everything that was polled has been delivered before: the positions cover polled records.
    pub(crate) fn positions(&mut self, positions: &[(AssignmentId, i64)]) {
        for &(slot, position) in positions {
            self.flow.consumed(slot, position);
        }
        for drain in std::mem::take(&mut self.handovers.beginning) {
            self.flow.start_drain(&drain.slots, drain.deadline_ms);
        }
    }

    /// Releases the partitions of revokes whose last commit is accepted, or can no longer be.
    pub(crate) fn finish_revokes(&mut self) {
        for revoke in std::mem::take(&mut self.handovers.revokes) {
            if !self.is_handed_over(&revoke.slots) {
                self.handovers.revokes.push(revoke);
                continue;
            }
            self.release(&revoke.slots);
            self.effects.push_back(Effect::Release(revoke.partitions));
        }
    }

    /// Whether nothing is left to do for these partitions but their release.
    pub(crate) fn is_handed_over(&mut self, slots: &[AssignmentId]) -> bool {
        if !self.handovers.beginning.is_empty() {
            return false;
        }
        match self.flow.hand_over(slots) {
            HandOver::Draining | HandOver::Committing => false,
            HandOver::Ready { uncommitted: 0 } => true,
            HandOver::Ready { uncommitted } => {
                self.left.uncommitted += uncommitted as u64;
                tracing::warn!(
                    partitions = uncommitted,
                    "last commit failed; the next owner reprocesses the records it would have covered"
                );
                true
            }
        }
    }
}
