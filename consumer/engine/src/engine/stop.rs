//! The end of a membership: a stop of the service, or the replacement of its client.
//!
//! ```text
//!   Stop ─┬─ no rebalance ────────────────────────────────────────────────────► drain ─► last commit ─ Leave ─► Left
//!         └─ rebalance ─► keep processing ─► first records of new partitions ──►                       └─ or ClientRenewed
//! ```
//!
//! A member cannot leave during a join: the broker answers no other request on its connection until the join completes. Until
//! then the group treats it as a member and may assign it partitions. If it stopped reading at once, its partitions would be
//! idle for the whole join; if it released new partitions unread, a partition could pass through several members that are all
//! stopping, and make no progress for a heartbeat interval at each of them (ADR 0026).

use std::fmt;
use std::sync::Arc;

use super::Engine;
use super::troubles::ReadTroubles;
use crate::event::Effect;
use crate::partition::committer::LAST_COMMIT_GRACE_MS;
use crate::record::Record;
use crate::source::{AssignmentId, TopicPartition};

/// Time after the drain deadline for the last commit and for leaving the group.
pub const LEAVE_GRACE_MS: u64 = 3_000;

const _: () = assert!(
    LAST_COMMIT_GRACE_MS < LEAVE_GRACE_MS,
    "a last commit leaves no time to leave the group"
);

/// Maximum wait of a stop for a rebalance; a quarter of the drain timeout if that is less.
const MAX_REBALANCE_WAIT_MS: u64 = 3_000;
/// Maximum wait for the first record of a new partition: an idle one has none.
const FIRST_RECORD_TIMEOUT_MS: u64 = 500;
/// How long the replacement of a stuck client waits for calls that borrow its records. Its partitions have no owner here.
const BORROWED_TIMEOUT_MS: u64 = 5_000;

/// Work that a stop left behind; the next owners reprocess it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Records still in flight at the drain deadline.
    pub unfinished: u64,
    /// Partitions whose last commit failed.
    pub uncommitted: u64,
    /// Members whose leave was not confirmed: the group may keep their partitions assigned until their sessions expire.
    pub members: u64,
}

impl StopReport {
    /// Whether nothing is reprocessed and the group does not wait for this member.
    pub fn is_graceful(&self) -> bool {
        *self == Self::default()
    }
}

/// Describes the work left behind and its consequences.
impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_graceful() {
            return f.write_str("nothing left behind");
        }
        if self.unfinished + self.uncommitted > 0 {
            write!(
                f,
                "unfinished records: {}, partitions whose last commit failed: {}; the next owners reprocess these records",
                self.unfinished, self.uncommitted
            )?;
        }
        if self.members > 0 {
            let separator = if self.unfinished + self.uncommitted > 0 {
                "; "
            } else {
                ""
            };
            write!(
                f,
                "{separator}members without a confirmed leave: {}; their partitions stay idle until their sessions expire \
                 (session.timeout.ms, 45 s by default)",
                self.members
            )?;
        }
        Ok(())
    }
}

impl std::ops::AddAssign for StopReport {
    fn add_assign(&mut self, other: Self) {
        self.unfinished += other.unfinished;
        self.uncommitted += other.uncommitted;
        self.members += other.members;
    }
}

/// Progress of the end of a membership.
pub(crate) enum Stopping {
    /// It does not end.
    No,
    /// A stop was requested during a rebalance, and records are processed until that is over.
    AfterRebalance(LastRebalance),
    /// All partitions drain and commit.
    Draining {
        /// Deadline for leaving the group.
        deadline_ms: u64,
        /// Whether a new client takes over.
        renew: bool,
    },
    /// The client leaves its group, or has left.
    Leaving {
        /// Whether a new client takes over.
        renew: bool,
    },
}

impl Stopping {
    /// Whether a stop was requested, or the client is being replaced.
    pub(crate) fn is_requested(&self) -> bool {
        !matches!(self, Self::No)
    }

    /// Whether partitions have ceased to be started: all are being handed over.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Leaving { .. })
    }

    /// Adds partitions that the rebalance has assigned for which the stop waits.
    pub(crate) fn add_assigned(&mut self, partitions: &[TopicPartition]) {
        if let Self::AfterRebalance(last) = self {
            last.new.extend_from_slice(partitions);
        }
    }
}

/// The rebalance that a stop waits for. Times are on the engine's clock.
pub(crate) struct LastRebalance {
    /// When the stop was requested.
    requested_ms: u64,
    /// Deadline of the wait.
    until_ms: u64,
    /// When the rebalance was first seen completed.
    completed_ms: Option<u64>,
    /// Newly assigned partitions without a settled record.
    new: Vec<TopicPartition>,
}

