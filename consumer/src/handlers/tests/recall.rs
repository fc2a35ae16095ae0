//! Batches whose partition is no longer ours: what a pool still has of them does not start (G5).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_runtime::outcome_code;

use super::pool::{Rig, codes};
use super::{Deed, Home, batch, until};
use crate::assignment::NewAssignment;
use crate::dispatch::{HandlerIx, OwnedPartition, WorkerPool};
use crate::flow::handler::{HandlerSettings, OnFailure, Order};
use crate::flow::{Flow, FlowSettings};
use crate::handlers::pool::relock;
use crate::handlers::{HandlerPool, LiveConfig};
use crate::routing::RoutingIndex;
use crate::settlement::RetryPolicy;
use crate::source::{AssignmentId, Delivery, RecordBuf, TopicPartition};

const ACK: u16 = outcome_code::ACK;
const NOT_RUN: u16 = outcome_code::NOT_RUN;

fn owned() -> OwnedPartition {
    OwnedPartition {
        topic: "t".into(),
        partition: 0,
        epoch: 1,
    }
}

#[test]
fn queued_batches_come_back_while_workers_hang_and_running_ones_stop_between_records() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    pool.own(&home.inbox, &[owned()]);
    let (running, queued) = (batch(0, &[1, 2]), batch(1, &[7]));
    let flags = [running.cancel.clone(), queued.cancel.clone()];
    assert!(pool.submit(running, &home.inbox).is_ok());
    until("the first record runs", || {
        *relock(&rig.script.begun) == [1]
    });
    assert!(pool.submit(queued, &home.inbox).is_ok());
    assert!(pool.submit(batch(2, &[8]), &home.inbox).is_err(), "full");

    flags.iter().for_each(|flag| flag.set());
    pool.recall();
    pool.own(&home.inbox, &[]);
    let back = home.finished();
    assert_eq!((back.flight.index, codes(&back)), (1, vec![NOT_RUN]));
    home.pool_free();
    assert_eq!(rig.stats.counts().in_flight, 2, "what runs is still there");
    rig.script.open("go");
    let back = home.finished();
    assert_eq!((back.flight.index, codes(&back)), (0, vec![ACK, NOT_RUN]));
    until("it is told", || relock(&rig.script.told).len() == 3);
    assert_eq!(
        *relock(&rig.script.told),
        ["assigned t/0 1", "called with 1", "revoked t/0 1"]
    );
    assert_eq!(*relock(&rig.script.begun), [1]);
}

#[test]
fn a_batch_at_a_worker_of_its_own_is_recalled_and_others_are_let_be() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    let mut bound = batch(1, &[2]);
    bound.worker = Some(0);
    let flag = bound.cancel.clone();
    assert!(pool.submit(bound, &home.inbox).is_ok());
    flag.set();
    pool.recall();
    assert_eq!(codes(&home.finished()), [NOT_RUN]);
    assert!(pool.submit(batch(2, &[3]), &home.inbox).is_ok());
    pool.recall();
    rig.script.open("go");
    assert_eq!(codes(&home.finished()), [ACK]);
    assert_eq!(codes(&home.finished()), [ACK], "nobody cancelled it");
}

#[test]
fn a_batch_that_waits_for_its_instance_is_recalled_and_the_instance_stays() {
    let rig = Rig::new(&[]);
    let mut setup = rig.setup("one");
    setup.config = LiveConfig::new("hang-create");
    let (pool, mut home) = (rig.crew(1).found(setup), Home::new());
    let waiting = batch(0, &[1]);
    let flag = waiting.cancel.clone();
    assert!(pool.submit(waiting, &home.inbox).is_ok());
    flag.set();
    pool.recall();
    assert_eq!(codes(&home.finished()), [NOT_RUN]);
    rig.script.open("create");
    let mut next = batch(1, &[2]);
    while let Err(refused) = pool.submit(next, &home.inbox) {
        home.pool_free();
        next = refused;
    }
    assert_eq!(codes(&home.finished()), [ACK]);
    assert_eq!(rig.script.living(), 1, "it was built once");
    assert_eq!(*relock(&rig.script.begun), [2]);
}

#[test]
fn a_batch_that_is_cancelled_before_its_call_is_not_begun() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    let queued = batch(1, &[2, 3]);
    let flag = queued.cancel.clone();
    assert!(pool.submit(queued, &home.inbox).is_ok());
    // Its pool is not asked to give it back: an earlier generation's is out of reach.
    flag.set();
    rig.script.open("go");
    assert_eq!(codes(&home.finished()), [ACK]);
    assert_eq!(codes(&home.finished()), [NOT_RUN; 2]);
    assert_eq!(*relock(&rig.script.begun), [1]);
    let calls = relock(&rig.script.calls).len();
    assert_eq!(calls, 1, "the instance is not called for it");
}

/// A flow with two partitions of topic `t` and one handler on a real pool.
pub(super) struct Pump {
    pub(super) flow: Flow,
    pub(super) home: Home,
    pub(super) slots: [AssignmentId; 2],
}

