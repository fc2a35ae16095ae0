//! The world around an engine: broker, workers, producer, clock and control side, driven step by step by random events.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sluicegate_abi::RawOutcome;
use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::dispatch::{Batch, BatchId, HandlerIx, Inbox, PumpMessage};
use sluicegate_engine::emit::{EmitToken, FailureKind, Way};
use sluicegate_engine::engine::Engine;
use sluicegate_engine::event::{Effect, Event};
use sluicegate_engine::flow::Flow;
use sluicegate_engine::queue::{OnFailure, Order};
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{AssignmentId, SourceEvent};

use super::client::Client;
use super::closing::Closing;
use super::group::{CommitUnderWay, Group, Revoke};
use super::model::{Check, Model};
use super::pools::{SimPool, SimProducer};
use super::random::Random;
use super::script::{
    FaultRates, Script, SimHandler, any_canary, any_handler, any_order, recreated,
};

/// The share that a producer message concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey {
    pub epoch: u64,
    pub offset: i64,
    pub handler: u32,
}

/// A batch at a worker.
pub struct Running {
    pub pool: Arc<SimPool>,
    pub worker: usize,
    pub batch: Box<Batch>,
    pub outcomes: Vec<RawOutcome>,
    pub blocked: Vec<u64>,
    /// Records to emit, by index in the batch.
    pub emits: Vec<(usize, u32)>,
    /// The pump has received its timeout.
    pub hung: bool,
    /// It does not return, and no timeout is reported.
    pub stuck: bool,
    pub takes_batches: bool,
}

/// What was sent for a share and is not answered, or of which the flow has not received all answers.
#[derive(Default)]
pub struct Round {
    pub unanswered: u32,
    /// The failure with the highest precedence.
    pub worst: Option<FailureKind>,
    /// The flow knows of it: its call has ended, or the flow itself has sent it.
    pub shipped: bool,
}

/// A record whose result the producer has not reported yet.
pub struct Unanswered {
    pub share: ShareKey,
    pub way: Way,
    pub token: EmitToken,
    /// For an emitted record, its index among the share's written copies.
    pub written: Option<usize>,
}

/// A message on its way to the flow.
pub struct Message {
    pub message: PumpMessage,
    /// For a producer result, the share that it concerns.
    pub share: Option<ShareKey>,
}

/// The simulated world.
pub struct World {
    pub random: Random,
    pub script: Script,
    pub faults: FaultRates,
    pub engine: Engine<OwnedRecord>,
    /// Effects that are not carried out yet.
    pub effects: VecDeque<Effect>,
    pub client: Client,
    pub inbox: Arc<Inbox>,
    pub producer: Arc<SimProducer>,
    pub model: Model,
    /// The group's generation.
    pub generation: i32,
    /// Whether a static member reclaims its partitions in the same generation.
    pub rejoins: bool,
    pub handlers: Vec<SimHandler>,
    /// Every pool of this process, with the handler that it serves.
    pub pools: Vec<(HandlerIx, bool, Arc<SimPool>)>,
    pub running: Vec<Running>,
    pub unanswered: Vec<Unanswered>,
    pub rounds: HashMap<ShareKey, Round>,
    pub messages: VecDeque<Message>,
    pub commit: Option<CommitUnderWay>,
    pub revokes: Vec<Revoke>,
    pub group: Group,
    pub now_ms: u64,
    pub revision: u64,
    pub next_handler: u32,
    /// The shares of batches that hang, until they return.
    pub timed_out: HashMap<BatchId, (Vec<(ShareKey, u64)>, bool)>,
    /// The pool of each key, by handler, in the present plan.
    targets_of: HashMap<(u32, Vec<u8>), usize>,
    /// The worker of each key, by pool.
    pub workers_of: HashMap<(usize, Vec<u8>), u32>,
    /// By handler, from its latest settings.
    pub max_attempts_of: HashMap<u32, u32>,
    /// By handler: what happens to its records while it has failed.
    pub on_failure_of: HashMap<u32, OnFailure>,
    /// Handlers that are switched off or removed.
    pub closing: Closing,
}

