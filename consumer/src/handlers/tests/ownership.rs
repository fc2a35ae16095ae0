//! What instances are told of partitions, and when.

use std::sync::Arc;
use std::time::Duration;

use super::pool::Rig;
use super::{Deed, Home, batch, until};
use crate::dispatch::{OwnedPartition, WorkerPool};
use crate::handlers::pool::relock;

fn owned(partition: i32, epoch: u32) -> OwnedPartition {
    OwnedPartition {
        topic: "t".into(),
        partition,
        epoch,
    }
}

fn told(rig: &Rig) -> Vec<String> {
    relock(&rig.script.told).clone()
}

#[test]
fn an_instance_hears_of_a_partition_before_its_first_record_and_when_it_is_gone() {
    let rig = Rig::new(&[]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    pool.probe(true, Duration::from_secs(20)).unwrap();
    pool.own(&home.inbox, &[owned(0, 1), owned(1, 2)]);
    assert!(pool.submit(batch(0, &[7]), &home.inbox).is_ok());
    home.finished();
    // The same partition under another ownership is another one.
    pool.own(&home.inbox, &[owned(0, 1), owned(1, 3)]);
    pool.own(&home.inbox, &[owned(0, 1), owned(1, 3)]);
    until("the change is told", || told(&rig).len() == 5);
    let other = Home::new();
    pool.own(&other.inbox, &[owned(2, 1)]);
    until("the other pump's partition is told", || {
        told(&rig).len() == 6
    });
    pool.own(&home.inbox, &[]);
    until("all is told", || told(&rig).len() == 8);
    assert_eq!(
        told(&rig),
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
fn an_instance_that_is_built_later_or_again_is_told_first() {
    let rig = Rig::new(&[(1, Deed::Panic)]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    pool.own(&home.inbox, &[owned(0, 1)]);
    for (flight, offset) in [(0, 1), (1, 2)] {
        assert!(pool.submit(batch(flight, &[offset]), &home.inbox).is_ok());
        home.finished();
    }
    let once = ["assigned t/0 1", "called with 1"];
    let again = ["assigned t/0 1", "called with 2"];
    assert_eq!(told(&rig), [once, again].concat());
    until("the pool keeps no pump", || {
        Arc::strong_count(&home.inbox) == 1
    });
}
