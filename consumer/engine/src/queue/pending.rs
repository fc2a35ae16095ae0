//! Pending shares: records that a handler has run at their first attempt, and whose emits the producer has. They settle as the
//! acknowledgements come, in the order of their lanes.
//!
//! ```text
//!  call ends ─► pending: linked in its lane ─► acknowledged, the first of its lane ─► settled
//!                  └─► refused, or not the first, or its partition or order changes ─► deferred (`deferred`)
//! ```
//!
//! Nearly all records that emit are this. What there is to know of one is kept with its emits, where the acknowledgement finds it
//! (`emit::shipment`); it becomes a deferred share when something unusual happens to it.

use sluicegate_runtime::{RawRecord, outcome_code};

use super::HandlerQueue;
use super::context::Context;
use super::deferred::{Attempt, Ending, Share, ShareState};
use super::targets::GenerationId;
use crate::dispatch::RecordId;
use crate::emit::shipment::{Answered, Pending, ShippedAt};
use crate::record::Record;

impl HandlerQueue {
    /// A call has emitted for a record of this lane at its first attempt. Returns whether its share is pending: else it is to be
    /// deferred.
    pub(super) fn pend<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        (key, lane): (RecordId, u64),
        at: ShippedAt,
        ran_by: &GenerationId,
        code: u16,
    ) -> bool {
        let succeeds = matches!(code, outcome_code::ACK | outcome_code::DROP);
        // Records of a lane that fail in one call of a batch handler follow one another.
        let follows = lane != 0 && ran_by.takes_batches;
        if !succeeds || follows || self.chains.is_troubled(lane) || ctx.records.is_over(key) {
            return false;
        }
        let number = match lane {
            0 => 0,
            _ => self.chains.link_pending(lane, key, at),
        };
        let pending = Pending {
            lane,
            number,
            is_dropped: code == outcome_code::DROP,
        };
        ctx.outbox.pend(at, pending);
        self.passing += 1;
        true
    }

    /// Reads where the records of a call are about to be linked, one independently of the other, so that it is in the cache then.
    pub(super) fn touch_chains(&self, records: &[RawRecord], emits_nothing: bool) {
        if emits_nothing {
            return;
        }
        let touched = records.iter().map(|record| self.chains.touch(record.lane));
        std::hint::black_box(touched.fold(0, |all, one| all ^ one));
    }

    /// Reads what settling a share reads, so that it is in the cache then; the result is only to be used.
    pub(crate) fn touch(&self, one: &Answered) -> u64 {
        let lane = one.pending.map_or(0, |pending| pending.lane);
        self.chains.touch(lane)
    }

    /// Settles a pending share whose emits are acknowledged, if it is the first of its lane.
    pub(super) fn settle_pending<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        one: &Answered,
        pending: Pending,
    ) -> bool {
        // An answer before this one can have changed that.
        if !ctx.outbox.is_pending(one.at) {
            return false;
        }
        let next_is_done = match pending.lane {
            0 => false,
            lane => match self.chains.take_first(lane, pending.number) {
                Some(next_is_done) => next_is_done,
                None => return false,
            },
        };
        self.passing -= 1;
        let counts = &mut self.counts;
        ctx.outbox.settle(one.at, |ran_by| {
            let counts = counts.of(ran_by);
            match pending.is_dropped {
                true => counts.drop += 1,
                false => counts.ack += 1,
            }
        });
        ctx.records.settle_share(one.key, ctx.now_ms);
        if next_is_done {
            self.advance(ctx, pending.lane);
        }
        true
    }

    /// A pending share becomes a deferred one.
    pub(super) fn defer_pending<R: Record>(
        &mut self,
        ctx: &mut Context<R>,
        key: RecordId,
        at: ShippedAt,
    ) {
        let Some((pending, ran_by, since_ms)) = ctx.outbox.take_pending(at, key) else {
            return;
        };
        let Pending {
            lane,
            number,
            is_dropped,
        } = pending;
        self.passing -= 1;
        if lane == 0 {
            self.hold(0);
        }
        let attempt = Attempt::new(key, lane, 1, &ran_by);
        let share = Share {
            since_ms,
            ending: match is_dropped {
                true => Ending::Drop,
                false => Ending::Ack,
            },
            passes: lane != 0,
            linked: (lane != 0).then_some(number),
            shipped: Some(at),
            ..self.share(ctx, &attempt, ShareState::Emitting)
        };
        self.defer(ctx, key, share);
    }

    /// The pending shares of a lane become deferred ones: it is in trouble from now on.
    pub(super) fn defer_pending_of<R: Record>(&mut self, ctx: &mut Context<R>, lane: u64) {
        for (key, at) in self.chains.take_pending(lane) {
            self.defer_pending(ctx, key, at);
        }
    }

    /// All pending shares become deferred ones: something happens to partitions, or to all lanes.
    pub(super) fn defer_all_pending<R: Record>(&mut self, ctx: &mut Context<R>) {
        if self.passing == 0 {
            return;
        }
        let pending = ctx.outbox.pending(self.ix);
        let mut pending: Vec<(RecordId, ShippedAt)> =
            pending.map(|(key, at, _)| (key, at)).collect();
        // The order of what follows does not depend on that of a table.
        pending.sort_unstable_by_key(|(key, _)| *key);
        for (key, at) in pending {
            self.defer_pending(ctx, key, at);
        }
    }
}
