//! Handlers that are switched off or removed while they have records: what the flow skips then, whether it may, and
//! whether it lets go in time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluicegate::dispatch::{FlightKey, HandlerIx, PoolState, PumpMessage, WorkerPool};
use sluicegate::flow::report::WallClock;

use super::model::{Check, Share, Stage};
use super::pools::SimPool;
use super::script::SimHandler;
use super::world::{Message, ShareKey, World};

/// More than the flow takes to see what has changed: its look now and then, and the time that passes between two ticks.
const SEEN_WITHIN_MS: u64 = 400;

/// A handler that is switched off or removed.
struct Closed {
    since_ms: u64,
    /// When it failed; `None` while it works.
    failed_ms: Option<u64>,
    pool: Arc<SimPool>,
}

/// The account of handlers that are switched off or removed.
#[derive(Default)]
pub struct Closing {
    /// The pool that each handler was given last.
    pools: BTreeMap<u32, Arc<SimPool>>,
    closed: BTreeMap<u32, Closed>,
    /// When the flow was last told anything of a handler, and when a share of it settled by that.
    heard_ms: HashMap<u32, u64>,
    settled_ms: HashMap<u32, u64>,
    /// A promise that was found broken where nobody could be told.
    pub broken: Option<String>,
}

impl Closing {
    /// A plan is in force; what it does not have is removed.
    pub fn apply(&mut self, handlers: &[SimHandler], now_ms: u64) {
        for handler in handlers {
            self.pools.insert(handler.ix.0, handler.pool.clone());
        }
        for (&ix, pool) in &self.pools {
            if handlers.iter().any(|h| h.ix.0 == ix && h.gate_open) {
                self.closed.remove(&ix);
                continue;
            }
            let closed = self.closed.entry(ix).or_insert_with(|| Closed {
                since_ms: now_ms,
                failed_ms: None,
                pool: pool.clone(),
            });
            closed.pool = pool.clone();
        }
        self.see_failures(now_ms);
    }

    /// The process is another one.
    pub fn crash(&mut self) {
        *self = Self {
            broken: self.broken.take(),
            ..Self::default()
        };
    }

    /// The flow is told something of a handler; `settled` when a share of it settles by that.
    pub fn heard(&mut self, handler: u32, settled: bool, now_ms: u64) {
        self.heard_ms.insert(handler, now_ms);
        if settled {
            self.settled_ms.insert(handler, now_ms);
        }
    }

    fn see_failures(&mut self, now_ms: u64) {
        for closed in self.closed.values_mut() {
            match closed.pool.state() {
                PoolState::Failed => _ = closed.failed_ms.get_or_insert(now_ms),
                PoolState::Active => closed.failed_ms = None,
            }
        }
    }
}

impl World {
    /// The flow has looked at handlers that are switched off: takes note of the shares that it has skipped.
    pub fn see_skips(&mut self) {
        self.closing.see_failures(self.now_ms);
        let closed: Vec<u32> = self.closing.closed.keys().copied().collect();
        for handler in closed {
            let checked = self
                .see_skips_of(handler)
                .and_then(|()| self.lets_go(handler));
            if let Err(broken) = checked {
                self.closing.broken.get_or_insert(broken);
            }
        }
    }

    fn see_skips_of(&mut self, handler: u32) -> Check {
        let closed = &self.closing.closed[&handler];
        let failed = closed.failed_ms.is_some();
        let settled_ms = self.closing.settled_ms.get(&handler).copied();
        let moved_ms = settled_ms.unwrap_or(0).max(closed.since_ms);
        let overdue = self.now_ms - moved_ms >= self.script.drain_ms;
        for key in self.open_shares(handler) {
            if self.flow_holds(&key) {
                continue;
            }
            let draining = self.model.owned[&key.epoch].draining;
            let called = self.is_called(&key);
            let Some(share) = self.model.share(key.epoch, key.offset, key.handler) else {
                continue;
            };
            let may = match share.stage {
                Stage::Queued => (failed && !called) || overdue,
                Stage::Failed if share.given_up => false,
                Stage::Failed => (failed && !called) || overdue,
                Stage::Running | Stage::Acked => overdue,
                // It is run again instead of sent again, by a newer generation.
                Stage::Producing if share.refused => overdue,
                Stage::Producing | Stage::Settled => false,
            };
            // A drain leaves to the next owner what nobody has begun.
            if !may && draining {
                continue;
            }
            let stage = share.stage;
            if !may {
                return Err(format!(
                    "{key:?} was skipped while {stage:?}, failed {failed}, overdue {overdue} (G1)"
                ));
            }
            self.skip(&key, called, overdue, draining);
        }
        Ok(())
    }

