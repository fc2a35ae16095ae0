//! Restarts on request: a tripped handler runs again with everything new, and a refused restart leaves what there was.

use std::sync::atomic::Ordering;

use sluicegate_runtime::outcome_code;

use super::registry::{Shop, run_one, spec};
use super::{Deed, Home, batch};
use crate::admin::HandlerState;
use crate::dispatch::PoolState;
use crate::handlers::{RestartRefusal, RestartState};

const COPY: &[(&str, &str)] = &[("liba.so", "copy 1.0.0 copy hot")];

/// A shop whose handler `one` has tripped.
fn tripped(deeds: &[(i64, Deed)]) -> Shop {
    let mut shop = Shop::with(COPY, deeds, true);
    let mut one = spec("one", "*", "a");
    one.restart.max_restarts = 0;
    let applied = shop.apply(&[one]);
    let pool = applied.plan.handlers[0].pool.clone().unwrap();
    let mut home = Home::new();
    assert!(pool.submit(batch(0, &[7]), &home.inbox).is_ok());
    home.finished();
    assert_eq!(pool.state(), PoolState::Failed);
    shop
}

fn state(shop: &Shop) -> HandlerState {
    shop.registry.report()[0].state
}

#[test]
fn a_restart_gives_a_tripped_handler_a_new_generation_of_the_same_code() {
    let shop = tripped(&[(7, Deed::Panic)]);
    assert_eq!(state(&shop), HandlerState::Failed);
    let before = shop.registry.restart("one").unwrap();
    assert_eq!(
        shop.registry.restart_state("one", before),
        RestartState::UnderWay
    );
    // An update that comes meanwhile, and a second request, do not undo it.
    shop.registry.rescan();
    assert_eq!(shop.registry.restart("one"), Ok(before));
    while shop.registry.prepare_next() {}
    let RestartState::Done(now) = shop.registry.restart_state("one", before) else {
        panic!("not restarted");
    };
    assert!(now > before);
    let applied = shop.registry.current();
    assert_eq!(applied.changed, ["one"]);
    assert_eq!(applied.plan.handlers[0].generation, now);
    assert_eq!(state(&shop), HandlerState::Active);
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
    assert_eq!(shop.loads(), 1, "the code is the same");
    assert!(!shop.registry.prepare_next(), "once is enough");
}

#[test]
fn a_handler_that_takes_configs_is_built_anew_all_the_same() {
    let mut shop = Shop::new(COPY);
    let mut hot = spec("one", "*", "a");
    hot.plugin = "hot".to_owned();
    let before = shop.apply(&[hot]).plan.handlers[0].generation;
    let built = shop.runtime.script.built.load(Ordering::SeqCst);
    assert_eq!(shop.registry.restart("one"), Ok(before));
    while shop.registry.prepare_next() {}
    assert!(shop.registry.current().plan.handlers[0].generation > before);
    assert!(shop.runtime.script.built.load(Ordering::SeqCst) > built);
}

#[test]
fn a_restart_that_is_refused_says_why_and_can_be_asked_for_again() {
    let shop = tripped(&[(7, Deed::Panic)]);
    let before = shop.registry.restart("one").unwrap();
    let failing = &shop.runtime.script.failing_creations;
    failing.store(1, Ordering::SeqCst);
    while shop.registry.prepare_next() {}
    let RestartState::Refused(why) = shop.registry.restart_state("one", before) else {
        panic!("not refused");
    };
    assert!(why.contains("scripted to fail"), "{why}");
    assert_eq!(shop.registry.current().plan.handlers[0].generation, before);
    assert_eq!(shop.registry.restart("one"), Ok(before));
    while shop.registry.prepare_next() {}
    assert!(matches!(
        shop.registry.restart_state("one", before),
        RestartState::Done(now) if now > before
    ));
    assert!(shop.registry.refusals().is_empty());
}

#[test]
fn without_its_file_a_tripped_handler_is_reset_where_it_is() {
    let shop = tripped(&[(7, Deed::Panic)]);
    std::fs::remove_file(shop.folder.path().join("liba.so")).unwrap();
    shop.registry.rescan();
    let before = shop.registry.restart("one").unwrap();
    assert_eq!(
        shop.registry.restart_state("one", before),
        RestartState::Done(before)
    );
    assert_eq!(state(&shop), HandlerState::Active);
    let applied = shop.registry.current();
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
}

#[test]
fn what_is_not_there_or_does_not_run_is_not_restarted() {
    let mut shop = Shop::new(COPY);
    let mut dark = spec("dark", "*", "a");
    dark.enabled = false;
    shop.apply(&[dark]);
    assert_eq!(
        shop.registry.restart("dark"),
        Err(RestartRefusal::NothingRuns)
    );
    assert_eq!(
        shop.registry.restart("nobody"),
        Err(RestartRefusal::Unknown("nobody".to_owned()))
    );
}

#[test]
fn a_panic_while_a_handler_is_prepared_holds_it_with_the_reason_until_a_restart() {
    let mut shop = Shop::new(COPY);
    shop.runtime.panics.store(1, Ordering::SeqCst);
    let held = shop.apply(&[spec("one", "*", "a")]);
    assert_eq!((held.preparing.len(), held.plan.handlers.len()), (0, 0));
    let [refusal] = &held.refusals[..] else {
        panic!("not held: {held:?}");
    };
    for said in ["the loader's panic", "`sluicegate handlers restart one`"] {
        assert!(refusal.reason.contains(said), "{}", refusal.reason);
    }
    assert_eq!(shop.registry.restart("one"), Ok(0));
    while shop.registry.prepare_next() {}
    let applied = shop.registry.current();
    assert!(applied.refusals.is_empty(), "{applied:?}");
    assert_eq!(run_one(&applied.plan.handlers[0]), [outcome_code::ACK]);
}
