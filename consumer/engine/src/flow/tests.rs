//! Example tests of the flow: scripted pools and producer, one situation per test. The simulator covers the rest.

mod ahead;
mod assignments;
mod budget;
mod chains;
mod closing;
mod commits;
mod draining;
mod fairness;
mod hanging;
mod orders;
mod pace;
mod rest;
mod retrying;
mod targets;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_runtime::{RawOutcome, outcome_code};

mod producing;

use sluicegate_abi::lend::OwnedRecord;

use super::{Flow, FlowSettings};
use crate::dispatch::{
    Batch, BatchId, HandlerIx, Inbox, OwnedPartition, PoolState, Published, PumpMessage, WorkerPool,
};
use crate::emit::{EmitToken, Emitter, ProducerRecord, Sent, Way};
use crate::partition::assignment::NewAssignment;
use crate::partition::commit::{CommitMetadata, CommitTarget};
use crate::queue::{GenerationId, HandlerSettings, OnFailure, Order, Target};
use crate::routing::RoutingIndex;
use crate::settlement::RetryPolicy;
use crate::source::{AssignmentId, Delivery, TopicPartition};

struct ScriptedPool {
    workers: std::sync::atomic::AtomicU32,
    // Boxes, because the trait passes them that way.
    #[allow(clippy::vec_box)]
    taken: Mutex<Vec<Box<Batch>>>,
    full: std::sync::atomic::AtomicBool,
    /// Partitions and epochs last announced to it.
    owned: Mutex<Vec<(i32, u64)>>,
    failed: std::sync::atomic::AtomicBool,
    unhealthy: Mutex<Option<Arc<str>>>,
    /// What its calls have published.
    published: Mutex<Vec<RawOutcome>>,
}

impl Default for ScriptedPool {
    fn default() -> Self {
        Self {
            workers: 2.into(),
            taken: Mutex::default(),
            full: false.into(),
            owned: Mutex::default(),
            failed: false.into(),
            unhealthy: Mutex::default(),
            published: Mutex::default(),
        }
    }
}

impl WorkerPool for ScriptedPool {
    fn submit(&self, batch: Box<Batch>, _reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        let full = self.full.load(std::sync::atomic::Ordering::Relaxed);
        if full || self.state() == PoolState::Failed {
            return Err(batch);
        }
        self.taken.lock().unwrap().push(batch);
        Ok(())
    }

    fn own(&self, _reply_to: &Arc<Inbox>, partitions: &[OwnedPartition]) {
        *self.owned.lock().unwrap() = partitions
            .iter()
            .map(|at| (at.partition, at.epoch))
            .collect();
    }

    fn published(&self, _: &Arc<Inbox>, batch: BatchId) -> Option<Published> {
        let taken = self.taken.lock().unwrap();
        let has = taken.iter().any(|one| one.id == batch);
        has.then(|| Published::up_to(self.published.lock().unwrap().clone()))
    }

    fn workers(&self) -> u32 {
        self.workers.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn unhealthy_reason(&self) -> Option<Arc<str>> {
        self.unhealthy.lock().unwrap().clone()
    }

    fn state(&self) -> PoolState {
        match self.failed.load(std::sync::atomic::Ordering::Relaxed) {
            true => PoolState::Failed,
            false => PoolState::Active,
        }
    }
}

#[derive(Default)]
struct ScriptedEmitter {
    sent: Mutex<Vec<(String, Way, EmitToken)>>,
}

impl Emitter for ScriptedEmitter {
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        way: Way,
        _: &Arc<Inbox>,
        token: EmitToken,
    ) -> Sent {
        let text = match record.value.and_then(|value| str::from_utf8(value).ok()) {
            Some(value) if record.topic == "out" => format!("out {value}"),
            _ => record.topic.to_owned(),
        };
        self.sent.lock().unwrap().push((text, way, token));
        Sent::Queued
    }
}

struct Bench {
    flow: Flow<OwnedRecord>,
    inbox: Arc<Inbox>,
    emitter: Arc<ScriptedEmitter>,
    pools: Vec<Arc<ScriptedPool>>,
    slot: AssignmentId,
}

