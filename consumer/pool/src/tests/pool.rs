//! Pools: submission, containment of panics, emits, shared threads, release.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, PoolState, PumpMessage, WorkerPool};
use sluicegate_engine::emit::{Delivery, FailureKind};
use sluicegate_kit::plugin_doubles::{
    Producer, Replies, Script, ScriptedPlugin, Step, batch, codes, until,
};
use sluicegate_runtime::{
    CreateError, HandlerInfo, HostServices, LogLine, MetricKind, outcome_code,
};

use crate::error::ProbeError;
use crate::lock::relock;
use crate::member::{HandlerSetup, Release};
use crate::pool::HandlerPool;
use crate::restart::RestartPolicy;
use crate::roster::WorkerId;
use crate::settings::HungThreads;
use crate::settings::ThreadPoolSettings;
use crate::stats::HandlerStats;
use crate::thread_pool::ThreadPool;
use crate::watchdog::CallWatchdog;
use crate::worker;

pub(crate) struct Silent;

impl HostServices for Silent {
    fn log(&self, _line: &LogLine<'_>) {}

    fn metric(&self, _kind: MetricKind, _name: &str, _value: f64) {}
}

/// Everything that a pool needs in a test.
pub(super) struct PoolHarness {
    pub(super) watchdog: CallWatchdog,
    pub(super) producer: Arc<Producer>,
    pub(super) script: Arc<Script>,
    pub(super) stats: Arc<HandlerStats>,
}

impl PoolHarness {
    pub(super) fn new(steps: &[(i64, Step)]) -> Self {
        Self {
            watchdog: CallWatchdog::start().unwrap(),
            producer: Arc::default(),
            script: Script::new(steps),
            stats: Arc::default(),
        }
    }

    pub(super) fn threads(&self, workers: u32) -> Arc<ThreadPool> {
        self.threads_with(workers, Duration::from_secs(20))
    }

    pub(super) fn threads_with(&self, workers: u32, create_timeout: Duration) -> Arc<ThreadPool> {
        ThreadPool::new(settings(workers, create_timeout), &self.watchdog)
    }

    /// A thread pool without a watchdog: only the test calls `check`.
    pub(super) fn unwatched(&self, workers: u32) -> Arc<ThreadPool> {
        let ended = CallWatchdog::start().unwrap();
        ThreadPool::new(settings(workers, Duration::from_secs(20)), &ended)
    }

    /// A thread pool without a watchdog, whose threads cannot be started while `fails` is set.
    pub(super) fn failing_threads(&self, workers: u32, fails: &Arc<AtomicBool>) -> Arc<ThreadPool> {
        let fails = Arc::clone(fails);
        let settings = settings(workers, Duration::from_secs(20));
        let spawn = move |threads, worker: WorkerId| match fails.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => worker::spawn(threads, worker),
        };
        ThreadPool::with_threads(settings, Box::new(spawn))
    }

    pub(super) fn setup(&self, name: &str) -> HandlerSetup {
        HandlerSetup {
            generation: 1,
            name: name.into(),
            info: Arc::new(HandlerInfo::new("scripted", "{}")),
            plugin: ScriptedPlugin::new(&self.script),
            config: "{}".into(),
            provenance: None,
            timeout: Duration::from_secs(20),
            restart: RestartPolicy::default(),
            services: Arc::new(Silent),
            emitter: Arc::clone(&self.producer) as _,
            stats: Arc::clone(&self.stats),
        }
    }

    pub(super) fn pool(&self, workers: u32) -> Arc<HandlerPool> {
        self.threads(workers).join_first(self.setup("one"))
    }
}

fn settings(workers: u32, create_timeout: Duration) -> ThreadPoolSettings {
    ThreadPoolSettings {
        name: "test".to_owned(),
        generation: 1,
        workers,
        create_timeout,
        drain_timeout: Duration::from_secs(20),
        health_interval: Duration::from_millis(50),
        health_timeout: Duration::from_secs(20),
        hung: HungThreads::default(),
    }
}

const ACK: u16 = outcome_code::ACK;
const NOT_RUN: u16 = outcome_code::NOT_RUN;

