//! Restarts on request: a tripped handler gets a new generation; a refused restart keeps the old one.

use std::sync::atomic::Ordering;

use sluicegate_engine::dispatch::PoolState;
use sluicegate_engine::status::HandlerState;
use sluicegate_kit::plugin_doubles::{Replies, Step, batch};
use sluicegate_runtime::outcome_code;

use super::registry::{RegistryHarness, run_one, spec};
use crate::{RestartRefusal, RestartState};

const COPY: &[(&str, &str)] = &[("liba.so", "copy 1.0.0 copy hot")];

/// A harness whose handler `one` has tripped.
fn tripped(steps: &[(i64, Step)]) -> RegistryHarness {
    let mut harness = RegistryHarness::with(COPY, steps, true);
    let mut one = spec("one", "*", "a");
    one.restart.max_restarts = 0;
    let applied = harness.apply(&[one]);
    let pool = applied.plan.handlers[0].targets[0].pool.clone();
    let mut replies = Replies::new();
    assert!(pool.submit(batch(0, &[7]), &replies.inbox).is_ok());
    replies.finished();
    assert_eq!(pool.state(), PoolState::Failed);
    harness
}

fn state(harness: &RegistryHarness) -> HandlerState {
    harness.registry.report()[0].state
}

#[test]
fn a_restart_gives_a_tripped_handler_a_new_generation_of_the_same_code() {
    let harness = tripped(&[(7, Step::Panic)]);
    assert_eq!(state(&harness), HandlerState::Failed);
    let before = harness.registry.restart("one").unwrap();
    assert_eq!(
        harness.registry.restart_state("one", before),
        RestartState::UnderWay
    );
    // A concurrent update and another request do not undo it.
    harness.follow_scan();
    assert_eq!(harness.registry.restart("one"), Ok(before));
    while harness.registry.prepare_next() {}
    let RestartState::Done(now) = harness.registry.restart_state("one", before) else {
        panic!("not restarted");
    };
    assert!(now > before);
    let applied = harness.registry.current();
    assert_eq!(applied.changed, ["one"]);
    assert_eq!(applied.plan.handlers[0].generation(), now);
    assert_eq!(state(&harness), HandlerState::Active);
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
    assert!(!harness.registry.prepare_next(), "once is enough");
}

#[test]
fn a_restart_rebuilds_even_a_handler_that_takes_configs() {
    let mut harness = RegistryHarness::new(COPY);
    let mut hot = spec("one", "*", "a");
    hot.plugin = "copy/hot".to_owned();
    let before = harness.apply(&[hot]).plan.handlers[0].generation();
    let built = harness.runtime.script.built.load(Ordering::SeqCst);
    assert_eq!(harness.registry.restart("one"), Ok(before));
    while harness.registry.prepare_next() {}
    assert!(harness.registry.current().plan.handlers[0].generation() > before);
    assert!(harness.runtime.script.built.load(Ordering::SeqCst) > built);
}

#[test]
fn a_refused_restart_reports_the_reason_and_can_be_requested_again() {
    let harness = tripped(&[(7, Step::Panic)]);
    let before = harness.registry.restart("one").unwrap();
    let failing = &harness.runtime.script.failing_creations;
    failing.store(1, Ordering::SeqCst);
    while harness.registry.prepare_next() {}
    let RestartState::Refused(why) = harness.registry.restart_state("one", before) else {
        panic!("not refused");
    };
    assert!(why.contains("scripted to fail"), "{why}");
    assert_eq!(
        harness.registry.current().plan.handlers[0].generation(),
        before
    );
    assert_eq!(harness.registry.restart("one"), Ok(before));
    while harness.registry.prepare_next() {}
    assert!(matches!(
        harness.registry.restart_state("one", before),
        RestartState::Done(now) if now > before
    ));
    assert!(harness.registry.refusals().is_empty());
}

#[test]
fn a_tripped_handler_without_its_file_is_reset_in_place() {
    let harness = tripped(&[(7, Step::Panic)]);
    std::fs::remove_file(harness.folder.path().join("liba.so")).unwrap();
    harness.follow_scan();
    let before = harness.registry.restart("one").unwrap();
    assert_eq!(
        harness.registry.restart_state("one", before),
        RestartState::Done(before)
    );
    assert_eq!(state(&harness), HandlerState::Active);
    let applied = harness.registry.current();
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
}

#[test]
fn an_unknown_handler_or_one_without_a_generation_is_not_restarted() {
    let mut harness = RegistryHarness::new(COPY);
    let mut dark = spec("dark", "*", "a");
    dark.enabled = false;
    harness.apply(&[dark]);
    assert_eq!(
        harness.registry.restart("dark"),
        Err(RestartRefusal::NothingRuns)
    );
    assert_eq!(
        harness.registry.restart("absent"),
        Err(RestartRefusal::Unknown("absent".to_owned()))
    );
}

#[test]
fn a_panic_during_preparation_rejects_the_handler_until_a_restart() {
    let mut harness = RegistryHarness::new(COPY);
    harness.runtime.panics.store(1, Ordering::SeqCst);
    let held = harness.apply(&[spec("one", "*", "a")]);
    assert_eq!((held.preparing.len(), held.plan.handlers.len()), (0, 0));
    let [refusal] = &held.refusals[..] else {
        panic!("not held: {held:?}");
    };
    for said in ["the loader's panic", "`sluicegate handlers restart one`"] {
        assert!(refusal.reason.contains(said), "{}", refusal.reason);
    }
    assert_eq!(harness.registry.restart("one"), Ok(0));
    while harness.registry.prepare_next() {}
    let applied = harness.registry.current();
    assert!(applied.refusals.is_empty(), "{applied:?}");
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
}
