//! Health checks without batches: instances that cannot recover are replaced, and only a passed check ends the state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{PoolState, WorkerPool};
use sluicegate_kit::plugin_doubles::{Replies, batch, codes, until};
use sluicegate_runtime::outcome_code;

use crate::pool::HandlerPool;
use crate::roster::Phase;
use crate::tests::pool::PoolHarness;
use crate::thread_pool::ThreadPool;

const TIMEOUT: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3_600);

fn reason(pool: &HandlerPool) -> String {
    pool.unhealthy_reason()
        .map(|why| why.to_string())
        .unwrap_or_default()
}

#[test]
fn an_instance_whose_health_check_panicked_is_rebuilt_without_a_batch() {
    let harness = PoolHarness::new(&[]);
    let mut setup = harness.setup("one");
    // The watchdog, which requests the checks, runs ten times within it.
    setup.timeout = Duration::from_millis(100);
    let pool = harness.threads(1).join_first(setup);
    pool.probe(true, TIMEOUT).unwrap();
    let failing = &harness.script.failing_creations;
    failing.store(u32::MAX, Ordering::SeqCst);
    harness.script.panicking_checks.store(1, Ordering::SeqCst);
    until("it is dropped", || harness.script.living() == 0);
    until("it cannot be rebuilt", || {
        reason(&pool).contains("cannot be built again: instance failed to start")
    });
    failing.store(0, Ordering::SeqCst);
    until("it has recovered", || reason(&pool).is_empty());
    assert_eq!(harness.script.living(), 1);
    assert_eq!(harness.script.built.load(Ordering::SeqCst), 2);
    assert_eq!(harness.stats.counts().restarts, 1);
}

#[test]
fn a_batch_rebuilds_such_an_instance_and_the_next_check_ends_the_state() {
    let harness = PoolHarness::new(&[]);
    // Only the test requests health checks.
    let threads = harness.unwatched(1);
    let (pool, mut replies) = (threads.join_first(harness.setup("one")), Replies::new());
    pool.probe(true, TIMEOUT).unwrap();
    harness.script.panicking_checks.store(1, Ordering::SeqCst);
    threads.check(Instant::now() + HOUR);
    until("it is dropped", || harness.script.living() == 0);
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    assert_eq!(codes(&replies.finished()), [outcome_code::ACK]);
    assert_eq!(reason(&pool), "scripted panic in health");
    assert_eq!(harness.stats.counts().panics, 0, "no call failed");
    threads.check(Instant::now() + 2 * HOUR);
    until("it has recovered", || reason(&pool).is_empty());
    assert_eq!(harness.script.built.load(Ordering::SeqCst), 2);
}

#[test]
fn a_creation_that_hangs_in_a_check_is_abandoned_and_tried_again() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.threads_with(1, Duration::from_millis(100));
    let mut setup = harness.setup("one");
    // The watchdog runs ten times within it.
    setup.timeout = Duration::from_millis(100);
    let pool = threads.join_first(setup);
    pool.probe(true, TIMEOUT).unwrap();
    pool.reconfigure("hang-create", TIMEOUT).unwrap();
    harness.script.panicking_checks.store(1, Ordering::SeqCst);
    until("its creation is abandoned", || {
        reason(&pool).contains("timed out after 100ms")
    });
    harness.script.open("create");
    until("it has recovered", || reason(&pool).is_empty());
    until("the late instance is dropped", || {
        harness.script.living() == 1
    });
}

#[test]
fn a_released_handler_is_not_rebuilt() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.threads(1);
    let pool = threads.join_first(harness.setup("one"));
    let _keeps_the_threads = threads.join(harness.setup("two"));
    pool.probe(true, TIMEOUT).unwrap();
    harness
        .script
        .failing_creations
        .store(u32::MAX, Ordering::SeqCst);
    harness.script.panicking_checks.store(1, Ordering::SeqCst);
    until("it is dropped", || harness.script.living() == 0);
    let watch = pool.release_watch();
    drop(pool);
    watch.wait(Instant::now() + TIMEOUT);
    assert!(threads.lock().roster.unhealthy_at(0).is_empty());
}

#[test]
fn an_unhealthy_slot_without_a_thread_is_checked_again_and_recovers() {
    let harness = PoolHarness::new(&[]);
    let fails = Arc::new(AtomicBool::new(false));
    let threads = harness.failing_threads(1, &fails);
    let pool = threads.join_first(harness.setup("one"));
    pool.probe(true, TIMEOUT).unwrap();
    let now = Instant::now();
    harness.script.unhealthy.store(true, Ordering::SeqCst);
    threads.check(now + HOUR);
    until("it is reported", || pool.unhealthy_reason().is_some());
    hang(&harness, &threads, now + 2 * HOUR);
    fails.store(true, Ordering::SeqCst);
    // Abandons the thread. None can take its place, and none is started by the next check either.
    threads.check(now + 3 * HOUR);
    threads.check(now + 4 * HOUR);
    harness.script.unhealthy.store(false, Ordering::SeqCst);
    harness.script.open("check");
    until("the late instance is dropped", || {
        harness.script.living() == 0
    });
    assert_eq!(reason(&pool), "the health check timed out after 20s");
    assert_eq!(pool.state(), PoolState::Active, "no batch was concerned");
    fails.store(false, Ordering::SeqCst);
    threads.check(now + 5 * HOUR);
    until("it has recovered", || reason(&pool).is_empty());
    assert_eq!(harness.script.living(), 1);
}

/// Requests a health check that hangs, and waits until it does.
fn hang(harness: &PoolHarness, threads: &Arc<ThreadPool>, now: Instant) {
    harness.script.hanging_checks.store(true, Ordering::SeqCst);
    threads.check(now);
    until("the check hangs", || {
        matches!(
            threads.lock().roster.slot(0).phase,
            Phase::LifecycleCall { .. }
        )
    });
}

#[test]
fn a_late_result_of_an_abandoned_check_does_not_count_and_another_instance_takes_its_place() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.unwatched(1);
    let pool = threads.join_first(harness.setup("one"));
    pool.probe(true, TIMEOUT).unwrap();
    let now = Instant::now();
    hang(&harness, &threads, now + HOUR);
    threads.check(now + 2 * HOUR);
    assert_eq!(reason(&pool), "the health check timed out after 20s");
    harness.script.open("check");
    until("the late instance is dropped", || {
        harness.script.dropped.load(Ordering::SeqCst) == 1
    });
    until("another one is healthy", || reason(&pool).is_empty());
    assert_eq!(harness.script.living(), 1);
}

#[test]
fn an_unhealthy_instance_whose_check_hangs_stays_unhealthy_until_another_one_passes() {
    let harness = PoolHarness::new(&[]);
    let threads = harness.unwatched(1);
    let pool = threads.join_first(harness.setup("one"));
    pool.probe(true, TIMEOUT).unwrap();
    let now = Instant::now();
    harness.script.unhealthy.store(true, Ordering::SeqCst);
    threads.check(now + HOUR);
    until("it is reported", || pool.unhealthy_reason().is_some());
    hang(&harness, &threads, now + 2 * HOUR);
    // Abandons the thread, and requests a check of the next one, which builds an instance.
    threads.check(now + 3 * HOUR);
    assert_eq!(reason(&pool), "the health check timed out after 20s");
    harness.script.unhealthy.store(false, Ordering::SeqCst);
    harness.script.open("check");
    until("it has recovered", || reason(&pool).is_empty());
    assert_eq!(harness.script.built.load(Ordering::SeqCst), 2);
}
