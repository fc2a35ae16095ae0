//! The pump's core between a scripted source and a pool that completes every batch.

#![allow(clippy::vec_box, reason = "batches are boxes where pools take them")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::{
    Batch, HandlerIx, Inbox, OwnedPartition, PoolState, PumpMessage, WorkerPool,
};
use sluicegate_engine::emit::{Delivery as Answer, EmitToken, Emitter, ProducerRecord, Sent, Way};
use sluicegate_engine::flow::{Flow, FlowSettings};
use sluicegate_engine::partition::assignment::NewAssignment;
use sluicegate_engine::queue::{GenerationId, HandlerSettings, OnFailure, Order, Target};
use sluicegate_engine::record::Record;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::settlement::RetryPolicy;
use sluicegate_engine::source::{AssignmentId, Delivery, TopicPartition};
use sluicegate_kafka::RecordBuf;
use sluicegate_runtime::{Emit, RawOutcome, outcome_code};

use crate::{RECORDS, measured};

/// Stores submitted batches until they are collected.
#[derive(Default)]
struct Pool {
    taken: Mutex<Vec<Box<Batch>>>,
}

impl WorkerPool for Pool {
    fn submit(&self, batch: Box<Batch>, _reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.push(batch);
        Ok(())
    }

    fn own(&self, _reply_to: &Arc<Inbox>, _partitions: &[OwnedPartition]) {}

    fn workers(&self) -> u32 {
        2
    }

    fn state(&self) -> PoolState {
        PoolState::Active
    }
}

/// Never used: what is emitted is answered without it.
struct NoEmitter;

impl Emitter for NoEmitter {
    fn send(&self, _: &ProducerRecord<'_>, _: Way, _: &Arc<Inbox>, _: EmitToken) -> Sent {
        Sent::NoRoom
    }
}

struct Core {
    flow: Flow<RecordBuf>,
    pools: Vec<Arc<Pool>>,
    slot: AssignmentId,
}

fn settings(ix: HandlerIx, pool: Arc<Pool>) -> HandlerSettings {
    HandlerSettings {
        name: format!("h{}", ix.0).into(),
        targets: vec![Target::only(GenerationId::new("1.0.0", 1), pool)],
        gate_open: true,
        order: Order::Key,
        retry: RetryPolicy {
            max_attempts: 3,
            delay: Duration::from_millis(100),
            multiplier: 1.0,
            max_delay: Duration::from_millis(100),
            jitter: 0.0,
        },
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::DeadLetter,
        first_call: 32,
        max_in_flight_records: RECORDS as u32,
        max_in_flight_bytes: 1 << 30,
    }
}

impl Core {
    /// A core with one partition, whose records are routed to each of `handlers` handlers.
    fn new(handlers: u32) -> Self {
        let inbox = Arc::new(Inbox::new());
        let flow_settings = FlowSettings {
            max_uncommitted: RECORDS,
            budget_bytes: 1 << 30,
            stall_timeout_ms: 300_000,
            drain_timeout_ms: 20_000,
            commit_interval_ms: 1_000,
            group: "g".into(),
            seed: 1,
        };
        let mut flow = Flow::new(flow_settings, Arc::new(NoEmitter), inbox);
        let at = TopicPartition {
            topic: "flights".into(),
            partition: 0,
        };
        let slot = flow.assign(NewAssignment::first(at, 0, 1));
        let pools: Vec<Arc<Pool>> = (0..handlers).map(|_| Arc::default()).collect();
        let of_all = |place: usize| {
            let topics = vec![TopicPattern::Exact("flights".into())];
            let when = Predicate::always();
            (HandlerIx(place as u32), Route { topics, when })
        };
        let routes = (0..pools.len()).map(of_all).collect();
        let index = RoutingIndex::compile(1, routes).expect("the routes are valid");
        let each = pools.iter().enumerate();
        let each = each.map(|(place, pool)| {
            let ix = HandlerIx(place as u32);
            (ix, settings(ix, Arc::clone(pool)))
        });
        flow.apply(index, each.collect());
        Self { flow, pools, slot }
    }

    fn deliveries(&self, offsets: std::ops::Range<i64>) -> Vec<Delivery<RecordBuf>> {
        let one = |offset: i64| {
            let key = format!("key-{}", offset % 1_000);
            Delivery {
                slot: self.slot,
                offset,
                timestamp_ms: 1_700_000_000_000 + offset,
                leader_epoch: 1,
                lease: RecordBuf::copied(Some(key.as_bytes()), Some(&[b'v'; 100]), &[]),
            }
        };
        offsets.map(one).collect()
    }

