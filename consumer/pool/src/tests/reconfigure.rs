//! New configs for running instances: applied between two batches, refused without side effects, never applied in part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::WorkerPool;
use sluicegate_kit::plugin_doubles::{Replies, Step, batch, until};

use crate::error::ConfigNotTaken;
use crate::lock::relock;
use crate::pool::HandlerPool;
use crate::tests::pool::PoolHarness;

const TIMEOUT: Duration = Duration::from_secs(20);

fn configs(harness: &PoolHarness) -> Vec<String> {
    relock(&harness.script.configs).clone()
}

/// Two instances, of which one is in a call until the gate `long` opens.
fn two_instances() -> (PoolHarness, Arc<HandlerPool>, Replies) {
    let harness = PoolHarness::new(&[(1, Step::Hang("long"))]);
    let (pool, mut replies) = (harness.pool(2), Replies::new());
    for (number, offset) in [(0, 1), (1, 2)] {
        assert!(
            pool.submit(batch(number, &[offset]), &replies.inbox)
                .is_ok()
        );
    }
    replies.finished();
    (harness, pool, replies)
}

#[test]
fn every_instance_takes_the_config_and_a_busy_one_takes_it_after_its_call() {
    let (harness, pool, mut replies) = two_instances();
    pool.reconfigure("new", TIMEOUT).unwrap();
    let built = ["built with {}", "built with {}", "took new"];
    assert_eq!(
        configs(&harness),
        built,
        "the other one is still in its call"
    );
    harness.script.open("long");
    replies.finished();
    until("the other one takes it", || configs(&harness).len() == 4);
    assert_eq!(configs(&harness)[3], "took new");
    assert_eq!(harness.script.living(), 2);
}

#[test]
fn a_refused_config_leaves_the_instance_unchanged() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.probe(true, TIMEOUT).unwrap();
    let refused = pool.reconfigure("refuse", TIMEOUT).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "config refused: at /refuse: not allowed"
    );
    assert!(matches!(refused, ConfigNotTaken::Refused(_)));
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    replies.finished();
    assert_eq!(configs(&harness), ["built with {}"]);
    assert_eq!(harness.script.living(), 1);
}

#[test]
fn an_instance_that_fails_or_is_unhealthy_with_a_config_is_rebuilt_with_the_old_one() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.probe(true, TIMEOUT).unwrap();
    for (number, (config, why)) in [
        ("poison", "scripted panic"),
        ("unhealthy", "health check failed"),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = pool.reconfigure(config, TIMEOUT).unwrap_err();
        assert!(
            matches!(&refused, ConfigNotTaken::Refused(error) if error.to_string().contains(why)),
            "{refused:?}"
        );
        assert_eq!(harness.script.living(), 0);
        let work = batch(number as u32, &[1]);
        assert!(pool.submit(work, &replies.inbox).is_ok());
        replies.finished();
        assert_eq!(configs(&harness).last().unwrap(), "built with {}");
    }
    assert_eq!(harness.script.built.load(Ordering::SeqCst), 3);
}

#[test]
fn an_instance_that_refuses_an_accepted_config_is_rebuilt_with_it() {
    let (harness, pool, mut replies) = two_instances();
    pool.reconfigure("first-only", TIMEOUT).unwrap();
    harness.script.open("long");
    replies.finished();
    until("the other one is dropped", || harness.script.living() == 1);
    // Bound to each worker, so that both have an instance again.
    for worker in 0..2 {
        let mut bound = batch(worker, &[3]);
        bound.worker = Some(worker);
        assert!(pool.submit(bound, &replies.inbox).is_ok());
        replies.finished();
    }
    assert_eq!(
        configs(&harness)[2..],
        ["took first-only", "built with first-only"]
    );
}

#[test]
fn a_pool_without_instances_builds_one_with_the_new_config() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(pool.reconfigure("refuse", TIMEOUT).is_err());
    pool.reconfigure("new", TIMEOUT).unwrap();
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    replies.finished();
    assert_eq!(configs(&harness), ["built with new"]);
}

#[test]
fn busy_workers_are_not_waited_for_and_take_no_config_later() {
    let harness = PoolHarness::new(&[(1, Step::Hang("long"))]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    until("the call runs", || pool.busy() == 1);
    let soon = Duration::from_millis(50);
    let busy = pool.reconfigure("new", soon);
    assert!(matches!(busy, Err(ConfigNotTaken::Busy)), "{busy:?}");
    harness.script.open("long");
    replies.finished();
    assert!(pool.submit(batch(1, &[2]), &replies.inbox).is_ok());
    replies.finished();
    assert_eq!(configs(&harness), ["built with {}"]);
}

#[test]
fn an_instance_that_hangs_on_a_config_is_abandoned_and_its_late_return_has_no_effect() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.threads_with(1, Duration::from_millis(100));
    let (pool, mut replies) = (threads.join_first(harness.setup("one")), Replies::new());
    pool.probe(true, TIMEOUT).unwrap();
    let refused = pool.reconfigure("hang-take", TIMEOUT).unwrap_err();
    assert!(
        matches!(&refused, ConfigNotTaken::Refused(error) if error.to_string().contains("100ms")),
        "{refused:?}"
    );
    harness.script.open("take");
    until("the late instance is dropped", || {
        harness.script.living() == 0
    });
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    replies.finished();
    assert_eq!(configs(&harness).last().unwrap(), "built with {}");
}

#[test]
fn a_config_is_not_blamed_for_a_thread_that_cannot_be_started() {
    let harness = PoolHarness::new(&[(1, Step::Hang("long"))]);
    let fails = Arc::new(AtomicBool::new(false));
    let threads = harness.failing_threads(1, &fails);
    let (pool, mut replies) = (threads.join_first(harness.setup("one")), Replies::new());
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    until("the call runs", || pool.busy() == 1);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| pool.reconfigure("new", TIMEOUT));
        until("it waits", || {
            !threads.lock().roster.slot(0).commands.is_empty()
        });
        // The call is cancelled, then abandoned, and no other thread can take the slot.
        fails.store(true, Ordering::SeqCst);
        let late = Instant::now() + Duration::from_secs(3_600);
        threads.check(late);
        threads.check(late + Duration::from_secs(3_600));
        let taken = taking.join().unwrap();
        assert!(matches!(taken, Err(ConfigNotTaken::Busy)), "{taken:?}");
    });
    harness.script.open("long");
    replies.finished();
}
