//! Fair queueing of handlers that share a full thread pool. Pure.
//!
//! Start-time fair queueing with batches of equal size: a handler's turn is its number of batches so far, counted from the
//! position of the others when it began to wait. First-come, first-served would favour the handler that a pump happens to
//! try first.

use std::collections::{BTreeSet, HashMap};

use crate::member::MemberId;

/// Handlers refused for lack of room, ordered by turn.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    /// Turn of the handler served last.
    now: u64,
    /// Next turn of each handler served so far.
    next: HashMap<MemberId, u64>,
    refusals: u64,
    /// (turn, refusal number, handler).
    waiting: BTreeSet<(u64, u64, MemberId)>,
    /// Turn and refusal number of each waiting handler.
    ticket: HashMap<MemberId, (u64, u64)>,
}

impl FairQueue {
    /// Whether `member` may take one of `free` places: not while that many other handlers have an earlier turn.
    pub(crate) fn may_go(&self, member: MemberId, free: usize) -> bool {
        if self.waiting.len() < free {
            return true;
        }
        let mut first = self.waiting.iter().take(free);
        first.any(|&(_, _, other)| other == member)
    }

    /// Queues `member` after a refusal for lack of room.
    pub(crate) fn enqueue(&mut self, member: MemberId) {
        if !self.ticket.contains_key(&member) {
            let ticket = (self.turn_of(member), self.refusals);
            self.refusals += 1;
            self.ticket.insert(member, ticket);
            self.waiting.insert((ticket.0, ticket.1, member));
        }
    }

    /// Records that a batch of `member` was accepted.
    pub(crate) fn served(&mut self, member: MemberId) {
        let turn = self.ticket.get(&member).map(|&(turn, _)| turn);
        let turn = turn.unwrap_or_else(|| self.turn_of(member));
        self.now = self.now.max(turn);
        self.next.insert(member, turn + 1);
        self.withdraw(member);
    }

    /// Removes `member` from the waiting handlers.
    pub(crate) fn withdraw(&mut self, member: MemberId) {
        if let Some((turn, refusal)) = self.ticket.remove(&member) {
            self.waiting.remove(&(turn, refusal, member));
        }
    }

    /// Forgets `member`, which has left the thread pool.
    pub(crate) fn remove(&mut self, member: MemberId) {
        self.withdraw(member);
        self.next.remove(&member);
    }

    /// Clears the waiting handlers, since those whose turn it was did not submit.
    pub(crate) fn clear_waiting(&mut self) {
        self.waiting.clear();
        self.ticket.clear();
    }

    fn turn_of(&self, member: MemberId) -> u64 {
        self.next.get(&member).copied().unwrap_or(0).max(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_handlers_are_first_and_a_served_one_is_last() {
        let mut queue = FairQueue::default();
        assert!(queue.may_go(1, 1));
        queue.enqueue(2);
        queue.enqueue(3);
        queue.enqueue(2);
        assert!(!queue.may_go(1, 1), "two have waited longer");
        assert!(!queue.may_go(3, 1) && queue.may_go(2, 1));
        assert!(queue.may_go(3, 2) && !queue.may_go(1, 2) && queue.may_go(1, 3));
        queue.served(2);
        assert!(queue.may_go(3, 1));
        queue.clear_waiting();
        assert!(queue.may_go(1, 1));
    }

    #[test]
    fn the_handler_tried_first_gets_no_larger_share() {
        let mut queue = FairQueue::default();
        let mut served = [0u32; 3];
        for _round in 0..300 {
            // Two places come free at once; all want both, and 0 is always tried first.
            let mut free = 2;
            for member in 0..3u64 {
                while free > 0 && queue.may_go(member, free) {
                    queue.served(member);
                    served[member as usize] += 1;
                    free -= 1;
                }
                queue.enqueue(member);
            }
        }
        assert_eq!(served.iter().sum::<u32>(), 600);
        assert!(served.iter().all(|&n| n.abs_diff(200) <= 2), "{served:?}");
    }

    #[test]
    fn a_new_handler_gets_no_credit_for_the_past() {
        let mut queue = FairQueue::default();
        for _ in 0..1_000 {
            queue.enqueue(1);
            queue.served(1);
        }
        queue.enqueue(1);
        queue.enqueue(2);
        queue.served(2);
        queue.enqueue(2);
        assert!(queue.may_go(1, 1), "one each is fair");
    }
}
