//! Recall of batches whose partition was revoked: records that have not started do not start (G5).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_abi::lend::OwnedRecord;
use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::{HandlerIx, OwnedPartition, WorkerPool};
use sluicegate_engine::flow::Flow;
use sluicegate_engine::partition::assignment::NewAssignment;
use sluicegate_engine::queue::{HandlerSettings, Order};
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{AssignmentId, Delivery, TopicPartition};
use sluicegate_kit::engine_doubles::{self, flow_settings, retry};
use sluicegate_kit::plugin_doubles::{Replies, Step, batch, codes, until};
use sluicegate_runtime::outcome_code;

use crate::lock::relock;
use crate::pool::HandlerPool;
use crate::tests::pool::PoolHarness;

const ACK: u16 = outcome_code::ACK;
const NOT_RUN: u16 = outcome_code::NOT_RUN;

fn owned() -> OwnedPartition {
    OwnedPartition::new("t", 0, 1)
}

#[test]
fn queued_batches_are_returned_while_workers_hang_and_running_ones_stop_between_records() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.own(&replies.inbox, &[owned()]);
    let (running, queued) = (batch(0, &[1, 2]), batch(1, &[7]));
    let flags = [running.cancel.clone(), queued.cancel.clone()];
    assert!(pool.submit(running, &replies.inbox).is_ok());
    until("the first record runs", || {
        *relock(&harness.script.started) == [1]
    });
    assert!(pool.submit(queued, &replies.inbox).is_ok());
    assert!(pool.submit(batch(2, &[8]), &replies.inbox).is_err(), "full");

    flags.iter().for_each(|flag| flag.set());
    pool.recall();
    pool.own(&replies.inbox, &[]);
    let back = replies.finished();
    assert_eq!((back.id.index, codes(&back)), (1, vec![NOT_RUN]));
    replies.pool_free();
    assert_eq!(
        harness.stats.counts().in_flight,
        2,
        "the running batch is still there"
    );
    harness.script.open("go");
    let back = replies.finished();
    assert_eq!((back.id.index, codes(&back)), (0, vec![ACK, NOT_RUN]));
    until("it is notified", || {
        relock(&harness.script.notifications).len() == 3
    });
    assert_eq!(
        *relock(&harness.script.notifications),
        ["assigned t/0 1", "called with 1", "revoked t/0 1"]
    );
    assert_eq!(*relock(&harness.script.started), [1]);
}

#[test]
fn only_the_cancelled_batch_of_a_bound_worker_is_recalled() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    let mut bound = batch(1, &[2]);
    bound.worker = Some(0);
    let flag = bound.cancel.clone();
    assert!(pool.submit(bound, &replies.inbox).is_ok());
    flag.set();
    pool.recall();
    assert_eq!(codes(&replies.finished()), [NOT_RUN]);
    assert!(pool.submit(batch(2, &[3]), &replies.inbox).is_ok());
    pool.recall();
    harness.script.open("go");
    assert_eq!(codes(&replies.finished()), [ACK]);
    assert_eq!(codes(&replies.finished()), [ACK], "it was not cancelled");
}

#[test]
fn a_batch_waiting_for_its_instance_is_recalled_and_the_instance_is_kept() {
    let harness = PoolHarness::new(&[]);
    let mut setup = harness.setup("one");
    setup.config = "hang-create".into();
    let (pool, mut replies) = (harness.threads(1).join_first(setup), Replies::new());
    let waiting = batch(0, &[1]);
    let flag = waiting.cancel.clone();
    assert!(pool.submit(waiting, &replies.inbox).is_ok());
    flag.set();
    pool.recall();
    assert_eq!(codes(&replies.finished()), [NOT_RUN]);
    harness.script.open("create");
    let mut next = batch(1, &[2]);
    while let Err(refused) = pool.submit(next, &replies.inbox) {
        replies.pool_free();
        next = refused;
    }
    assert_eq!(codes(&replies.finished()), [ACK]);
    assert_eq!(harness.script.living(), 1, "it was built once");
    assert_eq!(*relock(&harness.script.started), [2]);
}