fn at() -> TopicPartition {
    TopicPartition {
        topic: "t".into(),
        partition: 0,
    }
}

impl Bench {
    fn new(handlers: usize) -> Self {
        Self::with(handlers, 100)
    }

    /// Of one handler that takes batches as a whole.
    fn of_batches() -> Self {
        let mut bench = Self::new(1);
        bench.apply(|_, settings| {
            generation_of(settings).takes_batches = true;
            true
        });
        bench
    }

    fn with(handlers: usize, max_uncommitted: i64) -> Self {
        let inbox = Arc::new(Inbox::new());
        let emitter = Arc::new(ScriptedEmitter::default());
        let settings = FlowSettings {
            max_uncommitted,
            budget_bytes: 1 << 20,
            stall_timeout_ms: 1_000,
            drain_timeout_ms: 5_000,
            commit_interval_ms: 1_000,
            group: "g".into(),
            seed: 1,
        };
        let mut flow = Flow::new(settings, emitter.clone(), inbox.clone());
        let pools: Vec<Arc<ScriptedPool>> = (0..handlers).map(|_| Arc::default()).collect();
        let mut bench = Self {
            slot: flow.assign(NewAssignment::first(at(), 0, 1)),
            flow,
            inbox,
            emitter,
            pools,
        };
        bench.apply(|_, _| true);
        bench
    }

    /// Applies a plan of the handlers that `change` keeps, with the settings that it sets.
    fn apply(&mut self, change: impl Fn(usize, &mut HandlerSettings) -> bool) {
        let route = Route {
            topics: vec![TopicPattern::Exact("t".into())],
            when: Predicate::always(),
        };
        let mut settings = Vec::new();
        for (target, pool) in self.pools.iter().enumerate() {
            let ix = HandlerIx(target as u32);
            let mut of_one = handler(ix, pool.clone());
            if change(target, &mut of_one) {
                settings.push((ix, of_one));
            }
        }
        let routes = settings.iter().map(|(ix, _)| (*ix, route.clone()));
        let index = RoutingIndex::compile(1, routes.collect()).unwrap();
        self.flow.apply(index, settings);
        self.flow.dispatch();
        assert_eq!(self.flow.broken_queue(), None);
    }

    fn fail(&self, pool: usize, failed: bool) {
        self.pools[pool]
            .failed
            .store(failed, std::sync::atomic::Ordering::Relaxed);
    }

    fn skipped(&self, handler: usize) -> u64 {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        self.flow.report(clock, |_| None).handlers[handler]
            .outcomes
            .skipped
    }

    fn deliver(&mut self, offsets: std::ops::Range<i64>, key: impl Fn(i64) -> Option<String>) {
        let one = |offset| Delivery {
            slot: self.slot,
            offset,
            timestamp_ms: 0,
            leader_epoch: -1,
            lease: OwnedRecord::new(key(offset).as_deref().map(str::as_bytes), Some(b"v"), &[]),
        };
        self.flow.deliver_all(&mut offsets.map(one).collect());
        self.flow.dispatch();
    }

    /// Finishes everything that pool `pool` has, record by record; returns the offsets that it ran.
    fn finish(&mut self, pool: usize, outcome: impl Fn(i64) -> u16) -> Vec<i64> {
        let mut ran = Vec::new();
        for mut batch in std::mem::take(&mut *self.pools[pool].taken.lock().unwrap()) {
            let code = |offset| RawOutcome {
                code: outcome(offset),
                ..RawOutcome::default()
            };
            batch.outcomes = batch
                .records
                .iter()
                .map(|record| code(record.offset))
                .collect();
            let not_run = outcome_code::NOT_RUN;
            ran.extend(
                batch
                    .records
                    .iter()
                    .map(|record| record.offset)
                    .filter(|offset| outcome(*offset) != not_run),
            );
            self.flow.receive(PumpMessage::Finished(batch));
        }
        self.flow.dispatch();
        assert_eq!(self.flow.broken_queue(), None);
        ran
    }

