//! A new config for instances that run: taken between two batches, refused without harm, never half in force.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::pool::Rig;
use super::{Deed, Home, batch, until};
use crate::dispatch::WorkerPool;
use crate::handlers::pool::{ConfigNotTaken, HandlerPool, relock};

const PATIENCE: Duration = Duration::from_secs(20);

fn configs(rig: &Rig) -> Vec<String> {
    relock(&rig.script.configs).clone()
}

/// Two instances, of which one is in a call until the gate `long` opens.
fn two_instances() -> (Rig, Arc<HandlerPool>, Home) {
    let rig = Rig::new(&[(1, Deed::Hang("long"))]);
    let (pool, mut home) = (rig.pool(2), Home::new());
    for (flight, offset) in [(0, 1), (1, 2)] {
        assert!(pool.submit(batch(flight, &[offset]), &home.inbox).is_ok());
    }
    home.finished();
    (rig, pool, home)
}

#[test]
fn every_instance_takes_it_and_one_in_a_call_takes_it_behind_that() {
    let (rig, pool, mut home) = two_instances();
    pool.reconfigure("new", PATIENCE).unwrap();
    let built = ["built with {}", "built with {}", "took new"];
    assert_eq!(configs(&rig), built, "the other one is still in its call");
    rig.script.open("long");
    home.finished();
    until("the other one takes it", || configs(&rig).len() == 4);
    assert_eq!(configs(&rig)[3], "took new");
    assert_eq!(rig.script.living(), 2);
}

#[test]
fn what_is_refused_leaves_the_instance_as_it_was() {
    let rig = Rig::new(&[]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    pool.probe(true, PATIENCE).unwrap();
    let refused = pool.reconfigure("refuse", PATIENCE).unwrap_err();
    let reason = "config refused: at /refuse: not allowed".to_owned();
    assert_eq!(refused, ConfigNotTaken::Refused(reason));
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    home.finished();
    assert_eq!(configs(&rig), ["built with {}"]);
    assert_eq!(rig.script.living(), 1);
}

#[test]
fn an_instance_that_dies_of_it_or_is_ill_with_it_is_built_anew_with_the_old_one() {
    let rig = Rig::new(&[]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    pool.probe(true, PATIENCE).unwrap();
    for (flight, (config, why)) in [("spend", "scripted panic"), ("unhealthy", "not well")]
        .into_iter()
        .enumerate()
    {
        let refused = pool.reconfigure(config, PATIENCE).unwrap_err();
        assert!(
            matches!(&refused, ConfigNotTaken::Refused(reason) if reason.contains(why)),
            "{refused:?}"
        );
        assert_eq!(rig.script.living(), 0);
        let work = batch(flight as u32, &[1]);
        assert!(pool.submit(work, &home.inbox).is_ok());
        home.finished();
        assert_eq!(configs(&rig).last().unwrap(), "built with {}");
    }
    assert_eq!(rig.script.built.load(Ordering::SeqCst), 3);
}

#[test]
fn an_instance_that_cannot_follow_the_first_is_built_anew_with_the_new_one() {
    let (rig, pool, mut home) = two_instances();
    pool.reconfigure("first-only", PATIENCE).unwrap();
    rig.script.open("long");
    home.finished();
    until("the other one is dropped", || rig.script.living() == 1);
    // Bound to each worker, so that both have an instance again.
    for worker in 0..2 {
        let mut bound = batch(worker, &[3]);
        bound.worker = Some(worker);
        assert!(pool.submit(bound, &home.inbox).is_ok());
        home.finished();
    }
    assert_eq!(
        configs(&rig)[2..],
        ["took first-only", "built with first-only"]
    );
}

#[test]
fn without_an_instance_one_is_built_with_it() {
    let rig = Rig::new(&[]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.reconfigure("refuse", PATIENCE).is_err());
    pool.reconfigure("new", PATIENCE).unwrap();
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    home.finished();
    assert_eq!(configs(&rig), ["built with new"]);
}

#[test]
fn workers_in_long_calls_are_not_waited_for_and_take_nothing_later() {
    let rig = Rig::new(&[(1, Deed::Hang("long"))]);
    let (pool, mut home) = (rig.pool(1), Home::new());
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    until("the call runs", || pool.busy() == 1);
    let soon = Duration::from_millis(50);
    assert_eq!(pool.reconfigure("new", soon), Err(ConfigNotTaken::Busy));
    rig.script.open("long");
    home.finished();
    assert!(pool.submit(batch(1, &[2]), &home.inbox).is_ok());
    home.finished();
    assert_eq!(configs(&rig), ["built with {}"]);
}

#[test]
fn an_instance_that_hangs_in_it_is_given_up_and_changes_nothing_when_it_returns() {
    let rig = Rig::new(&[]);
    let crew = rig.crew_with(1, Duration::from_millis(100));
    let (pool, mut home) = (crew.found(rig.setup("one")), Home::new());
    pool.probe(true, PATIENCE).unwrap();
    let refused = pool.reconfigure("hang-take", PATIENCE).unwrap_err();
    assert!(
        matches!(&refused, ConfigNotTaken::Refused(reason) if reason.contains("100ms")),
        "{refused:?}"
    );
    rig.script.open("take");
    until("the late one is gone", || rig.script.living() == 0);
    assert!(pool.submit(batch(0, &[1]), &home.inbox).is_ok());
    home.finished();
    assert_eq!(configs(&rig).last().unwrap(), "built with {}");
}
