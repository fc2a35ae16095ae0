//! Pools: hand-over, containment of panics, emits, shared threads, departure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate_runtime::{HostServices, LogLevel, MetricKind, outcome_code};

use super::{Deed, Home, Producer, Script, ScriptedPlugin, batch, until};
use crate::dispatch::{Batch, PoolState, PumpMessage, WorkerPool};
use crate::emit::FailureKind;
use crate::handlers::pool::relock;
use crate::handlers::{
    Crew, CrewSettings, HandlerPool, HandlerSetup, HandlerStats, LiveConfig, OverrunWatch, Release,
    RestartPolicy,
};

struct Silent;

impl HostServices for Silent {
    fn log(&self, _level: LogLevel, _message: &str) {}

    fn metric(&self, _kind: MetricKind, _name: &str, _value: f64) {}
}

/// What a test's pool stands on.
pub(super) struct Rig {
    pub(super) watch: OverrunWatch,
    pub(super) producer: Arc<Producer>,
    pub(super) script: Arc<Script>,
    pub(super) stats: Arc<HandlerStats>,
}

impl Rig {
    pub(super) fn new(deeds: &[(i64, Deed)]) -> Self {
        Self {
            watch: OverrunWatch::start().unwrap(),
            producer: Arc::default(),
            script: Script::new(deeds),
            stats: Arc::default(),
        }
    }

    pub(super) fn crew(&self, workers: u32) -> Arc<Crew> {
        self.crew_with(workers, Duration::from_secs(20))
    }

    pub(super) fn crew_with(&self, workers: u32, create_timeout: Duration) -> Arc<Crew> {
        Crew::new(settings(workers, create_timeout), &self.watch)
    }

    /// A crew that nobody looks at but the test.
    pub(super) fn unwatched(&self, workers: u32) -> Arc<Crew> {
        let ended = OverrunWatch::start().unwrap();
        Crew::new(settings(workers, Duration::from_secs(20)), &ended)
    }

    pub(super) fn setup(&self, name: &str) -> HandlerSetup {
        HandlerSetup {
            name: name.into(),
            exported_as: "scripted".to_owned(),
            plugin: ScriptedPlugin::new(&self.script),
            config: LiveConfig::new("{}"),
            provenance: None,
            timeout: Duration::from_secs(20),
            restart: RestartPolicy::default(),
            services: Arc::new(Silent),
            emitter: Arc::clone(&self.producer) as _,
            stats: Arc::clone(&self.stats),
        }
    }

    pub(super) fn pool(&self, workers: u32) -> Arc<HandlerPool> {
        self.crew(workers).found(self.setup("one"))
    }
}

fn settings(workers: u32, create_timeout: Duration) -> CrewSettings {
    CrewSettings {
        name: "test".to_owned(),
        generation: 1,
        workers,
        create_timeout,
        drain_timeout: Duration::from_secs(20),
        health_every: Duration::from_millis(50),
    }
}

pub(super) fn codes(batch: &Batch) -> Vec<u16> {
    batch.outcomes.iter().map(|outcome| outcome.code).collect()
}

const ACK: u16 = outcome_code::ACK;
const NOT_RUN: u16 = outcome_code::NOT_RUN;

#[test]
fn a_batch_comes_back_with_its_outcomes_and_counts() {
    let rig = Rig::new(&[(2, Deed::Drop), (3, Deed::Retry)]);
    let (pool, mut home) = (rig.pool(2), Home::new());
    assert!(pool.submit(batch(7, &[1, 2, 3]), &home.inbox).is_ok());
    let back = home.finished();
    assert_eq!(back.flight.index, 7);
    assert_eq!(codes(&back), [ACK, outcome_code::DROP, outcome_code::RETRY]);
    assert!(back.emits_pending.is_empty());
    let counts = rig.stats.counts();
    assert_eq!((counts.batches, counts.in_flight), (1, 0));
    assert_eq!(counts.durations.buckets.iter().sum::<u64>(), 3);
    assert_eq!(rig.script.living(), 1, "one worker was needed");
}

#[test]
fn one_batch_waits_behind_each_running_one_and_room_is_told() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let (pool, mut home) = (rig.pool(2), Home::new());
    for flight in 0..4 {
        assert!(pool.submit(batch(flight, &[1]), &home.inbox).is_ok());
    }
    let refused = pool.submit(batch(4, &[1]), &home.inbox).unwrap_err();
    assert_eq!(refused.flight.index, 4);
    rig.script.open("go");
    home.pool_free();
    assert!(pool.submit(refused, &home.inbox).is_ok());
    let mut flights: Vec<_> = (0..5).map(|_| home.finished().flight.index).collect();
    flights.sort_unstable();
    assert_eq!(flights, [0, 1, 2, 3, 4]);
}