#[test]
fn a_batch_cancelled_before_its_call_does_not_start() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    let queued = batch(1, &[2, 3]);
    let flag = queued.cancel.clone();
    assert!(pool.submit(queued, &replies.inbox).is_ok());
    // Its pool is not asked to recall it: the pool of a previous generation cannot be.
    flag.set();
    harness.script.open("go");
    assert_eq!(codes(&replies.finished()), [ACK]);
    assert_eq!(codes(&replies.finished()), [NOT_RUN; 2]);
    assert_eq!(*relock(&harness.script.started), [1]);
    let calls = relock(&harness.script.calls).len();
    assert_eq!(calls, 1, "the instance is not called for it");
}

/// A flow with two partitions of topic `t` and one handler on a real pool.
pub(super) struct Pump {
    pub(super) flow: Flow<OwnedRecord>,
    pub(super) replies: Replies,
    pub(super) slots: [AssignmentId; 2],
}

impl Pump {
    pub(super) fn new(harness: &PoolHarness, pool: Arc<HandlerPool>) -> Self {
        let replies = Replies::new();
        let settings = flow_settings();
        let mut flow = Flow::new(
            settings,
            Arc::clone(&harness.producer) as _,
            Arc::clone(&replies.inbox),
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
        Self {
            flow,
            replies,
            slots,
        }
    }

    /// Offsets identify the partition: those of the second one start at 100.
    fn deliver(&mut self, partition: usize, offsets: Range<i64>) {
        for offset in offsets {
            self.flow.deliver(Delivery {
                slot: self.slots[partition],
                offset,
                timestamp_ms: 0,
                leader_epoch: -1,
                lease: OwnedRecord::new(None, Some(b"v"), &[]),
            });
        }
    }

    /// Receives the next finished batch.
    fn receive(&mut self) -> Vec<u16> {
        let batch = self.replies.finished();
        let codes = codes(&batch);
        self.flow
            .receive(sluicegate_engine::dispatch::PumpMessage::Finished(batch));
        self.flow.dispatch();
        codes
    }
}

fn handler(pool: Arc<HandlerPool>) -> HandlerSettings {
    HandlerSettings {
        order: Order::Unordered,
        retry: retry(2, Duration::from_millis(1)),
        ..engine_doubles::handler(pool)
    }
}

/// Ends a partition of a pump with a running batch (0, 100, 1) and a queued one (2, 101).
fn ends(end: impl FnOnce(&mut Flow<OwnedRecord>, AssignmentId)) {
    let harness = PoolHarness::new(&[(0, Step::Hang("go"))]);
    let mut pump = Pump::new(&harness, harness.pool(1));
    pump.deliver(0, 0..1);
    pump.deliver(1, 100..101);
    pump.deliver(0, 1..2);
    pump.flow.dispatch();
    until("the first record runs", || {
        *relock(&harness.script.started) == [0]
    });
    pump.deliver(0, 2..3);
    pump.deliver(1, 101..102);
    pump.flow.dispatch();

    end(&mut pump.flow, pump.slots[0]);
    assert_eq!(pump.receive(), [NOT_RUN; 2], "while the worker still hangs");
    harness.script.open("go");
    assert_eq!(pump.receive(), [ACK, NOT_RUN, NOT_RUN]);
    while pump.flow.held_records() > 0 {
        assert_eq!(pump.receive(), [ACK]);
    }
    assert_eq!(
        *relock(&harness.script.started),
        [0, 101, 100],
        "records of the released partition never start, those of the other do"
    );
    let second = pump.flow.assignment(pump.slots[1]);
    assert_eq!(second.ledger().frontier(), 102);
    let told = relock(&harness.script.notifications).clone();
    let at = |what: &str| told.iter().position(|told| told == what);
    assert!(at("revoked t/0 1") > at("called with 0"), "{told:?}");
    assert_eq!(at("called with 1").or(at("called with 2")), None);
}

#[test]
fn no_record_of_a_lost_partition_starts_and_other_partitions_continue() {
    ends(|flow, slot| {
        flow.release(&[slot]);
        flow.dispatch();
    });
}

#[test]
fn no_record_of_a_partition_starts_after_its_drain_deadline() {
    ends(|flow, slot| {
        flow.start_drain(&[slot], 1_000);
        flow.tick(999);
        assert!(!flow.is_drained(&[slot]), "started records may finish");
        flow.tick(1_000);
        assert!(flow.is_drained(&[slot]));
        let finished = flow.assignment(slot).commit_metadata().finished;
        assert_eq!(
            (flow.assignment(slot).ledger().frontier(), finished),
            (0, vec![]),
            "none of its records was finished"
        );
        flow.release(&[slot]);
        flow.dispatch();
    });
}
