//! Whose turn it is when several handlers share a pool that is full: first refused, first served. Pure.

use std::collections::{BTreeMap, HashMap};

/// The handlers that were refused for want of room, in that order.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: u64,
    order: BTreeMap<u64, u64>,
    ticket: HashMap<u64, u64>,
}

impl Turns {
    /// Whether `tenant` may take one of `free` places: not while that many others have waited longer.
    pub(super) fn may_go(&self, tenant: u64, free: usize) -> bool {
        if self.order.len() < free {
            return true;
        }
        self.order.values().take(free).any(|&other| other == tenant)
    }

    /// `tenant` was refused for want of room.
    pub(super) fn wait(&mut self, tenant: u64) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.ticket.entry(tenant) {
            entry.insert(self.next);
            self.order.insert(self.next, tenant);
            self.next += 1;
        }
    }

    /// `tenant` was served, or wants nothing any more.
    pub(super) fn done(&mut self, tenant: u64) {
        if let Some(ticket) = self.ticket.remove(&tenant) {
            self.order.remove(&ticket);
        }
    }

    /// Forgets everybody: those who had their turn did not come.
    pub(super) fn forget(&mut self) {
        self.order.clear();
        self.ticket.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_go_first_and_a_greedy_one_goes_to_the_end() {
        let mut turns = Turns::default();
        assert!(turns.may_go(1, 1));
        turns.wait(2);
        turns.wait(3);
        turns.wait(2);
        assert!(!turns.may_go(1, 1), "two have waited longer");
        assert!(!turns.may_go(3, 1) && turns.may_go(2, 1));
        assert!(turns.may_go(3, 2) && !turns.may_go(1, 2) && turns.may_go(1, 3));
        turns.done(2);
        assert!(turns.may_go(3, 1));
        turns.forget();
        assert!(turns.may_go(1, 1));
    }
}
