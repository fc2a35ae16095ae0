//! Handlers that are switched off or removed while they have records: which records the flow skips, whether it may, and
//! whether it releases them in time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluicegate_engine::clock::WallClock;
use sluicegate_engine::dispatch::{BatchId, HandlerIx, PoolState, PumpMessage, WorkerPool};
use sluicegate_engine::queue::OnFailure;

use super::model::Check;
use super::pools::SimPool;
use super::script::SimHandler;
use super::share::{Share, Stage};
use super::world::{Message, ShareKey, World};

/// Upper bound for the flow to detect a change: its poll interval plus the time between two ticks.
const DETECTION_MS: u64 = 400;

/// A handler that is switched off or removed.
struct Closed {
    since_ms: u64,
    /// When it failed; `None` while it is working.
    failed_ms: Option<u64>,
    pools: Vec<Arc<SimPool>>,
}

/// Bookkeeping of handlers that are switched off or removed.
#[derive(Default)]
pub struct Closing {
    /// The latest pools of each handler.
    pub pools: BTreeMap<u32, Vec<Arc<SimPool>>>,
    closed: BTreeMap<u32, Closed>,
    /// When the flow last received an event about a handler, and when one last settled a share.
    last_event_ms: HashMap<u32, u64>,
    settled_ms: HashMap<u32, u64>,
    /// A violation found where it could not be returned as an error.
    pub broken: Option<String>,
}

impl Closing {
    /// A plan is applied; handlers that it lacks are removed.
    pub fn apply(&mut self, handlers: &[SimHandler], now_ms: u64) {
        for handler in handlers {
            let pools = handler.pools().map(|(_, pool)| pool.clone());
            self.pools.insert(handler.ix.0, pools.collect());
        }
        for (&ix, pools) in &self.pools {
            if handlers.iter().any(|h| h.ix.0 == ix && h.gate_open) {
                self.closed.remove(&ix);
                continue;
            }
            let closed = self.closed.entry(ix).or_insert_with(|| Closed {
                since_ms: now_ms,
                failed_ms: None,
                pools: pools.clone(),
            });
            closed.pools.clone_from(pools);
        }
        self.see_failures(now_ms);
    }

    /// The process restarts.
    pub fn crash(&mut self) {
        *self = Self {
            broken: self.broken.take(),
            ..Self::default()
        };
    }

    /// The flow receives an event about a handler; `settled` when the event settles a share.
    pub fn record_event(&mut self, handler: u32, settled: bool, now_ms: u64) {
        self.last_event_ms.insert(handler, now_ms);
        if settled {
            self.settled_ms.insert(handler, now_ms);
        }
    }

    /// Whether nothing runs the handler's records.
    pub fn has_failed(&self, handler: u32) -> bool {
        let pools = self.pools.get(&handler);
        pools.is_some_and(|pools| all_failed(pools))
    }

    fn see_failures(&mut self, now_ms: u64) {
        for closed in self.closed.values_mut() {
            match all_failed(&closed.pools) {
                true => _ = closed.failed_ms.get_or_insert(now_ms),
                false => closed.failed_ms = None,
            }
        }
    }
}

fn all_failed(pools: &[Arc<SimPool>]) -> bool {
    let mut pools = pools.iter();
    pools.all(|pool| pool.state() == PoolState::Failed)
}

impl World {
    /// Records the shares that the flow has skipped for switched-off handlers.
    pub fn see_skips(&mut self) {
        self.closing.see_failures(self.now_ms);
        let closed: Vec<u32> = self.closing.closed.keys().copied().collect();
        for handler in closed {
            let checked = self
                .see_skips_of(handler)
                .and_then(|()| self.check_release(handler));
            if let Err(broken) = checked {
                self.closing.broken.get_or_insert(broken);
            }
        }
    }

