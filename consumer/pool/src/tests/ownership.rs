//! Partition notifications of instances, and their order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluicegate_engine::dispatch::{OwnedPartition, WorkerPool};
use sluicegate_kit::plugin_doubles::{Replies, Step, batch, until};

use crate::lock::relock;
use crate::tests::pool::PoolHarness;

fn owned(partition: i32, epoch: u64) -> OwnedPartition {
    OwnedPartition::new("t", partition, epoch)
}

fn notified(harness: &PoolHarness) -> Vec<String> {
    relock(&harness.script.notifications).clone()
}

#[test]
fn an_instance_is_notified_of_a_partition_before_its_first_record_and_after_its_loss() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    pool.own(&replies.inbox, &[owned(0, 1), owned(1, 2)]);
    assert!(pool.submit(batch(0, &[7]), &replies.inbox).is_ok());
    replies.finished();
    // The same partition under another epoch counts as another one.
    pool.own(&replies.inbox, &[owned(0, 1), owned(1, 3)]);
    pool.own(&replies.inbox, &[owned(0, 1), owned(1, 3)]);
    until("the change is notified", || notified(&harness).len() == 5);
    let other = Replies::new();
    pool.own(&other.inbox, &[owned(2, 1)]);
    until("the other pump's partition is notified", || {
        notified(&harness).len() == 6
    });
    pool.own(&replies.inbox, &[]);
    until("all changes are notified", || notified(&harness).len() == 8);
    assert_eq!(
        notified(&harness),
        [
            "assigned t/0 1",
            "assigned t/1 2",
            "called with 7",
            "revoked t/1 2",
            "assigned t/1 3",
            "assigned t/2 1",
            "revoked t/0 1",
            "revoked t/1 3"
        ]
    );
}

#[test]
fn a_later_or_rebuilt_instance_is_notified_before_its_first_call() {
    let harness = PoolHarness::new(&[(1, Step::Panic)]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.own(&replies.inbox, &[owned(0, 1)]);
    for (number, offset) in [(0, 1), (1, 2)] {
        assert!(
            pool.submit(batch(number, &[offset]), &replies.inbox)
                .is_ok()
        );
        replies.finished();
    }
    let once = ["assigned t/0 1", "called with 1"];
    let again = ["assigned t/0 1", "called with 2"];
    assert_eq!(notified(&harness), [once, again].concat());
    until("the pool holds no reference to the pump", || {
        Arc::strong_count(&replies.inbox) == 1
    });
}

#[test]
fn an_instance_is_told_whether_a_partition_was_lost() {
    let harness = PoolHarness::new(&[]);
    let (pool, replies) = (harness.pool(1), Replies::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    let lost = owned(1, 1);
    pool.own(&replies.inbox, &[owned(0, 1), lost.clone()]);
    until("both are notified", || notified(&harness).len() == 2);
    lost.lost.store(true, Ordering::Release);
    pool.own(&replies.inbox, &[]);
    until("all changes are notified", || notified(&harness).len() == 4);
    assert_eq!(notified(&harness)[2..], ["revoked t/0 1", "lost t/1 1"]);
}

#[test]
fn an_instance_that_cannot_take_over_a_partition_gets_none_of_its_records() {
    let harness = PoolHarness::new(&[]);
    let (pool, mut replies) = (harness.pool(1), Replies::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    harness
        .script
        .failing_assignments
        .store(2, Ordering::SeqCst);
    pool.own(&replies.inbox, &[owned(0, 1)]);
    until("the instance is dropped", || {
        harness.script.dropped.load(Ordering::SeqCst) == 1
    });
    // The next one fails too, and waits for the backoff with its batch; the third succeeds.
    for number in 0..2 {
        until("the batch is taken", || {
            pool.submit(batch(number, &[7]), &replies.inbox).is_ok()
        });
        replies.finished();
    }
    assert_eq!(harness.script.built.load(Ordering::SeqCst), 3);
    let told = ["assigned t/0 1"; 3].into_iter().chain(["called with 7"]);
    assert!(
        notified(&harness).into_iter().eq(told),
        "{:?}",
        notified(&harness)
    );
}