#[test]
fn a_batch_bound_to_a_worker_goes_to_no_other() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let (pool, mut home) = (rig.pool(2), Home::new());
    let bound = |flight, offset| {
        let mut batch = batch(flight, &[offset]);
        batch.worker = Some(1);
        batch
    };
    assert!(pool.submit(bound(0, 1), &home.inbox).is_ok());
    assert!(pool.submit(bound(1, 2), &home.inbox).is_ok());
    assert!(pool.submit(bound(2, 3), &home.inbox).is_err());
    assert!(pool.submit(batch(3, &[4]), &home.inbox).is_ok());
    assert_eq!(home.finished().flight.index, 3, "the other worker is free");
    rig.script.open("go");
    assert_eq!(home.finished().flight.index, 0);
    assert_eq!(home.finished().flight.index, 1);
    home.pool_free();
}

#[test]
fn a_panic_costs_the_instance_and_the_rest_of_the_batch_was_not_run() {
    let rig = Rig::new(&[(2, Deed::Panic)]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.submit(batch(0, &[1, 2, 3]), &home.inbox).is_ok());
    assert!(pool.submit(batch(1, &[4]), &home.inbox).is_ok());
    let back = home.finished();
    assert_eq!(codes(&back), [ACK, outcome_code::PANICKED, NOT_RUN]);
    assert_eq!(codes(&home.finished()), [ACK], "rebuilt at once");
    until("the spent instance is dropped", || rig.script.living() == 1);
    let counts = rig.stats.counts();
    assert_eq!((counts.panics, counts.restarts), (1, 1));
    assert_eq!(&*counts.last_error.unwrap().message, "scripted panic");
}

/// Submits until the pool takes it.
fn give(pool: &HandlerPool, home: &mut Home, mut batch: Box<Batch>) {
    while let Err(refused) = pool.submit(batch, &home.inbox) {
        assert_eq!(pool.state(), PoolState::Active);
        home.pool_free();
        batch = refused;
    }
}

#[test]
fn dying_without_an_acknowledged_record_in_between_trips_and_a_reset_heals() {
    let rig = Rig::new(&[(1, Deed::Panic)]);
    let mut setup = rig.setup("one");
    setup.restart.max_restarts = 3;
    let (pool, mut home) = (rig.crew(1).found(setup), Home::new());
    for flight in 0..4 {
        give(&pool, &mut home, batch(flight, &[1]));
        assert_eq!(codes(&home.finished()), [outcome_code::PANICKED]);
    }
    assert_eq!(pool.state(), PoolState::Failed);
    let why = pool.failure().unwrap();
    assert!(
        why.contains("died 4 times") && why.contains("scripted panic"),
        "{why}"
    );
    let refused = pool.submit(batch(4, &[2]), &home.inbox).unwrap_err();
    pool.reset();
    home.pool_free();
    give(&pool, &mut home, refused);
    assert_eq!(codes(&home.finished()), [ACK]);
}

#[test]
fn who_is_refused_by_a_tripped_handler_hears_of_it_again_when_it_is_reset() {
    let rig = Rig::new(&[(1, Deed::Panic)]);
    let mut setup = rig.setup("one");
    setup.restart.max_restarts = 0;
    let (crew, mut home) = (rig.crew(1), Home::new());
    let pool = crew.found(setup);
    give(&pool, &mut home, batch(0, &[1]));
    home.finished();
    assert_eq!(pool.state(), PoolState::Failed);
    home.forget_room();
    for flight in 1..4 {
        assert!(pool.submit(batch(flight, &[2]), &home.inbox).is_err());
        crew.check(Instant::now());
        assert!(!home.forget_room(), "it is asked for nothing");
    }
    pool.reset();
    assert!(home.forget_room());
}

