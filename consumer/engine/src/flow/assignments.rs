//! The assignments of a pump, by id. The place of a released one is used again once nothing refers to it.

use std::ops::{Index, IndexMut};

use crate::partition::assignment::{Assignment, AssignmentState};
use crate::source::AssignmentId;

/// All assignments that are owned, or of which records are still held.
pub(crate) struct Assignments<R> {
    places: Vec<Assignment<R>>,
    /// The ids of free places: what was released under the id before is gone.
    free: Vec<AssignmentId>,
}

impl<R> Default for Assignments<R> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<R> Assignments<R> {
    /// Adds the assignment that `new` makes for its id.
    pub(crate) fn insert(
        &mut self,
        new: impl FnOnce(AssignmentId) -> Assignment<R>,
    ) -> AssignmentId {
        match self.free.pop() {
            Some(id) => {
                self.places[id.index()] = new(id);
                id
            }
            None => {
                let id = AssignmentId::first(self.places.len());
                self.places.push(new(id));
                id
            }
        }
    }

    /// The assignment of an id, if something may still refer to it.
    pub(crate) fn get(&self, id: AssignmentId) -> Option<&Assignment<R>> {
        self.places
            .get(id.index())
            .filter(|assignment| assignment.id == id)
    }

    /// Frees the place of a released assignment without records. Its id is never used again in a way that can be confused:
    /// the next one in this place differs.
    pub(crate) fn free_if_over(&mut self, id: AssignmentId) {
        let assignment = &mut self[id];
        if assignment.state == AssignmentState::Released && assignment.entries == 0 {
            assignment.id = id.next();
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

impl<R> Index<AssignmentId> for Assignments<R> {
    type Output = Assignment<R>;

    #[inline]
    fn index(&self, id: AssignmentId) -> &Assignment<R> {
        let assignment = &self.places[id.index()];
        debug_assert_eq!(assignment.id, id, "its place was used again");
        assignment
    }
}

impl<R> IndexMut<AssignmentId> for Assignments<R> {
    #[inline]
    fn index_mut(&mut self, id: AssignmentId) -> &mut Assignment<R> {
        let assignment = &mut self.places[id.index()];
        debug_assert_eq!(assignment.id, id, "its place was used again");
        assignment
    }
}
