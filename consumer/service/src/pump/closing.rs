//! Release of partitions: those of a revoke, and at a stop all of them.
//!
//! ```text
//!   revoke ─► drain ─► last commit ─► release: acknowledged to the group
//!   stop ───► drain ─► last commit ─► close: a join in progress is completed, and the member leaves the group
//!             (a rebalance in progress is awaited first: `last_rebalance`)
//! ```
//!
//! A rejected last commit is retried while the partitions are owned, until shortly after the drain deadline: a rebalancing
//! group accepts it once its new generation is agreed on. The pump keeps running all other steps, because the client makes
//! progress only while its events are served (G3, G5).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluicegate_engine::flow::commits::{HandOver, LAST_COMMIT_GRACE_MS};
use sluicegate_engine::source::{
    AssignmentId, CommitError, CommitErrorKind, Rejection, SourceError, TopicPartition,
};

use super::last_rebalance::LastRebalance;
use super::{Pump, StopReport};

/// Time after the drain deadline for the last commit and for leaving the group.
pub const LEAVE_GRACE: Duration = Duration::from_secs(3);

const _: () = assert!(
    LAST_COMMIT_GRACE_MS < LEAVE_GRACE.as_millis() as u64,
    "a last commit leaves no time to leave the group"
);

/// Revoked partitions that still drain or commit.
pub(super) struct Revoke {
    partitions: Vec<TopicPartition>,
    slots: Vec<AssignmentId>,
}

impl Pump {
    /// The group revokes partitions, or has already reassigned them (`lost`).
    pub(super) fn revoked(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        self.starting.forget(&partitions);
        if lost {
            let now_ms = self.now_ms();
            self.client.lost(now_ms);
        }
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
        if lost && self.is_stopping() {
            self.left.uncommitted += self.flow.count_lost(&slots) as u64;
        }
        if lost {
            self.flow.release(&slots);
        }
        if self.stopping.is_some() {
            // Everything drains already. Acknowledging the revoke would make the client rejoin, and delay the last commit.
            return;
        }
        if lost {
            self.release_source(&partitions);
            return;
        }
        self.start_drain(&slots, self.now_ms());
        self.revokes.push(Revoke { partitions, slots });
    }

    fn start_drain(&mut self, slots: &[AssignmentId], requested_ms: u64) {
        self.learn_positions_of(slots);
        let deadline_ms = requested_ms + self.settings.drain_timeout.as_millis() as u64;
        self.flow.start_drain(slots, deadline_ms);
    }

    /// Releases the partitions of revokes whose last commit is accepted, or can no longer be.
    pub(super) fn finish_revokes(&mut self) {
        for revoke in std::mem::take(&mut self.revokes) {
            if !self.is_handed_over(&revoke.slots) {
                self.revokes.push(revoke);
                continue;
            }
            self.flow.release(&revoke.slots);
            self.release_source(&revoke.partitions);
        }
    }

    fn is_handed_over(&mut self, slots: &[AssignmentId]) -> bool {
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

    fn release_source(&mut self, partitions: &[TopicPartition]) {
        if let Err(error) = self.source.release(partitions) {
            tracing::warn!(%error, "cannot release partitions");
        }
    }

    /// Sends the commit that is due, if any.
    pub(super) fn commit(&mut self) {
        let entries = self.flow.commits_due();
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.source.commit(&entries) {
            let kind = match error {
                SourceError::Retryable(_) => CommitErrorKind::Unavailable,
                SourceError::Terminal(_) => CommitErrorKind::Rejected(Rejection::Other),
            };
            let reason = error.to_string();
            self.flow.commit_not_sent(&CommitError { kind, reason });
        }
    }

    /// Whether a stop was requested.
    pub(super) fn is_stopping(&self) -> bool {
        self.last_rebalance.is_some() || self.stopping.is_some()
    }

    /// Begins the stop; during a rebalance, the drain starts only after it.
    pub(super) fn stop(&mut self) {
        self.renewing = false;
        if self.is_stopping() {
            return;
        }
        // The report covers this stop only, not earlier revokes.
        self.reset_report();
        let requested_ms = self.now_ms();
        if self.source.is_rebalancing() {
            tracing::info!(
                "rebalance in progress: the stop waits for it, and records are processed until then"
            );
            self.last_rebalance = Some(LastRebalance::new(
                requested_ms,
                self.settings.drain_timeout,
            ));
        } else {
            self.start_stop(requested_ms);
        }
    }

    /// Resets the report of work left to the next owners.
    pub(super) fn reset_report(&mut self) {
        self.left = StopReport::default();
        self.flow.take_unfinished();
    }

    /// Starts to drain and commit every assigned partition. The deadlines count from `requested_ms`, the time of the request.
    pub(super) fn start_stop(&mut self, requested_ms: u64) {
        self.last_rebalance = None;
        let requested = self.started + Duration::from_millis(requested_ms);
        self.stopping = Some(requested + self.settings.drain_timeout + LEAVE_GRACE);
        // Their partitions are released with all the others.
        self.revokes.clear();
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        self.start_drain(&slots, requested_ms);
    }

    /// Leaves the group once everything is drained and committed; then ends the pump, or renews its client.
    pub(super) fn finish_stop(&mut self) {
        let Some(deadline) = self.stopping else {
            return;
        };
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        if self.closed || self.waits_for_borrowed(deadline) || !self.is_handed_over(&slots) {
            return;
        }
        self.flow.log_suppressed(true);
        self.flow.release(&slots);
        if !self.source.close(deadline) {
            self.left.members += 1;
        }
        if !self.renewing {
            self.closed = true;
        } else if let Err(error) = self.renew() {
            self.failed = Some(error.to_string());
        }
    }

    /// Whether calls still borrow records of a client that is being replaced. It cannot be destroyed before they return: it would
    /// leak its threads, and its statistics queue would grow without a reader.
    fn waits_for_borrowed(&self, deadline: Instant) -> bool {
        self.renewing && self.flow.has_lent_records() && Instant::now() + LEAVE_GRACE < deadline
    }
}
