//! Calls that hang: what is reported, what continues, late returns, and the limit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Inbox, PoolState, PumpMessage, WorkerPool};
use sluicegate_engine::source::Wake;
use sluicegate_kit::plugin_doubles::{Replies, Script, Step, batch, codes, until};
use sluicegate_runtime::outcome_code;

use crate::lock::relock;
use crate::member::{HandlerSetup, Release};
use crate::pool::HandlerPool;
use crate::tests::pool::PoolHarness;
use crate::thread_pool::ThreadPool;

const ACK: u16 = outcome_code::ACK;

fn short(harness: &PoolHarness, name: &str) -> HandlerSetup {
    let mut setup = harness.setup(name);
    setup.timeout = Duration::from_millis(100);
    setup
}

fn pool(harness: &PoolHarness, workers: u32) -> (Arc<ThreadPool>, Arc<HandlerPool>) {
    let threads = harness.threads(workers);
    let pool = threads.join_first(short(harness, "one"));
    (threads, pool)
}

/// The batch that timed out, and the outcome codes of its finished records.
fn timed_out_call(replies: &mut Replies) -> (u32, Vec<u16>) {
    replies.next("timed-out call", |message| match message {
        PumpMessage::CallTimedOut {
            batch, published, ..
        } => {
            let codes = published.outcomes[..published.current]
                .iter()
                .map(|outcome| outcome.code)
                .collect();
            Ok((batch.index, codes))
        }
        other => Err(other),
    })
}

#[test]
fn a_hung_call_is_cancelled_then_reported_with_its_finished_records() {
    let harness = PoolHarness::new(&[(2, Step::Drop), (3, Step::Hang("never"))]);
    let ((_threads, pool), mut replies) = (pool(&harness, 1), Replies::new());
    let started = Instant::now();
    assert!(pool.submit(batch(0, &[1, 2, 3, 4]), &replies.inbox).is_ok());
    assert!(pool.submit(batch(1, &[5]), &replies.inbox).is_ok());
    assert_eq!(
        timed_out_call(&mut replies),
        (0, vec![ACK, outcome_code::DROP])
    );
    assert!(started.elapsed() >= Duration::from_millis(100));
    let next = replies.finished();
    assert_eq!(next.id.index, 1, "a new worker took the next batch");
    assert_eq!(codes(&next), [ACK]);
    let counts = harness.stats.counts();
    assert_eq!((counts.quarantined, counts.in_flight), (1, 0));

    harness.script.open("never");
    let late = replies.finished();
    assert_eq!((late.id.index, late.records.len()), (0, 4));
    assert!(late.cancel.is_set());
    assert_eq!(
        codes(&late),
        [outcome_code::NOT_RUN; 4],
        "late outcomes do not count"
    );
    assert_eq!(
        *relock(&harness.script.started),
        [1, 2, 3, 5],
        "4 never starts"
    );
    until("the old thread has dropped its instance", || {
        harness.script.living() == 1
    });
}

#[test]
fn a_hanging_call_tells_what_it_has_finished_until_it_returns() {
    let harness = PoolHarness::new(&[(2, Step::Drop), (3, Step::Hang("never"))]);
    let (threads, mut replies) = (harness.unwatched(1), Replies::new());
    let pool = threads.join_first(harness.setup("one"));
    let hanging = batch(0, &[1, 2, 3, 4]);
    let id = hanging.id;
    assert!(pool.submit(hanging, &replies.inbox).is_ok());
    until("it hangs", || relock(&harness.script.started).contains(&3));
    let published = |replies: &Arc<Inbox>| {
        let published = pool.published(replies, id)?;
        let outcomes = &published.outcomes[..published.current];
        Some(outcomes.iter().map(|outcome| outcome.code).collect())
    };
    assert_eq!(
        published(&replies.inbox),
        Some(vec![ACK, outcome_code::DROP])
    );
    assert_eq!(
        published(&Arc::new(Inbox::new())),
        None,
        "another pump's batch can have the same id"
    );
    harness.script.open("never");
    replies.finished();
    assert_eq!(published(&replies.inbox), None);
}

