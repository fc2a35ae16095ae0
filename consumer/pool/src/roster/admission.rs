//! Whether a batch is accepted, and by which queue; who is told that there is room.

use std::sync::Arc;

use sluicegate_engine::dispatch::{Batch, Inbox};

use super::{Effect, Effects, Roster, WorkItem};
use crate::member::{MemberId, PoolMember};
use crate::roster::slot::WorkerSlot;

/// The queue for a batch.
enum QueueChoice {
    /// The shared queue.
    Shared,
    /// The queue of a worker.
    Bound(usize),
}

impl Roster {
    /// Accepts a batch.
    ///
    /// # Errors
    /// Returns the batch if it cannot wait here now; its inbox is told once it may.
    pub(crate) fn submit(
        &mut self,
        member: &Arc<PoolMember>,
        batch: Box<Batch>,
        reply_to: &Arc<Inbox>,
        effects: &mut Effects,
    ) -> Result<(), Box<Batch>> {
        let Some(choice) = self.choose_queue(member.id, batch.worker) else {
            match self.members.get_mut(&member.id) {
                // It has no room until it is reset, so notices of room would only cause useless retries.
                Some(state) if state.tripped.is_some() => state.wait_for_reset(reply_to),
                _ => self.add_waiting(reply_to),
            }
            return Err(batch);
        };
        let item = WorkItem {
            member: Arc::clone(member),
            batch,
            reply_to: Arc::clone(reply_to),
        };
        let slot = match choice {
            QueueChoice::Shared => {
                self.queue.push_back(item);
                self.slot_to_wake(member.id)
            }
            QueueChoice::Bound(slot) => {
                self.slots[slot].bound.push_back(item);
                Some(slot)
            }
        };
        if let Some(slot) = slot {
            self.wake_or_spawn(slot, effects);
        }
        Ok(())
    }

    /// The queue that a batch may wait in; `None` refuses it.
    fn choose_queue(&mut self, member: MemberId, worker: Option<u32>) -> Option<QueueChoice> {
        if (self.members.get(&member)).is_none_or(|state| state.tripped.is_some()) {
            return None;
        }
        if let Some(worker) = worker {
            let at = worker as usize % self.slots.len();
            let slot = &self.slots[at];
            let room = !self.backoffs.at(at, member) && slot.bound.len() + slot.busy() < 2;
            return room.then_some(QueueChoice::Bound(at));
        }
        if self.backoffs.at_all(self.slots.len(), member) {
            return None;
        }
        let free = self.room();
        let shared = self.members.len() > 1;
        if free > 0 && (!shared || self.fair.may_go(member, free)) {
            if shared {
                self.fair.served(member);
            }
            return Some(QueueChoice::Shared);
        }
        if shared {
            self.fair.enqueue(member);
        }
        None
    }

    /// The slot to wake for a batch in the shared queue: preferably that of an idle thread, else one without a thread.
    /// `None` if all are busy; one of them takes the batch next.
    fn slot_to_wake(&self, member: MemberId) -> Option<usize> {
        let find = |wanted: fn(&WorkerSlot) -> bool| {
            let mut slots = self.slots.iter().enumerate();
            slots.position(|(at, slot)| wanted(slot) && !self.backoffs.at(at, member))
        };
        find(|slot| slot.parked).or_else(|| find(|slot| !slot.alive))
    }

    fn add_waiting(&mut self, reply_to: &Arc<Inbox>) {
        let mut waiting = self.waiting.iter();
        if !waiting.any(|known| Arc::ptr_eq(known, reply_to)) {
            self.waiting.push(Arc::clone(reply_to));
        }
    }

    /// Notifies all waiting inboxes that there may be room.
    pub(super) fn notify_waiting(&mut self, effects: &mut Effects) {
        for inbox in self.waiting.drain(..) {
            effects.push(Effect::Room(inbox));
        }
    }

    /// The room of the shared queue, in batches.
    fn room(&self) -> usize {
        let busy: usize = self.slots.iter().map(WorkerSlot::busy).sum();
        (2 * self.slots.len()).saturating_sub(self.queue.len() + busy)
    }

    /// Notifies the waiting inboxes if there is room that no handler has used since its turn came.
    pub(super) fn offer_unused_room(&mut self, effects: &mut Effects) {
        if !self.waiting.is_empty() && self.room() > 0 {
            // The handlers whose turn it was did not submit; their records may be gone.
            self.fair.clear_waiting();
            self.notify_waiting(effects);
        }
    }

    /// Lets a tripped member run again.
    pub(super) fn reset(&mut self, member: &Arc<PoolMember>, effects: &mut Effects) {
        self.backoffs.end(member.id);
        if let Some(state) = self.members.get_mut(&member.id) {
            state.tripped = None;
            state.backoff.clear();
            let waiting = std::mem::take(&mut state.waiting_for_reset);
            effects.push(Effect::Untripped(Arc::clone(member)));
            for inbox in waiting {
                if let Some(inbox) = inbox.upgrade() {
                    self.add_waiting(&inbox);
                }
            }
        }
        self.notify_waiting(effects);
    }
}
