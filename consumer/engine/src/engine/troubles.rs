//! What keeps partitions from being read: read errors, lost offsets, missing leaders.

use std::collections::BTreeMap;

use super::fault::ReadFault;
use super::recovery::Recovery;
use crate::source::AssignmentId;

/// What keeps a partition from being read.
#[derive(Default)]
struct ReadTrouble {
    /// A read error, until a record is read or the error expires.
    fault: Option<ReadFault>,
    /// Recovery from an offset that could not be fetched.
    recovery: Option<Recovery>,
    /// Since when it has had no leader, on the engine's clock.
    leaderless_since_ms: Option<u64>,
}

/// The owned partitions that cannot be read, could not be a moment ago, or have had no leader for so short a time that it is
/// not reported.
#[derive(Default)]
pub(crate) struct ReadTroubles {
    of: BTreeMap<AssignmentId, ReadTrouble>,
}

impl ReadTroubles {
    /// Whether there is nothing to watch.
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The partitions to watch.
    pub(crate) fn slots(&self) -> Vec<AssignmentId> {
        self.of.keys().copied().collect()
    }

    /// The read error of a partition.
    pub(crate) fn fault(&self, slot: AssignmentId) -> Option<ReadFault> {
        self.of.get(&slot)?.fault
    }

    /// A read error was reported.
    pub(crate) fn set_fault(&mut self, slot: AssignmentId, fault: ReadFault) {
        self.of.entry(slot).or_default().fault = Some(fault);
    }

    /// The recovery of a partition from a lost offset.
    pub(crate) fn recovery(&mut self, slot: AssignmentId) -> Option<&mut Recovery> {
        self.of.get_mut(&slot)?.recovery.as_mut()
    }

    /// A recovery begins.
    pub(crate) fn begin_recovery(&mut self, slot: AssignmentId, recovery: Recovery) {
        self.of.entry(slot).or_default().recovery = Some(recovery);
    }

    /// The recovery of a partition is over. Returns it.
    pub(crate) fn end_recovery(&mut self, slot: AssignmentId) -> Option<Recovery> {
        let recovery = self.of.get_mut(&slot)?.recovery.take();
        self.forget_if_over(slot);
        recovery
    }

    /// The read error of a partition is over.
    pub(crate) fn end_fault(&mut self, slot: AssignmentId) {
        if let Some(trouble) = self.of.get_mut(&slot) {
            trouble.fault = None;
            self.forget_if_over(slot);
        }
    }

    /// A partition has no leader. Returns since when.
    pub(crate) fn leaderless(&mut self, slot: AssignmentId, now_ms: u64) -> u64 {
        let since_ms = &mut self.of.entry(slot).or_default().leaderless_since_ms;
        *since_ms.get_or_insert(now_ms)
    }

    /// A partition has a leader.
    pub(crate) fn has_leader(&mut self, slot: AssignmentId) {
        if let Some(trouble) = self.of.get_mut(&slot) {
            trouble.leaderless_since_ms = None;
            self.forget_if_over(slot);
        }
    }

    /// A partition is not read any more, or was released.
    pub(crate) fn forget(&mut self, slot: AssignmentId) {
        self.of.remove(&slot);
    }

    fn forget_if_over(&mut self, slot: AssignmentId) {
        let over = self.of.get(&slot).is_some_and(|trouble| {
            trouble.fault.is_none()
                && trouble.recovery.is_none()
                && trouble.leaderless_since_ms.is_none()
        });
        if over {
            self.of.remove(&slot);
        }
    }
}