    /// What the record at an offset waits for; the one at the frontier if none is given.
    fn waits_for(&self, offset: Option<i64>) -> crate::status::WaitsFor {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        let why = self.flow.explain(&at(), offset, clock);
        why.expect("it is assigned").held_by.remove(0).waits_for
    }

    fn outcomes(&self) -> crate::status::OutcomeCounts {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        self.flow.report(clock, |_| None).handlers[0].outcomes
    }

    fn frontier(&self) -> i64 {
        self.flow.assignment(self.slot).ledger().frontier()
    }
}

/// What the handler's only target runs.
fn acked() -> RawOutcome {
    RawOutcome {
        code: ACK,
        ..RawOutcome::default()
    }
}

/// Finishes everything that becomes due; returns the offsets that ran.
fn finish_all(bench: &mut Bench) -> Vec<i64> {
    let mut ran = Vec::new();
    for turn in 1..100 {
        bench.flow.tick(100_000 + turn * 1_000);
        bench.flow.dispatch();
        ran.extend(bench.finish(0, |_| ACK));
    }
    ran
}

fn generation_of(settings: &mut HandlerSettings) -> &mut GenerationId {
    Arc::make_mut(&mut settings.targets[0].generation)
}

fn handler(ix: HandlerIx, pool: Arc<ScriptedPool>) -> HandlerSettings {
    HandlerSettings {
        name: format!("h{}", ix.0).into(),
        targets: vec![Target::only(GenerationId::new("1.0.0", 1), pool)],
        gate_open: true,
        order: Order::Key,
        retry: RetryPolicy {
            max_attempts: 2,
            delay: Duration::from_millis(100),
            multiplier: 1.0,
            max_delay: Duration::from_millis(100),
            jitter: 0.0,
        },
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::Hold,
        first_call: 32,
        max_in_flight_records: 1_000,
        max_in_flight_bytes: 1 << 20,
    }
}

const ACK: u16 = outcome_code::ACK;

#[test]
fn a_record_settles_when_every_handler_has_settled_it() {
    let mut bench = Bench::new(2);
    bench.deliver(0..10, |_| None);
    assert_eq!(bench.finish(0, |_| ACK).len(), 10);
    assert_eq!(bench.frontier(), 0);
    assert_eq!(bench.finish(1, |_| ACK).len(), 10);
    assert_eq!(bench.frontier(), 10);
    assert_eq!((bench.flow.charged(), bench.flow.held_records()), (0, 0));
    bench.flow.tick(2_000);
    let commits = bench.flow.commits_due();
    assert_eq!(
        (
            commits.len(),
            commits[0].offset,
            commits[0].metadata.clone()
        ),
        (1, 10, bench.flow.assignment(bench.slot).metadata("g"))
    );
}

#[test]
fn a_retry_holds_its_lane_and_nothing_else_and_ends_in_a_dead_letter() {
    let mut bench = Bench::new(1);
    // Offsets 0 and 4 share a key; a fails always.
    let key = |offset| {
        Some(if offset % 4 == 0 {
            "a".to_owned()
        } else {
            format!("k{offset}")
        })
    };
    bench.deliver(0..6, key);
    let script = |offset| match offset {
        0 => outcome_code::RETRY,
        4 => outcome_code::NOT_RUN,
        _ => ACK,
    };
    assert_eq!(bench.finish(0, script), vec![0, 1, 2, 3, 5]);
    assert_eq!(bench.frontier(), 0);
    bench.deliver(6..9, key);
    assert_eq!(
        bench.finish(0, |_| ACK),
        vec![6, 7],
        "8 waits behind 4, which waits behind 0"
    );
    bench.flow.tick(100);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), vec![0]);
    assert_eq!(
        bench.frontier(),
        0,
        "not before the dead letter is acknowledged"
    );
    assert_eq!(bench.answer_producer(), vec!["t.dlt"]);
    assert_eq!(bench.frontier(), 4);
    assert_eq!(bench.finish(0, |_| ACK), vec![4, 8]);
    assert_eq!(bench.frontier(), 9);
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_refused_batch_goes_out_when_the_pool_is_free() {
    let mut bench = Bench::new(1);
    bench.pools[0]
        .full
        .store(true, std::sync::atomic::Ordering::Relaxed);
    bench.deliver(0..50, |offset| Some(offset.to_string()));
    assert!(bench.pools[0].taken.lock().unwrap().is_empty());
    bench.pools[0]
        .full
        .store(false, std::sync::atomic::Ordering::Relaxed);
    bench.flow.receive(PumpMessage::PoolFree);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK).len(), 50);
    assert_eq!(bench.frontier(), 50);
}