#[test]
fn a_batch_is_returned_with_its_outcomes_and_counted() {
    let harness = PoolHarness::new(&[(2, Step::Drop), (3, Step::Retry)]);
    let (pool, mut replies) = (harness.pool(2), Replies::new());
    assert!(pool.submit(batch(7, &[1, 2, 3]), &replies.inbox).is_ok());
    let back = replies.finished();
    assert_eq!(back.id.index, 7);
    assert_eq!(codes(&back), [ACK, outcome_code::DROP, outcome_code::RETRY]);
    assert!(back.output.emits.is_empty());
    let counts = harness.stats.counts();
    assert_eq!((counts.batches, counts.in_flight), (1, 0));
    assert_eq!(counts.durations.buckets.iter().sum::<u64>(), 3);
    assert_eq!(harness.script.living(), 1, "one worker was needed");
}

#[test]
fn one_batch_waits_behind_each_running_one_and_room_is_notified() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let (pool, mut replies) = (harness.pool(2), Replies::new());
    for number in 0..4 {
        assert!(pool.submit(batch(number, &[1]), &replies.inbox).is_ok());
    }
    let refused = pool.submit(batch(4, &[1]), &replies.inbox).unwrap_err();
    assert_eq!(refused.id.index, 4);
    harness.script.open("go");
    replies.pool_free();
    assert!(pool.submit(refused, &replies.inbox).is_ok());
    let mut numbers: Vec<_> = (0..5).map(|_| replies.finished().id.index).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

#[test]
fn a_batch_bound_to_a_worker_runs_on_no_other() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let (pool, mut replies) = (harness.pool(2), Replies::new());
    let bound = |number, offset| {
        let mut batch = batch(number, &[offset]);
        batch.worker = Some(1);
        batch
    };
    assert!(pool.submit(bound(0, 1), &replies.inbox).is_ok());
    assert!(pool.submit(bound(1, 2), &replies.inbox).is_ok());
    assert!(pool.submit(bound(2, 3), &replies.inbox).is_err());
    assert!(pool.submit(batch(3, &[4]), &replies.inbox).is_ok());
    assert_eq!(replies.finished().id.index, 3, "the other worker is free");
    harness.script.open("go");
    assert_eq!(replies.finished().id.index, 0);
    assert_eq!(replies.finished().id.index, 1);
    replies.pool_free();
}