/// Another pump's slow waker: the call at gate `b` ends while it runs.
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
fn a_call_that_returns_while_it_is_abandoned_counts_as_a_whole_or_not_at_all() {
    let harness = PoolHarness::new(&[
        (1, Step::Hang("a")),
        (3, Step::Hang("b")),
        (2, Step::Emit("out")),
    ]);
    let threads = harness.threads(2);
    let (pool, mut replies) = (threads.join_first(harness.setup("one")), Replies::new());
    let other = Arc::new(Inbox::new());
    other.set_waker(Arc::new(SlowWaker(Arc::clone(&harness.script))));
    for (worker, offsets, replies) in [(0, &[1][..], &other), (1, &[2, 3], &replies.inbox)] {
        let mut batch = batch(worker, offsets);
        batch.worker = Some(worker);
        assert!(pool.submit(batch, replies).is_ok());
    }
    until("both hang", || {
        let started = relock(&harness.script.started);
        started.contains(&1) && started.contains(&3)
    });
    let late = Instant::now() + Duration::from_secs(3_600);
    threads.check(late);
    threads.check(late + Duration::from_secs(3_600));
    let (abandoned, codes) = replies.next("message", |message| match message {
        PumpMessage::CallTimedOut { published, .. } => {
            let finished = &published.outcomes[..published.current];
            Ok((true, finished.iter().map(|o| o.code).collect()))
        }
        PumpMessage::Finished(batch) => Ok((false, codes(&batch))),
        other => Err(other),
    });
    let emitted = || relock(&harness.producer.topics).len();
    if abandoned {
        assert_eq!(codes, [ACK]);
        let late = replies.finished();
        assert_eq!(
            sluicegate_kit::plugin_doubles::codes(&late),
            [outcome_code::NOT_RUN; 2]
        );
        assert_eq!(emitted(), 0, "uncounted records emit nothing");
    } else {
        // It had already returned: it counts as a whole.
        assert_eq!((codes, emitted()), (vec![ACK; 2], 1));
    }
    harness.script.open("a");
}

#[test]
fn a_slow_batch_whose_records_are_each_in_time_is_not_cancelled() {
    let gates = ["a", "b", "c"];
    let steps: Vec<_> = (0..3).map(|i| (i as i64, Step::Hang(gates[i]))).collect();
    let harness = PoolHarness::new(&steps);
    let mut setup = harness.setup("one");
    let timeout = Duration::from_millis(200);
    setup.timeout = timeout;
    // Only the test checks the calls, on its own clock.
    let (threads, mut replies) = (harness.unwatched(1), Replies::new());
    let pool = threads.join_first(setup);
    assert!(pool.submit(batch(0, &[0, 1, 2]), &replies.inbox).is_ok());
    let mut now = Instant::now();
    for (index, gate) in gates.into_iter().enumerate() {
        until("the record has started", || {
            relock(&harness.script.started).len() == index + 1
        });
        for _ in 0..3 {
            threads.check(now);
            now += timeout / 4;
        }
        harness.script.open(gate);
    }
    let finished = replies.finished();
    assert_eq!(codes(&finished), [ACK; 3]);
    assert!(
        !finished.cancel.is_set(),
        "it took twice its timeout in all"
    );
    assert_eq!(harness.stats.counts().quarantined, 0);
}