    fn see_skips_of(&mut self, handler: u32) -> Check {
        let closed = &self.closing.closed[&handler];
        let failed = closed.failed_ms.is_some();
        // Otherwise its records go to the dead-letter topic.
        let holds = self.on_failure_of.get(&handler) == Some(&OnFailure::Hold);
        let settled_ms = self.closing.settled_ms.get(&handler).copied();
        let moved_ms = settled_ms.unwrap_or(0).max(closed.since_ms);
        let overdue = self.now_ms - moved_ms >= self.script.drain_ms;
        for key in self.open_shares(handler) {
            if self.flow_holds(&key) {
                continue;
            }
            let draining = self.model.owned[&key.epoch].draining;
            let called = self.is_called(&key);
            let abandoned = failed && holds && !called;
            let again = (self.model).may_follow_again(&key, &self.script.logs);
            let Some(share) = self.model.share(key.epoch, key.offset, key.handler) else {
                continue;
            };
            let may = match share.stage {
                Stage::Queued => abandoned || overdue,
                Stage::Failed if share.dead_lettered => false,
                Stage::Failed => abandoned || overdue,
                Stage::Running | Stage::Acked => overdue,
                // Queued for another generation instead of having its emits produced again.
                Stage::Producing if again || share.may_run_again() => abandoned || overdue,
                Stage::Producing if share.refused.is_some() => overdue,
                Stage::Producing | Stage::Settled => false,
            };
            // A drain leaves records that were not started to the next owner.
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
        self.model.trace(|| format!("skipped {key:?}"));
        let coverage = &mut self.model.coverage;
        match (called, overdue) {
            // It may also be left to the next owner.
            _ if draining => {}
            (true, _) => coverage.abandoned += 1,
            (_, true) => coverage.skipped_overdue += 1,
            _ => coverage.skipped_failed += 1,
        }
        if let Some(share) = self.model.share(key.epoch, key.offset, key.handler) {
            share.skipped = true;
            if share.could_run_again {
                self.model.skip_what_runs_again(key);
            }
        }
        self.model.settle(key.epoch, key.offset, key.handler);
    }

    /// Checks that a switched-off handler has released the records that it will not finish.
    fn check_release(&self, handler: u32) -> Check {
        let closed = &self.closing.closed[&handler];
        let last_event_ms = self
            .closing
            .last_event_ms
            .get(&handler)
            .copied()
            .unwrap_or(0);
        let quiet_ms = self.now_ms - last_event_ms.max(closed.since_ms);
        let failed_for_ms = closed
            .failed_ms
            .map_or(0, |since_ms| self.now_ms - since_ms);
        let failed = quiet_ms.min(failed_for_ms) >= DETECTION_MS;
        let overdue = quiet_ms >= self.script.drain_ms + DETECTION_MS;
        for key in self.open_shares(handler) {
            let owned = &self.model.owned[&key.epoch];
            let share = &owned.records[&key.offset].shares[&handler];
            let produces = share.stage == Stage::Producing;
            let with_producer = (produces && share.refused.is_none()) || share.dead_lettered;
            // What the producer refused is produced again until the drain timeout, whether or not the handler has failed.
            let kept = overdue || (failed && !produces && !self.is_called(&key));
            if kept && !with_producer && !owned.draining {
                return Err(format!(
                    "{key:?} is {:?} and still held by a handler that is off and has failed or hangs (G8)",
                    share.stage
                ));
            }
        }
        Ok(())
    }

    /// Unsettled shares of a handler in assigned partitions.
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

    /// Faults end, except for switched-off handlers: their pools stay failed, and some of their calls never return.
    pub fn keep_closed_faulty(&mut self) -> Vec<Arc<SimPool>> {
        let closed = &self.closing.closed;
        for run in self.running.iter_mut().filter(|run| !run.hung) {
            if closed.contains_key(&run.batch.handler.0) && self.random.chance(50) {
                run.stuck = true;
            }
        }
        let pools = closed.values().flat_map(|closed| &closed.pools);
        pools.cloned().collect()
    }

    /// Stuck calls return after all. `false` when there were none.
    pub fn return_stuck(&mut self) -> bool {
        let mut any = false;
        for run in &mut self.running {
            any |= std::mem::take(&mut run.stuck);
        }
        any
    }

    /// Whether the flow still holds the share, according to its own `explain`.
    fn flow_holds(&self, key: &ShareKey) -> bool {
        let owned = &self.model.owned[&key.epoch];
        let clock = WallClock { epoch_ms: 0 };
        let name = SimHandler::name(HandlerIx(key.handler));
        self.flow()
            .explain(&owned.at, Some(key.offset), clock)
            .is_some_and(|explanation| explanation.held_by.iter().any(|held| held.handler == name))
    }

    /// Whether it is in a call, or in one whose end the flow has not received yet.
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
                && !self.is_abandoned(batch.id)
        })
    }

    /// Whether the flow has received the call's timeout.
    pub fn is_abandoned(&self, hung: BatchId) -> bool {
        let reports_it = |message: &Message| matches!(&message.message, PumpMessage::CallTimedOut { batch, .. } if *batch == hung);
        self.timed_out.contains_key(&hung) && !self.messages.iter().any(reports_it)
    }
}