    fn skip(&mut self, key: &ShareKey, called: bool, overdue: bool, draining: bool) {
        self.model.tell(|| format!("skipped {key:?}"));
        let met = &mut self.model.met;
        match (called, overdue) {
            // It may as well be left to the next owner.
            _ if draining => {}
            (true, _) => met.abandoned += 1,
            (_, true) => met.skipped_overdue += 1,
            _ => met.skipped_failed += 1,
        }
        if let Some(share) = self.model.share(key.epoch, key.offset, key.handler) {
            share.skipped = true;
        }
        self.model.settle(key.epoch, key.offset, key.handler);
    }

    /// Whether a handler that is switched off has let go of what it will not finish.
    fn lets_go(&self, handler: u32) -> Check {
        let closed = &self.closing.closed[&handler];
        let heard_ms = self.closing.heard_ms.get(&handler).copied().unwrap_or(0);
        let quiet_ms = self.now_ms - heard_ms.max(closed.since_ms);
        let failed_for_ms = closed
            .failed_ms
            .map_or(0, |since_ms| self.now_ms - since_ms);
        let failed = quiet_ms.min(failed_for_ms) >= SEEN_WITHIN_MS;
        let overdue = quiet_ms >= self.script.drain_ms + SEEN_WITHIN_MS;
        for key in self.open_shares(handler) {
            let owned = &self.model.owned[&key.epoch];
            let share = &owned.records[&key.offset].shares[&handler];
            let produces = share.stage == Stage::Producing && !share.refused;
            let with_producer = produces || share.given_up;
            let kept = overdue || (failed && !self.is_called(&key));
            if kept && !with_producer && !owned.draining {
                return Err(format!(
                    "{key:?} is {:?} and still held by a handler that is off and has failed or hangs (G8)",
                    share.stage
                ));
            }
        }
        Ok(())
    }

    /// Shares of a handler that are not settled, in partitions that are ours.
    fn open_shares(&self, handler: u32) -> Vec<ShareKey> {
        let mut open = Vec::new();
        for (&epoch, owned) in self.model.owned.iter().filter(|(_, owned)| !owned.released) {
            for (&offset, held) in owned.records.range(owned.settled_to.get()..) {
                let unsettled = |share: &Share| share.stage != Stage::Settled;
                if held.shares.get(&handler).is_some_and(unsettled) {
                    open.push(ShareKey {
                        epoch,
                        offset,
                        handler,
                    });
                }
            }
        }
        open
    }

    /// The trouble is over, but who is switched off stays as it is: pools that have failed, and calls that never end.
    pub fn leave_closed_in_trouble(&mut self) -> Vec<Arc<SimPool>> {
        let closed = &self.closing.closed;
        for run in self.running.iter_mut().filter(|run| !run.hung) {
            if closed.contains_key(&run.batch.handler.0) && self.random.chance(50) {
                run.stuck = true;
            }
        }
        closed.values().map(|closed| closed.pool.clone()).collect()
    }

    /// Calls that never ended return after all. `false` when there were none.
    pub fn return_stuck(&mut self) -> bool {
        let mut any = false;
        for run in &mut self.running {
            any |= std::mem::take(&mut run.stuck);
        }
        any
    }

    /// Whether the flow still has it, as it says itself.
    fn flow_holds(&self, key: &ShareKey) -> bool {
        let owned = &self.model.owned[&key.epoch];
        let clock = WallClock { epoch_ms: 0 };
        let name = SimHandler::name(HandlerIx(key.handler));
        self.flow
            .explain(&owned.at, Some(key.offset), clock)
            .is_some_and(|told| told.held_by.iter().any(|held| held.handler == name))
    }

    /// Whether it is in a call, or in one that has ended without the flow having heard of it.
    fn is_called(&self, key: &ShareKey) -> bool {
        let running = self.running.iter().map(|run| &run.batch);
        let coming = self
            .messages
            .iter()
            .filter_map(|message| match &message.message {
                PumpMessage::Finished(batch) => Some(batch),
                _ => None,
            });
        running.chain(coming).any(|batch| {
            let mut records = batch.records.iter();
            batch.handler.0 == key.handler
                && records.any(|record| record.epoch == key.epoch && record.offset == key.offset)
                && !self.is_given_up(batch.flight)
        })
    }

    /// Whether the flow has been told that the call hangs.
    fn is_given_up(&self, hung: FlightKey) -> bool {
        let says_so = |message: &Message| matches!(&message.message, PumpMessage::Overrun { flight, .. } if *flight == hung);
        self.overran.contains_key(&hung) && !self.messages.iter().any(says_so)
    }
}
