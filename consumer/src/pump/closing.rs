//! Giving partitions back: those of a revoke, and at a stop all of them.
//!
//! ```text
//!   revoke ─► drain ─► last commit ─► release: the group hears of it
//!   stop ───► drain ─► last commit ─► close: a join that is under way is finished, and the group is left
//!             (not before a rebalance that is under way is over: `last_rebalance`)
//! ```
//!
//! A last commit that the group refuses is sent again while the partitions are ours, until shortly after the drain's
//! deadline: a group that rebalances accepts it as soon as it has agreed on a generation. The pump goes on with
//! everything else meanwhile, since the client needs its events served to get there (G3, G5).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::last_rebalance::LastRebalance;
use super::{Pump, StopReport};
use crate::flow::commits::{HandOver, LAST_COMMIT_MS};
use crate::source::{
    AssignmentId, CommitError, CommitErrorKind, Rejection, SourceError, TopicPartition,
};

/// Time beyond the drain that a stop may take for its last commit and for leaving the group.
pub const LEAVE_GRACE: Duration = Duration::from_secs(3);

const _: () = assert!(
    LAST_COMMIT_MS < LEAVE_GRACE.as_millis() as u64,
    "a last commit leaves no time to leave the group"
);

/// Partitions that are about to be given back.
pub(super) struct Revoke {
    partitions: Vec<TopicPartition>,
    slots: Vec<AssignmentId>,
}

impl Pump {
    /// The group takes partitions away, or has taken them already (`lost`).
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
            // Everything drains already. An answer would make the client join again, and the last commit wait for that.
            return;
        }
        if lost {
            self.release_source(&partitions);
            return;
        }
        self.start_drain(&slots, self.now_ms());
        self.revokes.push(Revoke { partitions, slots });
    }

    fn start_drain(&mut self, slots: &[AssignmentId], told_ms: u64) {
        self.learn_positions_of(slots);
        let deadline_ms = told_ms + self.settings.drain_timeout.as_millis() as u64;
        self.flow.start_drain(slots, deadline_ms);
    }

    /// Gives back the partitions of revokes whose last commit is accepted, or cannot be any more.
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
                    "last commit not accepted; the next owner repeats what it would have covered"
                );
                true
            }
        }
    }

    fn release_source(&mut self, partitions: &[TopicPartition]) {
        if let Err(error) = self.source.release(partitions) {
            tracing::warn!(%error, "giving partitions back was refused");
        }
    }

    /// Sends the commit that is due, if one is.
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

    /// Whether a stop was told.
    pub(super) fn is_stopping(&self) -> bool {
        self.last_rebalance.is_some() || self.stopping.is_some()
    }

    /// Begins to stop; while the group rebalances, only once that is over.
    pub(super) fn stop(&mut self) {
        self.renewing = false;
        if self.is_stopping() {
            return;
        }
        // What earlier hand-overs left is not this stop's.
        self.forget_what_was_left();
        let told_ms = self.now_ms();
        if self.source.is_rebalancing() {
            tracing::info!(
                "the group rebalances: the stop waits for it, and records are handled meanwhile"
            );
            self.last_rebalance = Some(LastRebalance::new(told_ms, self.settings.drain_timeout));
        } else {
            self.start_stop(told_ms);
        }
    }

    /// Counts from now on what is left to the next owners.
    pub(super) fn forget_what_was_left(&mut self) {
        self.left = StopReport::default();
        self.flow.take_overrun();
    }

    /// Everything assigned is drained, committed and given back, in the time that a stop has which was told then.
    pub(super) fn start_stop(&mut self, told_ms: u64) {
        self.last_rebalance = None;
        let told = self.started + Duration::from_millis(told_ms);
        self.stopping = Some(told + self.settings.drain_timeout + LEAVE_GRACE);
        // Their partitions go with all the others.
        self.revokes.clear();
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        self.start_drain(&slots, told_ms);
    }

    /// Ends the pump once everything is drained and committed.
    pub(super) fn finish_stop(&mut self) {
        let Some(deadline) = self.stopping else {
            return;
        };
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        if self.closed || self.waits_for_lent(deadline) || !self.is_handed_over(&slots) {
            return;
        }
        self.flow.log_untold(true);
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

    /// Whether calls still read records of a client in whose place another one is to come. Such a client cannot be ended:
    /// it would be left behind with its threads, and with statistics that nobody takes.
    fn waits_for_lent(&self, deadline: Instant) -> bool {
        self.renewing && self.flow.lends() && Instant::now() + LEAVE_GRACE < deadline
    }
}
