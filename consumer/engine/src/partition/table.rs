//! The partitions of a pump: its assignments, by id, and which of them are owned now. The place of a released one is used again once nothing refers to it.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use crate::partition::assignment::{Assignment, AssignmentState};
use crate::source::{AssignmentId, TopicPartition};

/// All assignments that are owned, or of which records are still held.
pub(crate) struct Partitions<R> {
    /// The owned ones. Ordered, like every collection that is iterated: a seed must reproduce the same run.
    owned: BTreeMap<TopicPartition, AssignmentId>,
    places: Vec<Assignment<R>>,
    /// The ids of free places: what was released under the id before is gone.
    free: Vec<AssignmentId>,
}

impl<R> Default for Partitions<R> {
    fn default() -> Self {
        Self {
            owned: BTreeMap::new(),
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<R> Partitions<R> {
    /// Adds the assignment of `at` that `new` makes for its id; it is owned from now on.
    pub(crate) fn insert(
        &mut self,
        at: TopicPartition,
        new: impl FnOnce(AssignmentId) -> Assignment<R>,
    ) -> AssignmentId {
        let id = match self.free.pop() {
            Some(id) => {
                self.places[id.index()] = new(id);
                id
            }
            None => {
                let id = AssignmentId::first(self.places.len());
                self.places.push(new(id));
                id
            }
        };
        self.owned.insert(at, id);
        id
    }

    /// The assignment of an owned partition.
    pub(crate) fn owned(&self, at: &TopicPartition) -> Option<AssignmentId> {
        self.owned.get(at).copied()
    }

    /// All owned partitions, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TopicPartition, AssignmentId)> {
        self.owned.iter().map(|(at, id)| (at, *id))
    }

    /// The assignments of all owned partitions, in their order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = AssignmentId> {
        self.owned.values().copied()
    }

    /// All owned partitions' assignments.
    pub(crate) fn each(&self) -> impl Iterator<Item = (AssignmentId, &Assignment<R>)> {
        self.ids().map(|id| (id, &self[id]))
    }

    /// As [`Self::each`], to change them.
    pub(crate) fn for_each_mut(
        &mut self,
        mut change: impl FnMut(AssignmentId, &mut Assignment<R>),
    ) {
        for id in self.owned.values() {
            change(*id, &mut self.places[id.index()]);
        }
    }

    /// Whether no partition is owned.
    pub(crate) fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// Marks an assignment as released. Returns whether its partition was owned under it.
    pub(crate) fn release(&mut self, id: AssignmentId) -> bool {
        let assignment = &mut self[id];
        assignment.release();
        let at = assignment.at().clone();
        let was_owned = self.owned.get(&at) == Some(&id);
        if was_owned {
            self.owned.remove(&at);
        }
        self.free_if_over(id);
        was_owned
    }

    /// Whether nothing of these partitions is in flight, or the deadline of their drain has passed.
    pub(crate) fn is_drained(&self, ids: &[AssignmentId], now_ms: u64) -> bool {
        let overdue = ids.iter().all(|id| match self[*id].state() {
            AssignmentState::Draining { deadline_ms } => now_ms >= deadline_ms,
            AssignmentState::Assigned => false,
            AssignmentState::Released => true,
        });
        overdue || ids.iter().all(|id| !self[*id].holdings().has_unsettled())
    }

    /// The owned partitions that are being handed over.
    pub(crate) fn draining(&self) -> impl Iterator<Item = AssignmentId> {
        self.ids().filter(|id| self[*id].is_draining())
    }

    /// The assignment of an id, if something may still refer to it.
    pub(crate) fn get(&self, id: AssignmentId) -> Option<&Assignment<R>> {
        self.places
            .get(id.index())
            .filter(|assignment| assignment.id() == id)
    }

    /// As [`Self::get`], to change it.
    pub(crate) fn get_mut(&mut self, id: AssignmentId) -> Option<&mut Assignment<R>> {
        self.places
            .get_mut(id.index())
            .filter(|assignment| assignment.id() == id)
    }

    /// Frees the place of a released assignment without records. Its id is never used again in a way that can be confused:
    /// the next one in this place differs.
    pub(crate) fn free_if_over(&mut self, id: AssignmentId) {
        let assignment = &mut self[id];
        if assignment.is_released() && assignment.holdings().has_no_entries() {
            assignment.end(id.next());
            self.free.push(id.next());
        }
    }

    /// All assignments in use.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Assignment<R>> {
        self.places.iter_mut()
    }

    /// Number of places, free ones included.
    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }
}

impl<R> Index<AssignmentId> for Partitions<R> {
    type Output = Assignment<R>;

    #[inline]
    fn index(&self, id: AssignmentId) -> &Assignment<R> {
        let assignment = &self.places[id.index()];
        debug_assert_eq!(assignment.id(), id, "its place was used again");
        assignment
    }
}

impl<R> IndexMut<AssignmentId> for Partitions<R> {
    #[inline]
    fn index_mut(&mut self, id: AssignmentId) -> &mut Assignment<R> {
        let assignment = &mut self.places[id.index()];
        debug_assert_eq!(assignment.id(), id, "its place was used again");
        assignment
    }
}