#[test]
fn a_panic_drops_the_instance_and_the_rest_of_the_batch_is_not_run() {
    let harness = PoolHarness::new(&[(2, Step::Panic)]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(pool.submit(batch(0, &[1, 2, 3]), &replies.inbox).is_ok());
    assert!(pool.submit(batch(1, &[4]), &replies.inbox).is_ok());
    let back = replies.finished();
    assert_eq!(codes(&back), [ACK, outcome_code::PANICKED, NOT_RUN]);
    assert_eq!(codes(&replies.finished()), [ACK], "rebuilt at once");
    until("the poisoned instance is dropped", || {
        harness.script.living() == 1
    });
    let counts = harness.stats.counts();
    assert_eq!((counts.panics, counts.restarts), (1, 1));
    assert_eq!(&*counts.last_error.unwrap().message, "scripted panic");
}

#[test]
fn an_instance_whose_dependency_is_away_is_built_again_and_never_trips_its_handler() {
    let harness = PoolHarness::new(&[(3, Step::Away)]);
    let mut setup = harness.setup("one");
    setup.restart.max_restarts = 2;
    let (pool, mut replies) = (harness.threads(1).join_first(setup), Replies::new());
    for number in 0..8 {
        give(&pool, &mut replies, batch(number, &[3, 4]));
        assert_eq!(codes(&replies.finished()), [NOT_RUN, NOT_RUN]);
    }
    assert_eq!(pool.state(), PoolState::Active);
    let why = pool.unhealthy_reason().unwrap();
    assert_eq!(&*why, "scripted outage");
    let counts = harness.stats.counts();
    assert_eq!(counts.panics, 0);
    assert!(counts.last_error.unwrap().message.ends_with(&*why));
    give(&pool, &mut replies, batch(8, &[2, 3, 4]));
    let back = replies.finished();
    assert_eq!(codes(&back), [ACK, NOT_RUN, NOT_RUN], "what ran counts");
    give(&pool, &mut replies, batch(9, &[4]));
    assert_eq!(codes(&replies.finished()), [ACK]);
    until("its instances are dropped", || harness.script.living() == 1);
}

/// Submits until the pool accepts the batch.
fn give(pool: &HandlerPool, replies: &mut Replies, mut batch: Box<Batch>) {
    while let Err(refused) = pool.submit(batch, &replies.inbox) {
        assert_eq!(pool.state(), PoolState::Active);
        replies.pool_free();
        batch = refused;
    }
}

#[test]
fn failures_without_an_acknowledged_record_trip_the_handler_and_a_reset_recovers_it() {
    let harness = PoolHarness::new(&[(1, Step::Panic)]);
    let mut setup = harness.setup("one");
    setup.restart.max_restarts = 3;
    let (pool, mut replies) = (harness.threads(1).join_first(setup), Replies::new());
    for number in 0..4 {
        give(&pool, &mut replies, batch(number, &[1]));
        assert_eq!(codes(&replies.finished()), [outcome_code::PANICKED]);
    }
    assert_eq!(pool.state(), PoolState::Failed);
    let why = pool.failure().unwrap();
    assert!(
        why.contains("failed 4 times") && why.contains("scripted panic"),
        "{why}"
    );
    let refused = pool.submit(batch(4, &[2]), &replies.inbox).unwrap_err();
    pool.reset();
    replies.pool_free();
    give(&pool, &mut replies, refused);
    assert_eq!(codes(&replies.finished()), [ACK]);
}

#[test]
fn an_inbox_refused_by_a_tripped_handler_is_notified_after_a_reset() {
    let harness = PoolHarness::new(&[(1, Step::Panic)]);
    let mut setup = harness.setup("one");
    setup.restart.max_restarts = 0;
    let (threads, mut replies) = (harness.threads(1), Replies::new());
    let pool = threads.join_first(setup);
    give(&pool, &mut replies, batch(0, &[1]));
    replies.finished();
    assert_eq!(pool.state(), PoolState::Failed);
    replies.forget_room();
    for number in 1..4 {
        assert!(pool.submit(batch(number, &[2]), &replies.inbox).is_err());
        threads.check(Instant::now());
        assert!(!replies.forget_room(), "without room, nothing is reported");
    }
    pool.reset();
    assert!(replies.forget_room());
}

#[test]
fn a_poison_record_among_good_ones_never_trips() {
    let harness = PoolHarness::new(&[(1, Step::Panic)]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    for number in 0..50 {
        give(&pool, &mut replies, batch(number, &[0, 1]));
        assert_eq!(codes(&replies.finished()), [ACK, outcome_code::PANICKED]);
    }
    assert_eq!(pool.state(), PoolState::Active);
    assert_eq!(harness.stats.counts().panics, 50);
}

#[test]
fn a_failed_creation_returns_its_batch_unprocessed() {
    let harness = PoolHarness::new(&[]);
    harness.script.failing_creations.store(2, Ordering::SeqCst);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    for number in 0..2 {
        give(&pool, &mut replies, batch(number, &[1, 2]));
        assert_eq!(codes(&replies.finished()), [NOT_RUN, NOT_RUN]);
    }
    give(&pool, &mut replies, batch(2, &[1]));
    assert_eq!(codes(&replies.finished()), [ACK]);
}

#[test]
fn every_final_outcome_emits_and_waits_for_the_producer() {
    let harness = PoolHarness::new(&[
        (1, Step::Emit("acked")),
        (2, Step::EmitThen("never", outcome_code::RETRY)),
        (3, Step::EmitThen("dropped", outcome_code::DROP)),
        (4, Step::EmitThen("lettered", outcome_code::DEAD_LETTER)),
    ]);
    harness.producer.full_for.store(3, Ordering::SeqCst);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(
        pool.submit(batch(0, &[0, 1, 2, 3, 4]), &replies.inbox)
            .is_ok()
    );
    let back = replies.finished();
    let emits = back.output.emits.records();
    assert_eq!(emits.collect::<Vec<_>>(), [1, 3, 4]);
    assert!(back.unsent.is_empty() && back.emitted.is_some());
    for place in 0..3 {
        let token = delivery(&mut replies).token;
        assert_eq!(Some(token), back.shipment.at(place));
    }
    let topics = relock(&harness.producer.topics);
    assert_eq!(*topics, ["acked", "dropped", "lettered"]);
}

#[test]
fn emits_without_room_in_time_are_kept_for_the_pump() {
    let harness = PoolHarness::new(&[(1, Step::Emit("out")), (2, Step::Emit("out"))]);
    harness.producer.full_for.store(u32::MAX, Ordering::SeqCst);
    let mut setup = harness.setup("one");
    setup.timeout = Duration::from_millis(50);
    let (pool, mut replies) = (harness.threads(1).join_first(setup), Replies::new());
    assert!(pool.submit(batch(0, &[1, 2]), &replies.inbox).is_ok());
    let back = replies.finished();
    assert!(back.unsent.is_empty(), "each is answered");
    for (place, kept) in back.output.emits.iter().enumerate() {
        assert_eq!(kept.to.value, Some(b"emitted".as_slice()));
        let answer = delivery(&mut replies);
        assert_eq!(Some(answer.token), back.shipment.at(place));
        let failure = answer.failure.unwrap();
        assert_eq!(failure.kind, FailureKind::Cluster);
        assert_eq!(&*failure.error, "the producer's queue is full");
    }
}

/// The next answer of the producer.
fn delivery(replies: &mut Replies) -> Delivery {
    replies.next("answer", |message| match message {
        PumpMessage::Delivered(mut deliveries) => Ok(deliveries.remove(0)),
        other => Err(other),
    })
}

#[test]
fn a_dropped_pool_drains_and_drops_its_instances_and_stops_its_threads() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(2), Replies::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    replies.finished();
    let watch = pool.release_watch();
    assert_eq!(watch.wait(Instant::now()), Release::Unfinished);
    drop(pool);
    let release = watch.wait(Instant::now() + Duration::from_secs(20));
    assert_eq!(release, Release::Clean);
    assert_eq!(harness.script.living(), 0);
    assert_eq!(
        harness.script.drained.load(Ordering::SeqCst),
        harness.script.built.load(Ordering::SeqCst)
    );
}

#[test]
fn an_unhealthy_instance_is_reported_until_it_recovers() {
    let harness = PoolHarness::new(&[]);
    let mut setup = harness.setup("one");
    setup.timeout = Duration::from_millis(100);
    let pool = harness.threads(1).join_first(setup);
    pool.probe(true, Duration::from_secs(20)).unwrap();
    assert_eq!(pool.unhealthy_reason(), None);
    harness.script.unhealthy.store(true, Ordering::SeqCst);
    until("it is reported", || pool.unhealthy_reason().is_some());
    assert_eq!(pool.state(), PoolState::Active, "it still takes records");
    let message = harness.stats.counts().last_error.unwrap().message;
    assert_eq!(&*message, "unhealthy: scripted to be unhealthy");
    harness.script.unhealthy.store(false, Ordering::SeqCst);
    until("it has recovered", || pool.unhealthy_reason().is_none());
}

#[test]
fn a_probe_reports_refused_configs_and_unhealthy_instances() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.threads(1);
    let probe = |config: &str| {
        let mut setup = harness.setup("one");
        setup.config = config.into();
        let pool = threads.join_first(setup);
        (pool.probe(false, Duration::from_secs(20)), pool)
    };
    let (healthy, _keeps_the_threads) = probe("{}");
    healthy.unwrap();
    let (refused, _) = probe("refuse");
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, ProbeError::Create(CreateError::Config(_))),
        "{refused:?}"
    );
    let (unhealthy, _) = probe("unhealthy");
    let unhealthy = unhealthy.unwrap_err();
    assert_eq!(
        unhealthy.to_string(),
        "health check failed: scripted to be unhealthy"
    );
    until("nothing is kept", || harness.script.living() == 0);
}
