//! Where members back off after failures.

use std::time::Instant;

use crate::member::MemberId;

struct Backoff {
    slot: usize,
    member: MemberId,
    until: Instant,
}

/// The worker slots at which members back off. A backoff ends with an event ([`Backoffs::expire`]) and not by itself, so
/// that a refused inbox is notified of every one that ends, and no submission reads the clock.
#[derive(Default)]
pub(crate) struct Backoffs(Vec<Backoff>);

impl Backoffs {
    /// Starts a backoff, or replaces the one of this member at this slot.
    pub(super) fn start(&mut self, slot: usize, member: MemberId, until: Instant) {
        self.0
            .retain(|known| (known.slot, known.member) != (slot, member));
        self.0.push(Backoff {
            slot,
            member,
            until,
        });
    }

    pub(super) fn at(&self, slot: usize, member: MemberId) -> bool {
        let mut backoffs = self.0.iter();
        backoffs.any(|known| (known.slot, known.member) == (slot, member))
    }

    /// Whether the member backs off at all of `slots` slots.
    pub(super) fn at_all(&self, slots: usize, member: MemberId) -> bool {
        // One entry per slot and member.
        self.0.iter().filter(|known| known.member == member).count() == slots
    }

    /// Ends the backoffs that are over; returns whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known.until > now);
        self.0.len() < before
    }

    /// End of the first backoff at a slot.
    pub(super) fn first_end(&self, slot: usize) -> Option<Instant> {
        let here = self.0.iter().filter(|known| known.slot == slot);
        here.map(|known| known.until).min()
    }

    /// Ends all backoffs of a member.
    pub(super) fn end(&mut self, member: MemberId) {
        self.0.retain(|known| known.member != member);
    }
}