    fn deliver(&mut self, mut deliveries: Vec<Delivery<RecordBuf>>) {
        self.flow.deliver_all(&mut deliveries);
        self.flow.dispatch();
    }

    /// The pools' batches, completed: every record is acknowledged, except those for which `fails` is true.
    fn finished(&self, fails: impl Fn(i64) -> bool) -> Vec<Box<Batch>> {
        let mut finished = Vec::new();
        for pool in &self.pools {
            let mut taken = pool.taken.lock().unwrap_or_else(PoisonError::into_inner);
            for mut batch in taken.drain(..) {
                let outcomes = batch.records.iter().map(|record| RawOutcome {
                    code: match fails(record.offset) {
                        true => outcome_code::RETRY,
                        false => outcome_code::ACK,
                    },
                    ..RawOutcome::default()
                });
                batch.outcomes = outcomes.collect();
                finished.push(batch);
            }
        }
        finished
    }

    fn receive(&mut self, finished: Vec<Box<Batch>>) {
        for batch in finished {
            self.flow.receive(PumpMessage::Finished(batch));
        }
        self.flow.dispatch();
    }

    fn frontier(&self) -> i64 {
        self.flow.assignment(self.slot).ledger().frontier()
    }
}

/// Records of a thousand keys are admitted, routed, queued in lanes and dispatched in batches.
pub(crate) fn dispatch() {
    let mut core = Core::new(1);
    let deliveries = core.deliveries(0..RECORDS);
    measured(|| core.deliver(deliveries));
    assert!(!core.finished(|_| false).is_empty());
}

/// Outcomes are received: each record is settled and freed, and its lane advances, until none is left.
pub(crate) fn settlement() {
    let mut core = Core::new(1);
    let deliveries = core.deliveries(0..RECORDS);
    core.deliver(deliveries);
    loop {
        let finished = core.finished(|_| false);
        if finished.is_empty() {
            break;
        }
        measured(|| core.receive(finished));
    }
    assert_eq!(core.frontier(), RECORDS);
}

/// As [`settlement`], of a handler that emits a record for each; the producer answers for a thousand at once.
pub(crate) fn emitting() {
    let mut core = Core::new(1);
    let deliveries = core.deliveries(0..RECORDS);
    core.deliver(deliveries);
    loop {
        let mut finished = core.finished(|_| false);
        if finished.is_empty() {
            break;
        }
        let mut tokens = Vec::new();
        for batch in &mut finished {
            for (place, record) in batch.records.iter().enumerate() {
                batch.output.emits.extend([Emit::new(
                    place as u32,
                    "copies",
                    Some(&record.offset.to_le_bytes()),
                )]);
            }
            tokens.extend((0..batch.keys.len()).filter_map(|place| batch.shipment.at(place)));
        }
        let acknowledged = |tokens: &[EmitToken]| {
            let answers = tokens.iter().copied().map(Answer::acknowledged);
            PumpMessage::Delivered(answers.collect())
        };
        let answers: Vec<PumpMessage> = tokens.chunks(1_000).map(acknowledged).collect();
        measured(|| {
            core.receive(finished);
            answers
                .into_iter()
                .for_each(|message| core.flow.receive(message));
            core.flow.dispatch();
        });
    }
    assert_eq!(core.frontier(), RECORDS);
}

/// The whole core: three handlers, one record in fifty fails once and is retried, with commits in between.
pub(crate) fn whole() {
    let mut core = Core::new(3);
    let mut now_ms = 0;
    for start in (0..RECORDS).step_by(500) {
        let deliveries = core.deliveries(start..start + 500);
        now_ms += 10;
        measured(|| {
            core.flow.tick(now_ms);
            core.deliver(deliveries);
        });
        let finished = core.finished(|offset| offset % 50 == 0);
        measured(|| core.receive(finished));
        loop {
            let finished = core.finished(|_| false);
            if finished.is_empty() {
                break;
            }
            measured(|| core.receive(finished));
        }
        commit(&mut core);
    }
    while core.frontier() < RECORDS {
        now_ms += 50;
        measured(|| {
            core.flow.tick(now_ms);
            core.flow.dispatch();
        });
        let finished = core.finished(|_| false);
        measured(|| core.receive(finished));
    }
    commit(&mut core);
}

/// Collects the due commits and accepts them.
fn commit(core: &mut Core) {
    let due = measured(|| core.flow.commits_due());
    let results: Vec<_> = due
        .iter()
        .map(|entry| sluicegate_engine::source::CommitResult {
            at: entry.at.clone(),
            offset: entry.offset,
            error: None,
        })
        .collect();
    if !results.is_empty() {
        measured(|| core.flow.committed(&results, None));
    }
}