#[test]
fn other_workers_and_batches_of_a_hanging_handler_continue() {
    let harness = PoolHarness::new(&[(1, Step::Hang("never"))]);
    let ((_threads, pool), mut replies) = (pool(&harness, 2), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    for number in 1..20 {
        let mut next = batch(number, &[2]);
        while let Err(refused) = pool.submit(next, &replies.inbox) {
            replies.pool_free();
            next = refused;
        }
        assert_eq!(replies.finished().id.index, number);
    }
    assert_eq!(timed_out_call(&mut replies).0, 0);
    harness.script.open("never");
    assert_eq!(replies.finished().id.index, 0);
}

#[test]
fn too_many_hung_calls_trip_only_their_own_handler() {
    let harness = PoolHarness::new(&[(1, Step::Hang("never"))]);
    let ((threads, bad), mut replies) = (pool(&harness, 1), Replies::new());
    let good = threads.join(short(&harness, "two")).ok().unwrap();
    for number in 0..4 {
        assert_eq!(bad.state(), PoolState::Active);
        assert!(bad.submit(batch(number, &[1]), &replies.inbox).is_ok());
        assert_eq!(timed_out_call(&mut replies).0, number);
    }
    assert_eq!(bad.state(), PoolState::Failed);
    let why = bad.failure().unwrap();
    for said in ["too many hung threads", "`sluicegate handlers restart one`"] {
        assert!(why.contains(said), "{why}");
    }
    assert!(bad.submit(batch(9, &[2]), &replies.inbox).is_err());
    assert_eq!(good.state(), PoolState::Active);
    assert!(good.submit(batch(5, &[2]), &replies.inbox).is_ok());
    assert_eq!(replies.finished().id.index, 5);

    let watch = bad.release_watch();
    drop(bad);
    let release = watch.wait(Instant::now() + Duration::from_secs(20));
    assert_eq!(release, Release::Quarantined, "its threads still hang");
    let hung = &threads.settings.hung;
    assert_eq!((hung.count(), hung.of("one"), hung.of("two")), (4, 4, 0));
    harness.script.open("never");
    let mut late: Vec<_> = (0..4).map(|_| replies.finished().id.index).collect();
    late.sort_unstable();
    assert_eq!(late, [0, 1, 2, 3]);
    until("they count no longer", || {
        (hung.count(), hung.of("one")) == (0, 0)
    });
}

#[test]
fn a_hung_creation_returns_its_batch_and_abandons_its_thread() {
    let harness = PoolHarness::new(&[]);
    let mut setup = harness.setup("one");
    setup.config = "hang-create".into();
    setup.timeout = Duration::from_millis(100);
    let threads = harness.threads_with(1, Duration::from_millis(100));
    let (pool, mut replies) = (threads.join_first(setup), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    assert_eq!(codes(&replies.finished()), [outcome_code::NOT_RUN]);
    assert_eq!(harness.stats.counts().quarantined, 1);
    harness.script.open("create");
    let mut again = batch(1, &[1]);
    while let Err(refused) = pool.submit(again, &replies.inbox) {
        replies.pool_free();
        again = refused;
    }
    assert_eq!(codes(&replies.finished()), [ACK]);
}

#[test]
fn a_long_call_returns_after_its_current_record() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let threads = harness.unwatched(1);
    let pool = threads.join_first(harness.setup("one"));
    let mut replies = Replies::new();
    assert!(pool.submit(batch(0, &[1, 2, 3]), &replies.inbox).is_ok());
    let started = &harness.script.started;
    until("the call to begin", || !relock(started).is_empty());
    threads.check(Instant::now() + Duration::from_secs(1));
    harness.script.open("go");
    let not_run = outcome_code::NOT_RUN;
    assert_eq!(codes(&replies.finished()), [ACK, not_run, not_run]);
}

#[test]
fn a_call_of_overlapping_records_returns_once_it_is_longer_than_the_timeout_of_one() {
    let harness = PoolHarness::new(&[(1, Step::Hang("first")), (2, Step::Hang("second"))]);
    let threads = harness.unwatched(1);
    let mut setup = harness.setup("one");
    Arc::make_mut(&mut setup.info).concurrency = 8;
    let timeout = setup.timeout;
    let pool = threads.join_first(setup);
    let mut replies = Replies::new();
    assert!(pool.submit(batch(0, &[1, 2, 3]), &replies.inbox).is_ok());
    let started = |number| relock(&harness.script.started).len() == number;
    until("the call to begin", || started(1));
    threads.check(Instant::now() + timeout / 2);
    harness.script.open("first");
    until("the next record to begin", || started(2));
    threads.check(Instant::now() + timeout + Duration::from_secs(1));
    harness.script.open("second");
    let not_run = outcome_code::NOT_RUN;
    assert_eq!(codes(&replies.finished()), [ACK, ACK, not_run]);
}
