//! Preparation of generations: a handler that is slow to start delays neither gates nor other handlers.

use sluicegate_config::Snapshot;
use sluicegate_kit::plugin_doubles::until;

use super::registry::{MAX_HUNG, RegistryHarness, spec};
use crate::Applied;

#[test]
fn gates_apply_while_another_handler_is_slow_to_start() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    harness.apply(&[spec("quick", "*", "a")]);
    let mut closed = spec("quick", "*", "a");
    closed.enabled = false;
    let specs = [closed, spec("slow", "*", "hang-create")];
    let registry = &harness.registry;
    std::thread::scope(|scope| {
        assert!(
            registry
                .settle(&Snapshot::new(2, specs.iter().cloned()))
                .prepares
        );
        let preparing = scope.spawn(|| registry.prepare_next());
        until("the slow one is being built", || {
            registry.report().len() == 1
                && !registry.settle(&Snapshot::new(3, specs.clone())).prepares
        });
        let now = registry.current();
        assert_eq!(now.plan.handlers.len(), 1);
        assert!(!now.plan.handlers[0].spec.enabled);
        assert_eq!(now.plan.revision, 1, "a later one is not fully applied");
        // It is not wanted any more once it is ready.
        assert!(
            !registry
                .settle(&Snapshot::new(4, [spec("quick", "*", "a")]))
                .prepares
        );
        harness.runtime.script.open("create");
        assert!(preparing.join().unwrap());
    });
    let now = registry.current();
    assert_eq!((now.plan.revision, now.plan.handlers.len()), (4, 1));
    assert_eq!(now.refusals, []);
    until("its instance is dropped too", || {
        harness.runtime.script.living() == 1
    });
}

#[test]
fn a_handler_that_is_slow_to_start_delays_no_other() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    harness.apply(&[spec("quick", "*", "a")]);
    let registry = &harness.registry;
    let slow = |config: &str| spec("a-slow", "*", config);
    std::thread::scope(|scope| {
        let specs = [slow("hang-create"), spec("quick", "*", "b")];
        assert!(registry.settle(&Snapshot::new(2, specs)).prepares);
        let preparing = scope.spawn(|| registry.prepare_next());
        until("the slow one is being built", || {
            registry.has_waiting(1) && !registry.has_waiting(2)
        });
        assert!(registry.prepare_next());
        let now = registry.current();
        assert_eq!(now.settled, 2);
        assert_eq!(now.preparing, ["a-slow"]);
        let quick = now.plan.handler("quick").expect("it is active");
        assert_eq!(quick.spec.config.expose()["is"], "b");
        // A handler has at most one preparation at a time.
        let specs = [slow("other"), spec("quick", "*", "b")];
        assert!(registry.settle(&Snapshot::new(3, specs)).prepares);
        assert!(!registry.has_waiting(1) && !registry.prepare_next());
        harness.runtime.script.open("create");
        assert!(preparing.join().unwrap());
    });
    assert!(
        registry.prepare_next(),
        "the change made during the preparation"
    );
    let now = registry.current();
    assert_eq!((now.settled, now.plan.revision), (3, 3));
    assert!(now.preparing.is_empty());
    let slow = now.plan.handler("a-slow").expect("it is active");
    assert_eq!(slow.spec.config.expose()["is"], "other");
}

#[test]
fn no_generation_is_built_of_a_handler_that_hangs_once_too_many_threads_hang() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let reason = |applied: &Applied| {
        let refusal = applied.refusals.iter().find(|one| one.handler == "hangs");
        refusal.map(|refusal| refusal.reason.clone())
    };
    // Each change is tried, and costs a thread.
    for number in 0..MAX_HUNG {
        let hangs = spec("hangs", "*", &format!("hang-create {number}"));
        let applied = harness.apply(&[hangs, spec("quick", "*", "a")]);
        let why = reason(&applied).unwrap();
        assert!(why.contains("timed out after 300ms"), "{why}");
    }
    let fixed = spec("hangs", "*", "fixed");
    let applied = harness.apply(&[fixed.clone(), spec("quick", "*", "b")]);
    let why = reason(&applied).unwrap();
    for said in [
        "2 threads of this handler's",
        "`sluicegate handlers restart hangs`",
    ] {
        assert!(why.contains(said), "{why}");
    }
    let quick = applied.plan.handler("quick").expect("it is active");
    assert_eq!(
        quick.spec.config.expose()["is"],
        "b",
        "none of its threads hangs"
    );

    harness.runtime.script.open("create");
    until("the threads have returned and it is built", || {
        let _ = harness.registry.restart("hangs");
        while harness.registry.prepare_next() {}
        harness.registry.current().plan.handler("hangs").is_some()
    });
}
