//! Calls that hang: what is reported, what goes on, what comes late, and where it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate_runtime::outcome_code;

use super::pool::{Rig, codes};
use super::{Deed, Home, Script, batch, until};
use crate::dispatch::{Inbox, PoolState, PumpMessage, WorkerPool};
use crate::handlers::pool::relock;
use crate::handlers::{Crew, HandlerPool, HandlerSetup, LiveConfig, Release};
use crate::source::Wake;

const ACK: u16 = outcome_code::ACK;

fn short(rig: &Rig, name: &str) -> HandlerSetup {
    let mut setup = rig.setup(name);
    setup.timeout = Duration::from_millis(100);
    setup
}

fn pool(rig: &Rig, workers: u32) -> (Arc<Crew>, Arc<HandlerPool>) {
    let crew = rig.crew(workers);
    let pool = crew.found(short(rig, "one"));
    (crew, pool)
}

/// The flight that overran, and the codes of what it had finished.
fn overrun(home: &mut Home) -> (u32, Vec<u16>) {
    home.next("overrun", |message| match message {
        PumpMessage::Overrun { flight, completed } => {
            let codes = completed.iter().map(|outcome| outcome.code).collect();
            Ok((flight.index, codes))
        }
        other => Err(other),
    })
}

#[test]
fn a_hang_is_cancelled_then_reported_with_what_was_finished_before_it() {
    let rig = Rig::new(&[(2, Deed::Drop), (3, Deed::Hang("never"))]);
    let ((_crew, pool), mut home) = (pool(&rig, 1), Home::new());
    let begun = Instant::now();
    assert!(pool.submit(batch(0, &[1, 2, 3, 4]), &home.inbox).is_ok());
    assert!(pool.submit(batch(1, &[5]), &home.inbox).is_ok());
    assert_eq!(overrun(&mut home), (0, vec![ACK, outcome_code::DROP]));
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let next = home.finished();
    assert_eq!(next.flight.index, 1, "a new worker took the next batch");
    assert_eq!(codes(&next), [ACK]);
    let counts = rig.stats.counts();
    assert_eq!((counts.quarantined, counts.in_flight), (1, 0));

    rig.script.open("never");
    let late = home.finished();
    assert_eq!((late.flight.index, late.records.len()), (0, 4));
    assert!(late.cancel.is_set());
    assert_eq!(
        codes(&late),
        [outcome_code::NOT_RUN; 4],
        "late outcomes are none"
    );
    assert_eq!(*relock(&rig.script.begun), [1, 2, 3, 5], "4 never starts");
    until("the old thread let its instance go", || {
        rig.script.living() == 1
    });
}

/// Another pump's waker, which takes its time: meanwhile the call of gate `b` comes to its end.
struct SlowWaker(Arc<Script>);

