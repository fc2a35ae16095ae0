//! Gates that are held closed until the handler's instances are healthy.

use std::sync::atomic::Ordering;

use sluicegate_config::HandlerSpec;
use sluicegate_engine::status::HandlerState;
use sluicegate_kit::plugin_doubles::until;
use sluicegate_runtime::outcome_code;

use super::registry::{RegistryHarness, run_one, spec};

fn state(harness: &RegistryHarness) -> HandlerState {
    harness.registry.report()[0].state
}

#[test]
fn a_gate_held_for_a_panicked_health_check_opens_once_another_instance_is_healthy() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let open = spec("one", "*", "a");
    let closed = HandlerSpec {
        enabled: false,
        ..open.clone()
    };
    let first = harness.apply(std::slice::from_ref(&open));
    harness.apply(&[closed]);
    let script = &harness.runtime.script;
    script.failing_creations.store(u32::MAX, Ordering::SeqCst);
    script.panicking_checks.store(1, Ordering::SeqCst);
    until("it is reported", || {
        state(&harness) == HandlerState::Unhealthy
    });
    let held = harness.apply(&[open]);
    assert!(!held.plan.handlers[0].spec.enabled, "it is unhealthy");
    let script = &harness.runtime.script;
    until("the instance is dropped", || script.living() == 0);
    assert!(!harness.registry.recover(), "no instance is not healthy");
    script.failing_creations.store(0, Ordering::SeqCst);
    until("it has recovered", || {
        state(&harness) == HandlerState::Active
    });
    assert!(harness.registry.recover());
    let opened = harness.registry.current();
    assert!(opened.plan.handlers[0].spec.enabled);
    assert_eq!(opened.refusals, []);
    let kept = opened.plan.handlers[0].generation();
    assert_eq!(kept, first.plan.handlers[0].generation());
    assert_eq!(run_one(&opened.plan.handlers[0]), [outcome_code::ACK]);
    assert_eq!(harness.runtime.script.built.load(Ordering::SeqCst), 2);
}