impl World {
    /// The initial world of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let script = Script::new(&mut random);
        let mut world = Self::without_handlers(random, script);
        for _ in 0..world.random.between(1, 4) {
            world.add_handler();
        }
        world.apply();
        world
    }

    /// An initial world without handlers.
    pub fn without_handlers(random: Random, script: Script) -> Self {
        let inbox = Arc::new(Inbox::new());
        let producer = Arc::new(SimProducer::default());
        let engine = Engine::new(script.engine(), producer.clone(), inbox.clone());
        Self {
            faults: script.faults,
            random,
            script,
            engine,
            effects: VecDeque::new(),
            client: Client::default(),
            inbox,
            producer,
            model: Model {
                verbose: std::env::var_os("SLUICEGATE_SIM_TELL").is_some(),
                ..Model::default()
            },
            handlers: Vec::new(),
            pools: Vec::new(),
            running: Vec::new(),
            unanswered: Vec::new(),
            rounds: HashMap::new(),
            messages: VecDeque::new(),
            commit: None,
            revokes: Vec::new(),
            group: Group::default(),
            now_ms: 0,
            generation: 0,
            rejoins: false,
            revision: 0,
            next_handler: 0,
            timed_out: HashMap::new(),
            targets_of: HashMap::new(),
            workers_of: HashMap::new(),
            max_attempts_of: HashMap::new(),
            on_failure_of: HashMap::new(),
            closing: Closing::default(),
        }
    }

    fn add_handler(&mut self) {
        let ix = HandlerIx(self.next_handler);
        let handler = any_handler(&mut self.random, ix, self.revision + 1);
        self.add(handler);
    }

    /// Adds a handler that the next [`World::apply`] activates.
    pub fn add(&mut self, handler: SimHandler) {
        let SimHandler {
            ix,
            takes_batches,
            max_attempts,
            on_failure,
            ..
        } = handler;
        self.next_handler = self.next_handler.max(ix.0 + 1);
        self.pools.push((ix, takes_batches, handler.pool.clone()));
        self.max_attempts_of.insert(ix.0, max_attempts);
        self.on_failure_of.insert(ix.0, on_failure);
        self.handlers.push(handler);
    }

    /// Applies the current handlers to the flow.
    pub fn apply(&mut self) {
        self.revision += 1;
        let routes = self
            .handlers
            .iter()
            .map(|handler| (handler.ix, handler.route.clone()))
            .collect();
        let index = RoutingIndex::compile(self.revision, routes).expect("the routes compile");
        let settings = self
            .handlers
            .iter()
            .map(|handler| (handler.ix, handler.settings()))
            .collect();
        for handler in &self.handlers {
            self.model.trace(|| {
                format!(
                    "apply {}: h{} {:?} gate {} generation {} in flight {} batches {} state {} attempts {} {:?}",
                    self.revision,
                    handler.ix.0,
                    handler.order,
                    handler.gate_open,
                    handler.generation,
                    handler.max_in_flight,
                    handler.takes_batches,
                    handler.keeps_key_state,
                    handler.max_attempts,
                    handler.on_failure,
                )
            });
        }
        self.closing.apply(&self.handlers, self.now_ms);
        self.model.see_pools(&self.closing.pools);
        for handler in &self.handlers {
            self.model.see_order(handler.ix.0, handler.order);
        }
        self.targets_of.clear();
        self.engine.apply(index, settings);
        self.see_skips();
    }

    /// Assigns keys of a handler to another generation, or returns them.
    fn split(&mut self, target: usize) {
        let wanted = self.random.chance(70);
        let canary = wanted.then(|| any_canary(&mut self.random, self.revision + 1));
        self.model.coverage.splits += 1;
        let handler = &mut self.handlers[target];
        if let Some(canary) = &canary {
            let pool = canary.pool.clone();
            self.pools.push((handler.ix, canary.takes_batches, pool));
        }
        handler.canary = canary;
    }

    /// A new snapshot: a handler is added or removed, or changes its route, gate, generation or second target.
    pub fn swap(&mut self) {
        let target = (!self.handlers.is_empty()).then(|| self.random.below(self.handlers.len()));
        match (self.random.below(6), target) {
            (0, _) | (_, None) => self.add_handler(),
            (1, Some(target)) => {
                self.handlers.remove(target);
            }
            (2, Some(target)) => {
                self.handlers[target].route = super::script::any_route(&mut self.random);
            }
            (3, Some(target)) => {
                let handler = &mut self.handlers[target];
                handler.gate_open = !handler.gate_open;
            }
            (4, Some(target)) => self.split(target),
            (_, Some(target)) => self.change_settings(target),
        }
        self.apply();
    }

    /// A handler gets another order, another generation, or both.
    fn change_settings(&mut self, target: usize) {
        let reordered = self.random.chance(40);
        if reordered {
            self.set_order(target);
        }
        if !reordered || self.random.chance(50) {
            self.renew(target);
        }
    }

    /// A handler gets another order while much is under way; with it perhaps another bound, generation or target.
    pub fn reorder(&mut self) {
        if self.handlers.is_empty() {
            return;
        }
        let target = self.random.below(self.handlers.len());
        self.set_order(target);
        if self.random.chance(30) {
            self.handlers[target].max_in_flight = *self.random.pick(&[1, 2, 3, 5, 50]);
        }
        match self.random.below(6) {
            0 => self.split(target),
            1 | 2 => self.renew(target),
            _ => {}
        }
        self.apply();
    }

    /// One of the handlers gets another generation.
    pub fn renew_one(&mut self) {
        if !self.handlers.is_empty() {
            let target = self.random.below(self.handlers.len());
            self.renew(target);
            self.apply();
        }
    }

    fn set_order(&mut self, target: usize) {
        let order = any_order(&mut self.random);
        let handler = &mut self.handlers[target];
        self.model.coverage.other_orders += u64::from(order != handler.order);
        handler.order = order;
    }

    /// A handler gets another generation.
    fn renew(&mut self, target: usize) {
        let worker_count = self.random.between(1, 3);
        let takes_batches = self.random.chance(20);
        let handler = &mut self.handlers[target];
        self.model.coverage.other_workers +=
            u64::from(handler.keeps_key_state && worker_count != handler.pool.worker_count());
        handler.generation = self.revision + 1;
        handler.takes_batches = takes_batches;
        handler.pool = Arc::new(SimPool::new(worker_count));
        self.pools
            .push((handler.ix, takes_batches, handler.pool.clone()));
    }

    /// The operator closes a handler's gate, or removes the handler.
    pub fn switch_off(&mut self, ix: HandlerIx) {
        let Some(target) = self.handlers.iter().position(|handler| handler.ix == ix) else {
            return;
        };
        if self.random.chance(50) {
            self.handlers.remove(target);
        } else {
            self.handlers[target].gate_open = false;
        }
        self.apply();
    }

    /// The process crashes and restarts: only committed state survives.
    pub fn crash(&mut self) {
        self.rejoins = self.script.is_static;
        self.model.owned.clear();
        self.start_process();
    }

    /// A process starts; nothing of the one before is left.
    pub fn start_process(&mut self) {
        self.inbox = Arc::new(Inbox::new());
        self.producer = Arc::new(SimProducer::default());
        self.engine = Engine::new(
            self.script.engine(),
            self.producer.clone(),
            self.inbox.clone(),
        );
        self.effects.clear();
        self.client = Client::default();
        self.model.owned.clear();
        self.running.clear();
        self.timed_out.clear();
        self.unanswered.clear();
        self.rounds.clear();
        self.messages.clear();
        self.commit = None;
        self.revokes.clear();
        self.group.rebalancing = false;
        self.pools.clear();
        self.workers_of.clear();
        self.targets_of.clear();
        self.closing.crash();
        for handler in &mut self.handlers {
            handler.pool = Arc::new(SimPool::new(self.random.between(1, 3)));
            if let Some(canary) = &mut handler.canary {
                canary.pool = Arc::new(SimPool::new(self.random.between(1, 3)));
            }
            let ix = handler.ix;
            let pools = handler.pools();
            self.pools
                .extend(pools.map(|(takes_batches, pool)| (ix, takes_batches, pool.clone())));
        }
        self.apply();
        self.engine
            .step(Event::Tick(self.now_ms), &mut self.effects);
    }

    /// The topic of a log is recreated; the client detects it, and all of its partitions are lost.
    pub fn recreate(&mut self, log: usize) -> Check {
        let topic = self.script.logs[log].at.topic.clone();
        for log in 0..self.script.logs.len() {
            if self.script.logs[log].at.topic == topic {
                self.recreate_log(log);
            }
        }
        self.tell_source(SourceEvent::TopicRecreated { topic })
    }

    fn recreate_log(&mut self, log: usize) {
        let at = self.script.logs[log].at.clone();
        if let Some(slot) = self.model.current(&at).map(|owned| owned.slot) {
            self.forget(&[slot]);
        }
        self.model.coverage.recreated += u64::from(self.model.committed.contains_key(&at));
        self.script.logs[log] = recreated(&mut self.random, &self.script.logs[log]);
        self.model.settled_ever.retain(|(of, _)| *of != log);
        self.model.settled_cleanly.retain(|(of, ..)| *of != log);
        self.model.gone.retain(|(of, _)| *of != log);
        self.model.log_start.remove(&log);
    }

    /// An operator resets the offset of an unassigned partition to an earlier one, without changing the metadata.
    pub fn reset_offset(&mut self, log: usize) {
        let at = &self.script.logs[log].at;
        if self.model.current(at).is_some() {
            return;
        }
        if let Some(committed) = self.model.committed.get_mut(at)
            && committed.topic_id == self.script.logs[log].topic_id
            && committed.commit.offset > 0
        {
            let back = self.random.between(1, committed.commit.offset as usize);
            committed.commit.offset -= back as i64;
            self.model.coverage.resets += 1;
            self.model.settled_cleanly.retain(|(of, ..)| *of != log);
        }
    }

    /// Time passes. What arrived in time is received before what is due.
    pub fn pass(&mut self, ms: u64) -> Check {
        self.now_ms += ms;
        self.engine
            .step(Event::Clock(self.now_ms), &mut self.effects);
        if self.random.chance(50) {
            for _ in 0..self.messages.len() {
                self.deliver_message()?;
            }
        }
        let overdue = |revoke: &&Revoke| self.now_ms >= revoke.deadline_ms;
        let overdue: Vec<AssignmentId> = (self.revokes.iter().filter(overdue))
            .flat_map(|revoke| revoke.slots.iter().copied())
            .collect();
        if !overdue.is_empty() {
            self.publish(&overdue);
            self.model.fence(&overdue);
        }
        self.engine
            .step(Event::Tick(self.now_ms), &mut self.effects);
        self.running
            .iter()
            .for_each(|run| run.pool.hide_published());
        self.see_skips();
        Ok(())
    }

    /// The core's state, as its own reports show it.
    pub fn flow(&self) -> &Flow<OwnedRecord> {
        self.engine.flow()
    }

    /// Observes the flow's effects: admitted records, submitted batches, produced dead letters.
    pub fn observe(&mut self) -> Check {
        if let Some(fault) = self.flow().fault() {
            return Err(format!("fault: {fault}"));
        }
        if let Some(broken) = self.flow().broken_queue() {
            return Err(format!("{broken} (G8)"));
        }
        if let Some(broken) = self.closing.broken.take() {
            return Err(broken);
        }
        self.see_admissions()?;
        self.see_submissions()?;
        self.see_recalls();
        self.see_given(false)
    }

    pub fn see_admissions(&mut self) -> Check {
        let mut admitted = Vec::new();
        for (&epoch, owned) in self.model.owned.iter().filter(|(_, owned)| !owned.released) {
            let assignment = self.flow().assignment(owned.slot);
            if let Some(reason) = assignment.stopped() {
                return Err(format!("{} was stopped: {}", owned.at, reason.cause));
            }
            let waiting = owned.records.iter().filter(|(_, held)| !held.admitted);
            for (&offset, _) in
                waiting.take_while(|(offset, _)| **offset < assignment.ledger().next())
            {
                admitted.push((epoch, offset));
            }
        }
        for (epoch, offset) in admitted {
            let Self {
                model,
                script,
                handlers,
                ..
            } = self;
            model.admitted(epoch, offset, &script.logs, handlers);
        }
        Ok(())
    }

    fn see_submissions(&mut self) -> Check {
        for (ix, takes_batches, pool) in &self.pools {
            for (worker, batch) in pool.taken() {
                if batch.records.is_empty() || batch.records.len() != batch.keys.len() {
                    return Err(format!("h{} was given a malformed batch", ix.0));
                }
                let offsets = batch.records.iter().map(|r| (r.epoch, r.offset, r.attempt));
                self.model
                    .trace(|| format!("h{} gets {:?}", ix.0, offsets.collect::<Vec<_>>()));
                for record in &batch.records {
                    let order = self.engine.flow().order_of(*ix);
                    let pools = &self.closing.pools[&ix.0];
                    let of = ShareKey {
                        epoch: record.epoch,
                        offset: record.offset,
                        handler: ix.0,
                    };
                    (self.model).submitted(&of, order, pool, pools, &self.script.logs)?;
                    let log = &self.script.logs[self.model.owned[&record.epoch].log];
                    let key = log
                        .record(record.offset)
                        .and_then(|record| record.key.clone());
                    let pool = Arc::as_ptr(pool) as usize;
                    if let (Some(key), Some(Order::Key)) = (&key, order) {
                        let target = (ix.0, key.clone());
                        if *self.targets_of.entry(target).or_insert(pool) != pool {
                            return Err(format!(
                                "h{}: two targets get the key of offset {}",
                                ix.0, record.offset
                            ));
                        }
                    }
                    let Some(worker) = batch.worker else {
                        continue;
                    };
                    let place = (pool, key.unwrap_or_default());
                    let before = *self.workers_of.entry(place).or_insert(worker);
                    if before != worker {
                        return Err(format!(
                            "h{}: a key of offset {} goes to worker {worker} after {before}",
                            ix.0, record.offset
                        ));
                    }
                }
                self.running.push(Running {
                    pool: pool.clone(),
                    worker,
                    batch,
                    outcomes: Vec::new(),
                    blocked: Vec::new(),
                    emits: Vec::new(),
                    hung: false,
                    stuck: false,
                    takes_batches: *takes_batches,
                });
            }
        }
        Ok(())
    }

    /// Cancelled batches that a pool has not started are returned immediately.
    fn see_recalls(&mut self) {
        let recalled: Vec<Arc<SimPool>> = self
            .pools
            .iter()
            .filter(|(_, _, pool)| pool.recalled())
            .map(|(_, _, pool)| pool.clone())
            .collect();
        for pool in recalled {
            while let Some(at) = self.running.iter().position(|run| {
                Arc::ptr_eq(&run.pool, &pool)
                    && run.batch.cancel.is_set()
                    && run.outcomes.is_empty()
                    && !run.hung
            }) {
                self.send_back(at);
            }
        }
    }
}
