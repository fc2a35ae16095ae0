//! A change of a handler's order.
//!
//! ```text
//!  plan with another order ─► unsubmitted and waiting records ─► backlog; nothing new is submitted
//!                                 │ the calls under way end
//!                                 └─► backlog sorted by offset, deferred shares move to their lanes of the new order, and records
//!                                     before a parked one of their lane take their turn there
//! ```
//!
//! Lanes of two orders do not exclude each other: a record of the new order could overtake one of its key that a worker still
//! has. So the change waits for the calls under way, which end by their timeout. It does not wait for deferred shares, which
//! can last for hours (a long retry delay, a dead-letter topic that is missing): these close their lanes in the new order as
//! they did in the one before, and run again in offset order within them (G4).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::HandlerQueue;
use super::chains::Unlinked;
use super::context::Context;
use super::deferred::{Attempt, Share, ShareState};
use super::lane::lane_of_key;
use super::lanes::Lanes;
use crate::dispatch::RecordId;
use crate::record::Record;
use crate::records::slab::RecordEntry;

impl HandlerQueue {
    /// Whether calls under way have records of another order than the next ones.
    pub(super) fn changes_order(&self) -> bool {
        self.order != self.settings.order
    }

    /// Applies another order once no call has a record that was submitted under the one before.
    pub(super) fn follow_order<R: Record>(&mut self, ctx: &mut Context<R>) {
        if !self.changes_order() || self.in_flight_records > 0 {
            return;
        }
        self.order = self.settings.order;
        self.backlog.extend(self.lanes.retain(|_| false));
        self.lanes = Lanes::default();
        self.runnable.clear();
        // Those that calls did not run, and those that waited in lanes, came back in any order.
        let place = |key: &RecordId| {
            let entry = ctx.records.slab.get(*key);
            entry.map(|entry| (entry.slot, entry.offset()))
        };
        self.backlog.make_contiguous().sort_by_key(place);
        self.defer_all_pending(ctx);
        self.move_deferred(ctx);
        self.defer_overtaken(ctx);
    }

    /// Records that are parked run again before those that wait. Where lanes of two orders merge, a parked record can stand behind one that has
    /// not run, or is to run again: that one takes its turn among the parked ones.
    fn defer_overtaken<R: Record>(&mut self, ctx: &mut Context<R>) {
        let slab = &ctx.records.slab;
        let offset = |key| slab.get(key).map_or(0, RecordEntry::offset);
        let mut last_parked: HashMap<u64, i64> = HashMap::new();
        for (key, share) in self.deferred.iter() {
            if share.lane != 0 && (share.state.is_parked() || share.waits_for_resend()) {
                let last = last_parked.entry(share.lane).or_insert(i64::MIN);
                *last = offset(key).max(*last);
            }
        }
        if last_parked.is_empty() {
            return;
        }
        let mut overtaken = Vec::new();
        self.backlog.retain(|&key| {
            let lane = lane_of_key(slab, self.order, key);
            let waits = last_parked
                .get(&lane)
                .is_none_or(|last| offset(key) > *last);
            if !waits {
                overtaken.push(Attempt::new(key, lane, 1, &self.current));
            }
            waits
        });
        self.park_in_turn(ctx, &overtaken);
    }

    /// Deferred shares hold their lanes of the new order. None is with a worker.
    fn move_deferred<R: Record>(&mut self, ctx: &mut Context<R>) {
        let (slab, order) = (&ctx.records.slab, self.order);
        let place = |key: RecordId| {
            let offset = slab.get(key).map_or(0, |entry| entry.offset());
            (lane_of_key(slab, order, key), offset)
        };
        self.held -= self.chains.troubles();
        let (links, topics) = self.chains.take_all();
        let links = links.into_iter().map(|link| (link.key, link));
        let mut links: HashMap<RecordId, Unlinked> = links.collect();
        let moved = self.deferred.move_to_lanes(place);
        let (mut lanes, mut alone) = (BTreeSet::new(), Vec::new());
        // Lanes of two orders merge: what stands behind one that waits to be sent again is written again.
        let mut tainted: BTreeMap<u64, u64> = BTreeMap::new();
        for (key, lane, due_ms) in moved {
            let Some(share) = self.deferred.get(key).cloned() else {
                continue;
            };
            if lane != 0 && share.holds() {
                self.lanes.hold(lane, |_| false);
            }
            // It may have been due behind one that it does not follow any more.
            if let Some(due_ms) = due_ms.filter(|due_ms| *due_ms <= ctx.now_ms) {
                ctx.agenda.add_due(self.ix, key, due_ms);
            }
            match links.remove(&key) {
                Some(link) if lane != 0 => {
                    let number = self.chains.link(lane, key, link.state);
                    lanes.insert(lane);
                    if link.tainted || share.waits_for_resend() {
                        tainted
                            .entry(lane)
                            .or_insert(number + u64::from(!link.tainted));
                    }
                    self.link_again(ctx, key, share, number);
                }
                Some(link) => alone.push((key, link.state)),
                None => {}
            }
        }
        for (lane, from) in tainted {
            if self.chains.begin_trouble(lane, from, &topics) {
                self.hold(lane);
            }
        }
        for lane in lanes {
            self.advance(ctx, lane);
        }
        for (key, state) in alone {
            self.part(ctx, key, state);
        }
    }

    /// A share is linked in its lane of the new order. If it was about to be sent again, it takes its turn there.
    fn link_again<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        share: Share,
        number: u64,
    ) {
        let share = Share {
            linked: Some(number),
            ..share
        };
        let is_due = matches!(share.state, ShareState::EmitsDue { .. });
        match is_due && !self.chains.is_first(share.lane, number) {
            true => self.wait_for_turn(ctx, key, share),
            false => self.defer(ctx, key, share),
        }
    }
}