#[test]
fn dispatch_stops_at_max_uncommitted_and_continues_after_a_commit() {
    let mut bench = Bench::new(1);
    bench.deliver(0..150, |offset| Some(offset.to_string()));
    assert_eq!(bench.finish(0, |_| ACK).len(), 100);
    let commits = bench.flow.commits_due();
    assert_eq!(commits[0].offset, 100, "due at once: the bound is reached");
    let result = crate::source::CommitResult {
        at: at(),
        offset: 100,
        error: None,
    };
    bench.flow.committed(&[result], None);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK).len(), 50);
}

#[test]
fn a_stopped_partition_keeps_no_overflow_records() {
    let mut bench = Bench::with(1, 10);
    bench.deliver(0..30, |_| None);
    assert_eq!(bench.flow.assignment(bench.slot).overflow().len(), 20);
    bench.flow.stop_partition(bench.slot, "cause", "remedy");
    assert_eq!(bench.flow.assignment(bench.slot).overflow().len(), 0);
    bench.finish(0, |_| ACK);
    assert_eq!(bench.flow.charged(), 0);
}

#[test]
fn nothing_settles_after_a_release() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    let late = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    bench.flow.release(&[bench.slot]);
    let again = bench.flow.assign(NewAssignment::first(at(), 0, 2));
    bench.pools[0].taken.lock().unwrap().push(late);
    bench.finish(0, |_| ACK);
    assert_eq!(bench.flow.assignment(again).ledger().frontier(), 0);
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_pool_loses_a_partition_only_after_its_last_record() {
    let mut bench = Bench::new(2);
    let owned = |bench: &Bench| bench.pools[0].owned.lock().unwrap().clone();
    bench.deliver(0..3, |_| None);
    assert_eq!(owned(&bench), [(0, 1)]);
    // The first handler is not wanted any more, but has records: one with a worker, and a parked one.
    let route = Route {
        topics: vec![TopicPattern::Exact("t".into())],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(2, vec![(HandlerIx(1), route)]).unwrap();
    let kept = handler(HandlerIx(1), bench.pools[1].clone());
    bench.flow.apply(index, vec![(HandlerIx(1), kept)]);
    bench.flow.dispatch();
    assert_eq!(owned(&bench), [(0, 1)]);
    bench.finish(0, |offset| {
        if offset == 1 {
            outcome_code::RETRY
        } else {
            ACK
        }
    });
    bench.flow.tick(1_050);
    bench.flow.dispatch();
    assert_eq!(owned(&bench), [(0, 1)], "one is at its second attempt");
    bench.finish(0, |_| ACK);
    bench.flow.tick(3_000);
    bench.flow.dispatch();
    assert_eq!(
        Arc::strong_count(&bench.pools[0]),
        1,
        "its pool was released"
    );
}

#[test]
fn a_route_that_leaves_a_partition_out_lets_its_last_records_run_first() {
    let mut bench = Bench::new(1);
    bench.deliver(0..3, |_| None);
    let owned = |bench: &Bench| bench.pools[0].owned.lock().unwrap().clone();
    let route = Route {
        topics: vec![TopicPattern::Exact("another".into())],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(2, vec![(HandlerIx(0), route)]).unwrap();
    let settings = handler(HandlerIx(0), bench.pools[0].clone());
    bench.flow.apply(index, vec![(HandlerIx(0), settings)]);
    bench.flow.dispatch();
    assert_eq!(owned(&bench), [(0, 1)], "three records of it are out");
    bench.finish(0, |_| ACK);
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    assert_eq!(owned(&bench), []);
}

/// G3: a parked record, and all settled records beyond it, across three owners that hand over cleanly.
#[test]
fn finished_records_survive_hand_overs_behind_a_parked_one() {
    let mut committed = (10, CommitMetadata::default());
    let mut ran = Vec::new();
    for owner in 1..=3 {
        let mut bench = Bench::new(1);
        bench.flow.release(&[bench.slot]);
        bench.slot = bench.flow.assign(NewAssignment {
            inherited: committed.1,
            ..NewAssignment::first(at(), committed.0, owner)
        });
        bench.deliver(10..21, |offset| Some(offset.to_string()));
        let park = |offset| {
            if offset == 10 {
                outcome_code::RETRY
            } else {
                ACK
            }
        };
        ran.push(bench.finish(0, park).len());
        bench.flow.start_drain(&[bench.slot], 1_000);
        let last = bench.flow.commits_due().remove(0);
        let target = CommitTarget {
            group: "g",
            at: &at(),
            offset: last.offset,
        };
        let metadata = CommitMetadata::decode(&last.metadata, target)
            .metadata
            .unwrap();
        committed = (last.offset, metadata);
    }
    assert_eq!(ran, [11, 1, 1], "only the parked record runs again");
}

/// G3: an owner that has settled all delivered records still knows which settled ones were not redelivered.
#[test]
fn settled_records_that_were_not_redelivered_survive_a_hand_over() {
    let mut bench = Bench::new(1);
    bench.flow.release(&[bench.slot]);
    bench.slot = bench.flow.assign(NewAssignment {
        inherited: CommitMetadata {
            finished: vec![11..13, 20..30],
            ..CommitMetadata::default()
        },
        ..NewAssignment::first(at(), 10, 2)
    });
    bench.deliver(10..13, |_| None);
    assert_eq!(bench.finish(0, |_| ACK), [10]);
    let metadata = bench.flow.assignment(bench.slot).commit_metadata();
    assert_eq!((bench.frontier(), metadata.finished), (13, vec![20..30]));
}

/// A truncated and rewritten log has other records at the settled offsets (KIP-320).
#[test]
fn records_of_a_later_leader_run_even_at_settled_offsets() {
    let mut bench = Bench::new(1);
    bench.flow.release(&[bench.slot]);
    bench.slot = bench.flow.assign(NewAssignment {
        inherited: CommitMetadata {
            leader_epoch: Some(4),
            finished: vec![1..6],
            ..CommitMetadata::default()
        },
        ..NewAssignment::first(at(), 0, 2)
    });
    for (offset, leader_epoch) in [(0, 3), (1, 4), (2, 4), (3, 5), (4, 5), (6, 6)] {
        bench.flow.deliver(Delivery {
            slot: bench.slot,
            offset,
            timestamp_ms: 0,
            leader_epoch,
            lease: OwnedRecord::new(None, None, &[]),
        });
    }
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK), [0, 3, 4, 6]);
    bench.flow.tick(2_000);
    assert_eq!(bench.flow.commits_due()[0].leader_epoch, Some(6));
}

/// The idle time before a record counts neither for the partition nor for the record.
#[test]
fn a_record_after_an_idle_period_waits_only_since_its_arrival() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| None);
    bench.finish(0, |_| outcome_code::ACK);
    bench.flow.tick(10_000);
    bench.deliver(1..2, |_| None);
    bench.flow.tick(10_500);
    assert!(bench.flow.stalled(bench.slot).is_none());
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let explained = bench.flow.explain(&at(), None, clock).expect("it is ours");
    assert_eq!(explained.held_by[0].since_ms, 10_000);
    bench.flow.tick(11_000);
    let stalled = bench
        .flow
        .stalled(bench.slot)
        .expect("its bound is one second");
    assert_eq!(stalled.since_ms, 10_000);
}
