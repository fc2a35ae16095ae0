//! Reading the plugins folder is slow. Property: gates act at once, and a plugin written just before its spec is found.

use std::sync::atomic::Ordering;

use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_kit::plugin_doubles::until;
use sluicegate_pool::pool::relock;

use super::registry::{RegistryHarness, put, spec};
use crate::{SpecChange, SpecEffect};

fn of(plugin: &str, name: &str) -> HandlerSpec {
    HandlerSpec {
        plugin: plugin.to_owned(),
        ..spec(name, "*", "a")
    }
}

#[test]
fn gates_act_while_a_file_is_being_read() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    harness.apply(&[spec("quick", "*", "a")]);
    put(harness.folder.path(), "libslow.so", "slow-read 1.0.0 x");
    let registry = &harness.registry;
    std::thread::scope(|scope| {
        let held = relock(&harness.runtime.slow);
        let watch = scope.spawn(|| registry.catalogue().scan().changed);
        until("the file is being read", || {
            harness.runtime.slow_reads.load(Ordering::SeqCst) == 1
        });
        let mut closed = spec("quick", "*", "a");
        closed.enabled = false;
        let snapshot = Snapshot::new(2, [closed, of("slow-read", "new"), of("absent", "none")]);
        let settling = scope.spawn(move || registry.settle(&snapshot).prepares);
        until("the gate is closed", || {
            !registry.current().plan.handlers[0].spec.enabled
        });
        let seeking = scope.spawn(|| registry.prepare_next());
        let now = registry.current();
        assert_eq!(now.preparing, ["new", "none"], "sought, not refused");
        assert_eq!(now.refusals, []);
        drop(held);
        assert!(settling.join().unwrap() && watch.join().unwrap() && seeking.join().unwrap());
    });
    while registry.prepare_next() {}
    let now = registry.current();
    assert!(now.preparing.is_empty());
    let refused: Vec<_> = now.refusals.iter().map(|one| &*one.handler).collect();
    assert_eq!(refused, ["none"]);
    assert!(now.plan.handler("new").is_some());
}

#[test]
fn a_missing_plugin_is_sought_once_per_spec() {
    let harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let registry = &harness.registry;
    let settle = |revision, workers| {
        let spec = HandlerSpec {
            workers,
            ..of("absent", "one")
        };
        registry.settle(&Snapshot::new(revision, [spec]))
    };
    assert!(settle(1, 1).prepares);
    assert!(registry.has_waiting(1) && !registry.has_waiting(2));
    assert!(registry.prepare_next() && !registry.prepare_next());
    assert_eq!(registry.current().refusals.len(), 1);
    assert!(!settle(2, 1).prepares, "it was refused for the same reason");
    let changed = settle(3, 2);
    let [(_, SpecChange::Changed { effect, .. })] = &changed.changes[..] else {
        panic!("{changed:?}");
    };
    assert!(matches!(effect, SpecEffect::Applied(_)) && changed.prepares);
    put(harness.folder.path(), "libb.so", "absent 1.0.0 absent");
    while registry.prepare_next() {}
    assert_eq!(registry.current().refusals, []);
    assert_eq!(registry.current().plan.handlers.len(), 1);
}