impl Pump {
    pub(super) fn new(rig: &Rig, pool: Arc<HandlerPool>) -> Self {
        let home = Home::new();
        let settings = FlowSettings {
            max_uncommitted: 1_000,
            budget_bytes: 1 << 20,
            stall_timeout_ms: 1_000,
            drain_timeout_ms: 5_000,
            commit_interval_ms: 1_000,
            group: "g".into(),
            seed: 1,
        };
        let mut flow = Flow::new(
            settings,
            Arc::clone(&rig.producer) as _,
            Arc::clone(&home.inbox),
        );
        let route = Route {
            topics: vec![TopicPattern::Exact("t".into())],
            when: Predicate::always(),
        };
        let ix = HandlerIx(0);
        let index = RoutingIndex::compile(1, vec![(ix, route)]).unwrap();
        flow.apply(index, vec![(ix, handler(pool))]);
        let slots = [0, 1].map(|partition| {
            let topic = "t".into();
            flow.assign(NewAssignment::first(
                TopicPartition { topic, partition },
                0,
                1,
            ))
        });
        flow.dispatch();
        Self { flow, home, slots }
    }

    /// Offsets tell the partitions apart: those of the second begin at 100.
    fn deliver(&mut self, partition: usize, offsets: Range<i64>) {
        for offset in offsets {
            self.flow.deliver(Delivery {
                slot: self.slots[partition],
                offset,
                timestamp_ms: 0,
                leader_epoch: -1,
                lease: RecordBuf::owned(None, Some(b"v"), &[]),
            });
        }
    }

    /// Takes back the next batch.
    fn hear(&mut self) -> Vec<u16> {
        let batch = self.home.finished();
        let codes = codes(&batch);
        self.flow
            .receive(crate::dispatch::PumpMessage::Finished(batch));
        self.flow.dispatch();
        codes
    }
}

fn handler(pool: Arc<HandlerPool>) -> HandlerSettings {
    HandlerSettings {
        name: "one".into(),
        version: "1.0.0".into(),
        generation: 1,
        config_digest: 0,
        pool: Some(pool),
        gate_open: true,
        order: Order::Unordered,
        retry: RetryPolicy {
            max_attempts: 2,
            delay: Duration::from_millis(1),
            multiplier: 1.0,
            max_delay: Duration::from_millis(1),
            jitter: 0.0,
        },
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::Hold,
        max_in_flight_records: 1_000,
        max_in_flight_bytes: 1 << 20,
        keeps_key_state: false,
        takes_batches: false,
    }
}

/// What a partition's end does to a pump with a running batch (0, 100, 1) and a queued one (2, 101).
fn ends(end: impl FnOnce(&mut Flow, AssignmentId)) {
    let rig = Rig::new(&[(0, Deed::Hang("go"))]);
    let mut pump = Pump::new(&rig, rig.pool(1));
    pump.deliver(0, 0..1);
    pump.deliver(1, 100..101);
    pump.deliver(0, 1..2);
    pump.flow.dispatch();
    until("the first record runs", || {
        *relock(&rig.script.begun) == [0]
    });
    pump.deliver(0, 2..3);
    pump.deliver(1, 101..102);
    pump.flow.dispatch();

    end(&mut pump.flow, pump.slots[0]);
    assert_eq!(pump.hear(), [NOT_RUN; 2], "while the worker still hangs");
    rig.script.open("go");
    assert_eq!(pump.hear(), [ACK, NOT_RUN, NOT_RUN]);
    while pump.flow.held_records() > 0 {
        assert_eq!(pump.hear(), [ACK]);
    }
    assert_eq!(
        *relock(&rig.script.begun),
        [0, 101, 100],
        "the released partition's records never start, the other's go on"
    );
    let second = pump.flow.assignment(pump.slots[1]);
    assert_eq!(second.ledger.frontier(), 102);
    let told = relock(&rig.script.told).clone();
    let at = |what: &str| told.iter().position(|told| told == what);
    assert!(at("revoked t/0 1") > at("called with 0"), "{told:?}");
    assert_eq!(at("called with 1").or(at("called with 2")), None);
}

#[test]
fn nothing_of_a_lost_partition_starts_and_the_others_go_on() {
    ends(|flow, slot| {
        flow.release(&[slot]);
        flow.dispatch();
    });
}

#[test]
fn nothing_of_a_partition_starts_after_its_drain_deadline() {
    ends(|flow, slot| {
        flow.start_drain(&[slot], 1_000);
        flow.tick(999);
        assert!(!flow.is_drained(&[slot]), "what was begun may finish");
        flow.tick(1_000);
        assert!(flow.is_drained(&[slot]));
        let finished = flow.assignment(slot).note().finished;
        assert_eq!(
            (flow.assignment(slot).ledger.frontier(), finished),
            (0, vec![]),
            "nothing of it was finished"
        );
        flow.release(&[slot]);
        flow.dispatch();
    });
}
