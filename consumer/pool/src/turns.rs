//! Fair queueing of handlers that share a full crew. Pure.
//!
//! Start-time fair queueing with batches of equal size: a handler's turn is its number of batches so far, counted from the
//! position of the others when it began to wait. First-come, first-served would favour the handler that a pump happens to
//! try first.

use std::collections::{BTreeSet, HashMap};

/// Handlers refused for lack of room, ordered by turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Turn of the handler served last.
    now: u64,
    /// Next turn of each handler served so far.
    next: HashMap<u64, u64>,
    refusals: u64,
    /// (turn, refusal number, handler).
    waiting: BTreeSet<(u64, u64, u64)>,
    /// Turn and refusal number of each waiting handler.
    ticket: HashMap<u64, (u64, u64)>,
}

impl Turns {
    /// Whether `tenant` may take one of `free` places: not while that many other handlers have an earlier turn.
    pub(super) fn may_go(&self, tenant: u64, free: usize) -> bool {
        if self.waiting.len() < free {
            return true;
        }
        let mut first = self.waiting.iter().take(free);
        first.any(|&(_, _, other)| other == tenant)
    }

    /// Queues `tenant` after a refusal for lack of room.
    pub(super) fn enqueue(&mut self, tenant: u64) {
        if !self.ticket.contains_key(&tenant) {
            let ticket = (self.turn_of(tenant), self.refusals);
            self.refusals += 1;
            self.ticket.insert(tenant, ticket);
            self.waiting.insert((ticket.0, ticket.1, tenant));
        }
    }

    /// Records that a batch of `tenant` was accepted.
    pub(super) fn served(&mut self, tenant: u64) {
        let turn = self.ticket.get(&tenant).map(|&(turn, _)| turn);
        let turn = turn.unwrap_or_else(|| self.turn_of(tenant));
        self.now = self.now.max(turn);
        self.next.insert(tenant, turn + 1);
        self.withdraw(tenant);
    }

    /// Removes `tenant` from the waiting handlers.
    pub(super) fn withdraw(&mut self, tenant: u64) {
        if let Some((turn, refusal)) = self.ticket.remove(&tenant) {
            self.waiting.remove(&(turn, refusal, tenant));
        }
    }

    /// Forgets `tenant`, which has left the crew.
    pub(super) fn remove(&mut self, tenant: u64) {
        self.withdraw(tenant);
        self.next.remove(&tenant);
    }

    /// Clears the waiting handlers, since those whose turn it was did not submit.
    pub(super) fn clear_waiting(&mut self) {
        self.waiting.clear();
        self.ticket.clear();
    }

    fn turn_of(&self, tenant: u64) -> u64 {
        self.next.get(&tenant).copied().unwrap_or(0).max(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_handlers_are_first_and_a_served_one_is_last() {
        let mut turns = Turns::default();
        assert!(turns.may_go(1, 1));
        turns.enqueue(2);
        turns.enqueue(3);
        turns.enqueue(2);
        assert!(!turns.may_go(1, 1), "two have waited longer");
        assert!(!turns.may_go(3, 1) && turns.may_go(2, 1));
        assert!(turns.may_go(3, 2) && !turns.may_go(1, 2) && turns.may_go(1, 3));
        turns.served(2);
        assert!(turns.may_go(3, 1));
        turns.clear_waiting();
        assert!(turns.may_go(1, 1));
    }

    #[test]
    fn the_handler_tried_first_gets_no_larger_share() {
        let mut turns = Turns::default();
        let mut served = [0u32; 3];
        for _round in 0..300 {
            // Two places come free at once; all want both, and 0 is always tried first.
            let mut free = 2;
            for tenant in 0..3u64 {
                while free > 0 && turns.may_go(tenant, free) {
                    turns.served(tenant);
                    served[tenant as usize] += 1;
                    free -= 1;
                }
                turns.enqueue(tenant);
            }
        }
        assert_eq!(served.iter().sum::<u32>(), 600);
        assert!(served.iter().all(|&n| n.abs_diff(200) <= 2), "{served:?}");
    }

    #[test]
    fn a_new_handler_gets_no_credit_for_the_past() {
        let mut turns = Turns::default();
        for _ in 0..1_000 {
            turns.enqueue(1);
            turns.served(1);
        }
        turns.enqueue(1);
        turns.enqueue(2);
        turns.served(2);
        turns.enqueue(2);
        assert!(turns.may_go(1, 1), "one each is fair");
    }
}