impl LastRebalance {
    fn new(requested_ms: u64, drain_timeout_ms: u64) -> Self {
        Self {
            requested_ms,
            until_ms: requested_ms + MAX_REBALANCE_WAIT_MS.min(drain_timeout_ms / 4),
            completed_ms: None,
            new: Vec::new(),
        }
    }

    /// Whether the stop may proceed. `rebalancing`: the group has no agreed assignment yet. `is_served`: a new partition has
    /// settled a record, or will not receive one.
    fn is_over(
        &mut self,
        now_ms: u64,
        rebalancing: bool,
        is_served: impl Fn(&TopicPartition) -> bool,
    ) -> bool {
        if now_ms >= self.until_ms {
            return true;
        }
        if rebalancing {
            self.completed_ms = None;
            return false;
        }
        let completed_ms = *self.completed_ms.get_or_insert(now_ms);
        self.new.retain(|at| !is_served(at));
        self.new.is_empty() || now_ms >= completed_ms + FIRST_RECORD_TIMEOUT_MS
    }
}

impl<R: Record> Engine<R> {
    /// Whether a stop was requested, or the client is being replaced.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_requested()
    }

    /// Whether the client is being replaced, and the service does not stop.
    pub fn is_renewing(&self) -> bool {
        match self.stopping {
            Stopping::Draining { renew, .. } | Stopping::Leaving { renew } => renew,
            Stopping::No | Stopping::AfterRebalance(_) => false,
        }
    }

    /// Whether the next [`Event::TurnEnd`](crate::event::Event::TurnEnd) has to say if the group is rebalancing.
    pub fn awaits_rebalance(&self) -> bool {
        matches!(self.stopping, Stopping::AfterRebalance(_))
    }

    /// Begins the stop; during a rebalance, the drain starts only after it.
    pub(crate) fn stop(&mut self, rebalancing: bool) {
        if let Stopping::Draining { renew, .. } | Stopping::Leaving { renew } = &mut self.stopping {
            *renew = false;
            return;
        }
        if self.stopping.is_requested() {
            return;
        }
        // The report covers this stop only, not earlier revokes.
        self.reset_report();
        if rebalancing {
            tracing::info!(
                "rebalance in progress: the stop waits for it, and records are processed until then"
            );
            let last = LastRebalance::new(self.now_ms, self.settings.flow.drain_timeout_ms);
            self.stopping = Stopping::AfterRebalance(last);
        } else {
            self.drain_all(self.now_ms, false);
        }
    }

    fn reset_report(&mut self) {
        self.left = StopReport::default();
        self.flow.take_unfinished();
    }

    /// The work that the stop leaves to the next owners.
    pub fn left_behind(&mut self) -> StopReport {
        self.left.unfinished += self.flow.take_unfinished();
        self.left
    }

    /// Starts to drain and commit every assigned partition. The deadlines count from `requested_ms`, the time of the request.
    fn drain_all(&mut self, requested_ms: u64, renew: bool) {
        self.stopping = Stopping::Draining {
            deadline_ms: requested_ms + self.settings.flow.drain_timeout_ms + LEAVE_GRACE_MS,
            renew,
        };
        // Their partitions are released with all the others.
        self.handovers.forget_revokes();
        let slots = self.slots();
        self.begin_drain(&slots, requested_ms);
    }

    /// Begins the pending stop once its rebalance has completed.
    pub(crate) fn finish_rebalance(&mut self, rebalancing: bool) {
        let Stopping::AfterRebalance(last) = &mut self.stopping else {
            return;
        };
        let (flow, offers) = (&self.flow, &self.offers);
        let is_served = |at: &TopicPartition| match flow.slot(at) {
            Some(slot) => {
                let assignment = flow.assignment(slot);
                assignment.has_moved() || !assignment.admits()
            }
            None => !offers.is_pending(at),
        };
        if last.is_over(self.now_ms, rebalancing, is_served) {
            let requested_ms = last.requested_ms;
            self.drain_all(requested_ms, false);
        }
    }

    /// Leaves the group once everything is drained and committed.
    pub(crate) fn finish_stop(&mut self) {
        let Stopping::Draining { deadline_ms, renew } = self.stopping else {
            return;
        };
        let slots = self.slots();
        if self.waits_for_borrowed(deadline_ms, renew) || !self.is_handed_over(&slots) {
            return;
        }
        self.flow.log_suppressed(true);
        self.release(&slots);
        self.stopping = Stopping::Leaving { renew };
        self.effects.push_back(Effect::Leave { deadline_ms, renew });
    }

    /// Whether calls still borrow records of a client that is being replaced. It cannot be destroyed before they return: it would
    /// leak its threads, and its statistics queue would grow without a reader.
    fn waits_for_borrowed(&self, deadline_ms: u64, renew: bool) -> bool {
        renew && self.flow.has_lent_records() && self.now_ms + LEAVE_GRACE_MS < deadline_ms
    }

    pub(crate) fn left_group(&mut self, confirmed: bool) {
        self.left.members += u64::from(!confirmed);
    }

    /// A new client has no state of the old one.
    pub(crate) fn client_renewed(&mut self) {
        self.stopping = Stopping::No;
        self.observations.clear();
        self.offers.forget_all();
        self.troubles = ReadTroubles::default();
        self.handovers.forget_revokes();
        self.flow.client_renewed();
    }

    /// A subscribed topic was deleted and re-created. Offsets of the old topic are not committed any more.
    pub(crate) fn topic_recreated(&mut self, topic: &Arc<str>) {
        let slots: Vec<AssignmentId> = self
            .flow
            .partitions()
            .filter(|(at, _)| at.topic == *topic)
            .map(|(_, slot)| slot)
            .collect();
        tracing::warn!(
            topic = &**topic,
            partitions = slots.len(),
            "the topic was deleted and created again; rejoining the group to read it from its beginning"
        );
        self.rejoin_without(&slots);
    }

    /// Rejoins if the group no longer knows this member and the client does not notice, as with the KIP-848 protocol after the
    /// group was deleted: otherwise no commit would ever succeed again.
    pub(crate) fn rejoin_if_forgotten(&mut self) {
        if self.stopping.has_begun() || !self.flow.has_lost_membership() {
            return;
        }
        let slots = self.slots();
        tracing::warn!(
            partitions = slots.len(),
            "the group no longer knows this member, for example after the group was deleted; rejoining, uncommitted records \
             are reprocessed"
        );
        self.rejoin_without(&slots);
    }

    /// Replaces a client that alone cannot reach the cluster. Records that are not committed are processed again, by the
    /// next owner of their partitions: within the session timeout that is usually this member.
    pub(crate) fn replace_client(&mut self) {
        let slots = self.slots();
        self.rejoin_without(&slots);
        let at_most = self.now_ms + BORROWED_TIMEOUT_MS + LEAVE_GRACE_MS;
        if let Stopping::Draining { deadline_ms, .. } = &mut self.stopping {
            *deadline_ms = at_most.min(*deadline_ms);
        }
    }

    /// Releases partitions that can no longer be committed, and rejoins the group with a new client.
    fn rejoin_without(&mut self, slots: &[AssignmentId]) {
        self.flow.lose(slots);
        self.release(slots);
        match &self.stopping {
            Stopping::No => {
                self.reset_report();
                self.drain_all(self.now_ms, true);
            }
            // A stop that was requested before stays a stop.
            Stopping::AfterRebalance(last) => {
                let requested_ms = last.requested_ms;
                self.drain_all(requested_ms, false);
            }
            Stopping::Draining { .. } | Stopping::Leaving { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN_MS: u64 = 20_000;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "t".into(),
            partition,
        }
    }

    #[test]
    fn a_stop_waits_for_the_rebalance_and_for_the_first_record_of_each_new_partition() {
        let mut last = LastRebalance::new(7_000, DRAIN_MS);
        assert!(!last.is_over(7_000, true, |_| true));
        last.new.extend([at(0), at(1)]);
        assert!(!last.is_over(7_900, true, |_| true));
        assert!(!last.is_over(8_000, false, |_| false));
        assert!(!last.is_over(8_100, false, |new| new.partition == 0));
        assert!(last.is_over(8_200, false, |new| new.partition == 1));
    }

    #[test]
    fn a_stop_does_not_wait_for_an_idle_partition_or_an_endless_rebalance() {
        let mut idle = LastRebalance::new(0, DRAIN_MS);
        idle.new.push(at(0));
        assert!(!idle.is_over(100, false, |_| false));
        assert!(!idle.is_over(599, false, |_| false));
        // Another rebalance begins before the time is up: the wait for a first record starts again after it.
        assert!(!idle.is_over(599, true, |_| false));
        assert!(!idle.is_over(700, false, |_| false));
        assert!(idle.is_over(1_200, false, |_| false));

        let mut endless = LastRebalance::new(0, DRAIN_MS);
        assert!(!endless.is_over(2_999, true, |_| false));
        assert!(endless.is_over(3_000, true, |_| false));
        let mut short = LastRebalance::new(0, 1_000);
        assert!(short.is_over(250, true, |_| false));
    }
}