#[test]
fn poison_among_good_records_never_trips() {
    let rig = Rig::new(&[(1, Deed::Panic)]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    for flight in 0..50 {
        give(&pool, &mut home, batch(flight, &[0, 1]));
        assert_eq!(codes(&home.finished()), [ACK, outcome_code::PANICKED]);
    }
    assert_eq!(pool.state(), PoolState::Active);
    assert_eq!(rig.stats.counts().panics, 50);
}

#[test]
fn an_instance_that_is_not_built_sends_its_batch_back_untouched() {
    let rig = Rig::new(&[]);
    rig.script.failing_creations.store(2, Ordering::SeqCst);
    let (pool, mut home) = (rig.pool(1), Home::new());
    for flight in 0..2 {
        give(&pool, &mut home, batch(flight, &[1, 2]));
        assert_eq!(codes(&home.finished()), [NOT_RUN, NOT_RUN]);
    }
    give(&pool, &mut home, batch(2, &[1]));
    assert_eq!(codes(&home.finished()), [ACK]);
}

#[test]
fn every_outcome_that_stands_emits_and_waits_for_the_producer() {
    let rig = Rig::new(&[
        (1, Deed::Emit("acked")),
        (2, Deed::EmitThen("never", outcome_code::RETRY)),
        (3, Deed::EmitThen("dropped", outcome_code::DROP)),
        (4, Deed::EmitThen("lettered", outcome_code::DEAD_LETTER)),
    ]);
    rig.producer.full_for.store(3, Ordering::SeqCst);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.submit(batch(0, &[0, 1, 2, 3, 4]), &home.inbox).is_ok());
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(home.next("message", |message| match message {
            PumpMessage::Finished(batch) => Ok(format!("finished {:?}", batch.emits_pending)),
            PumpMessage::Produced { entry, refused, .. } => {
                Ok(format!("produced {} {}", entry.index, refused.is_none()))
            }
            other => Err(other),
        }));
    }
    assert_eq!(
        order,
        [
            "finished [false, true, false, true, true]",
            "produced 1 true",
            "produced 3 true",
            "produced 4 true"
        ]
    );
    let topics = relock(&rig.producer.topics);
    assert_eq!(*topics, ["acked", "dropped", "lettered"]);
}

#[test]
fn what_finds_no_room_in_time_is_kept_for_the_pump_from_the_first_record_on() {
    let rig = Rig::new(&[(1, Deed::Emit("out")), (2, Deed::Emit("out"))]);
    rig.producer.full_for.store(u32::MAX, Ordering::SeqCst);
    let mut setup = rig.setup("one");
    setup.timeout = Duration::from_millis(50);
    let (pool, mut home) = (rig.crew(1).found(setup), Home::new());
    assert!(pool.submit(batch(0, &[1, 2]), &home.inbox).is_ok());
    assert_eq!(home.finished().emits_pending, [true, true]);
    for entry_index in [0, 1] {
        let (entry, refused) = home.next("answer", |message| match message {
            PumpMessage::Produced { entry, refused, .. } => Ok((entry, refused)),
            other => Err(other),
        });
        assert_eq!(entry.index, entry_index);
        let refused = refused.unwrap();
        assert_eq!(refused.failure.kind, FailureKind::Cluster);
        assert_eq!(&*refused.failure.error, "the producer's queue is full");
        assert_eq!((refused.first, refused.group.records().len()), (0, 1));
        let kept = &refused.group.records()[0];
        assert_eq!(kept.value.as_deref(), Some(b"emitted".as_slice()));
    }
}

#[test]
fn a_dropped_pool_drains_and_drops_its_instances_and_ends_its_threads() {
    let rig = Rig::new(&[]);
    let (pool, mut home) = (rig.pool(2), Home::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    home.finished();
    let watch = pool.release_watch();
    assert_eq!(watch.wait(Instant::now()), Release::Unfinished);
    drop(pool);
    let release = watch.wait(Instant::now() + Duration::from_secs(20));
    assert_eq!(release, Release::Clean);
    assert_eq!(rig.script.living(), 0);
    assert_eq!(
        rig.script.drained.load(Ordering::SeqCst),
        rig.script.built.load(Ordering::SeqCst)
    );
}

#[test]
fn an_instance_that_falls_ill_shows_and_heals() {
    let rig = Rig::new(&[]);
    let mut setup = rig.setup("one");
    setup.timeout = Duration::from_millis(100);
    let pool = rig.crew(1).found(setup);
    pool.probe(true, Duration::from_secs(20)).unwrap();
    assert_eq!(pool.illness(), None);
    rig.script.ill.store(true, Ordering::SeqCst);
    until("it shows", || pool.illness().is_some());
    assert_eq!(pool.state(), PoolState::Active, "it still takes records");
    let message = rig.stats.counts().last_error.unwrap().message;
    assert_eq!(&*message, "not well: scripted to be ill");
    rig.script.ill.store(false, Ordering::SeqCst);
    until("it is well again", || pool.illness().is_none());
}

#[test]
fn a_probe_tells_refused_configs_and_ill_instances() {
    let rig = Rig::new(&[]);
    let crew = rig.crew(1);
    let probe = |config: &str| {
        let mut setup = rig.setup("one");
        setup.config = LiveConfig::new(config);
        let pool = crew.found(setup);
        (pool.probe(false, Duration::from_secs(20)), pool)
    };
    let (well, _keeps_the_crew) = probe("{}");
    assert_eq!(well, Ok(()));
    let (refused, _) = probe("refuse");
    assert!(refused.unwrap_err().contains("config refused"));
    let (ill, _) = probe("unhealthy");
    assert!(ill.unwrap_err().contains("scripted to be ill"));
    until("nothing is kept", || rig.script.living() == 0);
}
