//! Whose turn it is when several handlers share a crew that is full. Pure.
//!
//! Start-time fair queueing with batches of one size: a handler's turn is its number of batches so far, counted from
//! where the others were when it began to wait. First refused, first served alone would favour the handler that a pump
//! happens to try first.

use std::collections::{BTreeSet, HashMap};

/// The handlers that were refused for want of room, by whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The turn of the handler that was served last.
    now: u64,
    /// The next turn of handlers that were served.
    next: HashMap<u64, u64>,
    refusals: u64,
    /// Turn, number of the refusal, handler.
    waiting: BTreeSet<(u64, u64, u64)>,
    ticket: HashMap<u64, (u64, u64)>,
}

impl Turns {
    /// Whether `tenant` may take one of `free` places: not while it is the turn of that many others.
    pub(super) fn may_go(&self, tenant: u64, free: usize) -> bool {
        if self.waiting.len() < free {
            return true;
        }
        let mut first = self.waiting.iter().take(free);
        first.any(|&(_, _, other)| other == tenant)
    }

    /// `tenant` was refused for want of room.
    pub(super) fn wait(&mut self, tenant: u64) {
        if !self.ticket.contains_key(&tenant) {
            let ticket = (self.turn_of(tenant), self.refusals);
            self.refusals += 1;
            self.ticket.insert(tenant, ticket);
            self.waiting.insert((ticket.0, ticket.1, tenant));
        }
    }

    /// `tenant` was served.
    pub(super) fn served(&mut self, tenant: u64) {
        let turn = self.ticket.get(&tenant).map(|&(turn, _)| turn);
        let turn = turn.unwrap_or_else(|| self.turn_of(tenant));
        self.now = self.now.max(turn);
        self.next.insert(tenant, turn + 1);
        self.gives_up(tenant);
    }

    /// `tenant` wants nothing just now.
    pub(super) fn gives_up(&mut self, tenant: u64) {
        if let Some((turn, refusal)) = self.ticket.remove(&tenant) {
            self.waiting.remove(&(turn, refusal, tenant));
        }
    }

    /// `tenant` is gone for good.
    pub(super) fn leaves(&mut self, tenant: u64) {
        self.gives_up(tenant);
        self.next.remove(&tenant);
    }

    /// Forgets who waits: those whose turn it was did not come.
    pub(super) fn forget(&mut self) {
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
    fn the_longest_waiting_go_first_and_a_greedy_one_goes_to_the_end() {
        let mut turns = Turns::default();
        assert!(turns.may_go(1, 1));
        turns.wait(2);
        turns.wait(3);
        turns.wait(2);
        assert!(!turns.may_go(1, 1), "two have waited longer");
        assert!(!turns.may_go(3, 1) && turns.may_go(2, 1));
        assert!(turns.may_go(3, 2) && !turns.may_go(1, 2) && turns.may_go(1, 3));
        turns.served(2);
        assert!(turns.may_go(3, 1));
        turns.forget();
        assert!(turns.may_go(1, 1));
    }

    #[test]
    fn whoever_is_tried_first_gets_no_more_than_the_others() {
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
                turns.wait(tenant);
            }
        }
        assert_eq!(served.iter().sum::<u32>(), 600);
        assert!(served.iter().all(|&n| n.abs_diff(200) <= 2), "{served:?}");
    }

    #[test]
    fn a_newcomer_does_not_make_up_for_the_past() {
        let mut turns = Turns::default();
        for _ in 0..1_000 {
            turns.wait(1);
            turns.served(1);
        }
        turns.wait(1);
        turns.wait(2);
        turns.served(2);
        turns.wait(2);
        assert!(turns.may_go(1, 1), "one each is fair");
    }
}