impl Wake for SlowWaker {
    fn wake(&self) {
        self.0.open("b");
        let deadline = Instant::now() + Duration::from_millis(300);
        while self.0.dropped.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_call_that_returns_while_it_is_given_up_counts_whole_or_not_at_all() {
    let rig = Rig::new(&[
        (1, Deed::Hang("a")),
        (3, Deed::Hang("b")),
        (2, Deed::Emit("out")),
    ]);
    let crew = rig.crew(2);
    let (pool, mut home) = (crew.found(rig.setup("one")), Home::new());
    let other = Arc::new(Inbox::new());
    other.set_waker(Arc::new(SlowWaker(Arc::clone(&rig.script))));
    for (worker, offsets, home) in [(0, &[1][..], &other), (1, &[2, 3], &home.inbox)] {
        let mut batch = batch(worker, offsets);
        batch.worker = Some(worker);
        assert!(pool.submit(batch, home).is_ok());
    }
    until("both hang", || {
        let begun = relock(&rig.script.begun);
        begun.contains(&1) && begun.contains(&3)
    });
    let late = Instant::now() + Duration::from_secs(3_600);
    crew.check(late);
    crew.check(late + Duration::from_secs(3_600));
    let (given_up, codes) = home.next("message", |message| match message {
        PumpMessage::Overrun { completed, .. } => {
            Ok((true, completed.iter().map(|o| o.code).collect()))
        }
        PumpMessage::Finished(batch) => Ok((false, codes(&batch))),
        other => Err(other),
    });
    let emitted = || relock(&rig.producer.topics).len();
    if given_up {
        assert_eq!(codes, [ACK]);
        let late = home.finished();
        assert_eq!(super::pool::codes(&late), [outcome_code::NOT_RUN; 2]);
        assert_eq!(emitted(), 0, "what nobody counts is not emitted");
    } else {
        // It was seen to have returned: then it counts whole.
        assert_eq!((codes, emitted()), (vec![ACK; 2], 1));
    }
    rig.script.open("a");
}

#[test]
fn a_slow_batch_whose_records_are_each_in_time_is_let_be() {
    let gates = ["a", "b", "c", "d"];
    let deeds: Vec<_> = (0..4).map(|i| (i as i64, Deed::Hang(gates[i]))).collect();
    let rig = Rig::new(&deeds);
    let setup = rig.setup("one");
    let timeout = setup.timeout;
    // Nobody looks but the test, on a clock of its own.
    let (crew, mut home) = (rig.unwatched(1), Home::new());
    let pool = crew.found(setup);
    assert!(pool.submit(batch(0, &[0, 1, 2, 3]), &home.inbox).is_ok());
    let mut now = Instant::now();
    for (index, gate) in gates.into_iter().enumerate() {
        until("the record is begun", || {
            relock(&rig.script.begun).len() == index + 1
        });
        for _ in 0..3 {
            crew.check(now);
            now += timeout / 4;
        }
        rig.script.open(gate);
    }
    let finished = home.finished();
    assert_eq!(codes(&finished), [ACK; 4]);
    assert!(
        !finished.cancel.is_set(),
        "it took three times its timeout in all"
    );
    assert_eq!(rig.stats.counts().quarantined, 0);
}

#[test]
fn other_workers_and_batches_of_a_hanging_handler_go_on() {
    let rig = Rig::new(&[(1, Deed::Hang("never"))]);
    let ((_crew, pool), mut home) = (pool(&rig, 2), Home::new());
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    for flight in 1..20 {
        let mut next = batch(flight, &[2]);
        while let Err(refused) = pool.submit(next, &home.inbox) {
            home.pool_free();
            next = refused;
        }
        assert_eq!(home.finished().flight.index, flight);
    }
    assert_eq!(overrun(&mut home).0, 0);
    rig.script.open("never");
    assert_eq!(home.finished().flight.index, 0);
}

#[test]
fn too_many_hung_calls_trip_their_handler_and_no_other_of_the_crew() {
    let rig = Rig::new(&[(1, Deed::Hang("never"))]);
    let ((crew, bad), mut home) = (pool(&rig, 1), Home::new());
    let good = crew.join(short(&rig, "two")).ok().unwrap();
    for flight in 0..4 {
        assert_eq!(bad.state(), PoolState::Active);
        assert!(bad.submit(batch(flight, &[1]), &home.inbox).is_ok());
        assert_eq!(overrun(&mut home).0, flight);
    }
    assert_eq!(bad.state(), PoolState::Failed);
    let why = bad.failure().unwrap();
    for said in ["too many hung calls", "`sluicegate handlers restart one`"] {
        assert!(why.contains(said), "{why}");
    }
    assert!(bad.submit(batch(9, &[2]), &home.inbox).is_err());
    assert_eq!(good.state(), PoolState::Active);
    assert!(good.submit(batch(5, &[2]), &home.inbox).is_ok());
    assert_eq!(home.finished().flight.index, 5);

    let watch = bad.release_watch();
    drop(bad);
    let release = watch.wait(Instant::now() + Duration::from_secs(20));
    assert_eq!(release, Release::Quarantined, "its threads still hang");
    rig.script.open("never");
    let mut late: Vec<_> = (0..4).map(|_| home.finished().flight.index).collect();
    late.sort_unstable();
    assert_eq!(late, [0, 1, 2, 3]);
}

#[test]
fn a_creation_that_hangs_sends_its_batch_back_and_costs_its_thread() {
    let rig = Rig::new(&[]);
    let mut setup = rig.setup("one");
    setup.config = LiveConfig::new("hang-create");
    setup.timeout = Duration::from_millis(100);
    let crew = rig.crew_with(1, Duration::from_millis(100));
    let (pool, mut home) = (crew.found(setup), Home::new());
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    assert_eq!(codes(&home.finished()), [outcome_code::NOT_RUN]);
    assert_eq!(rig.stats.counts().quarantined, 1);
    rig.script.open("create");
    let mut again = batch(1, &[1]);
    while let Err(refused) = pool.submit(again, &home.inbox) {
        home.pool_free();
        again = refused;
    }
    assert_eq!(codes(&home.finished()), [ACK]);
}
