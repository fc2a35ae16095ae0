//! Loaded code, shared by the generations of one build: when it is loaded and when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_kit::log_capture::captured;
use sluicegate_kit::plugin_doubles::{Replies, Step, batch, until};
use sluicegate_pool::pool::relock;

use super::registry::{RegistryHarness, put, spec};

/// How often each use of the code has ended, in the order of loading.
fn shut_down(harness: &RegistryHarness) -> Vec<u32> {
    let loaded = relock(&harness.runtime.loaded);
    let ended = loaded
        .iter()
        .map(|plugin| plugin.shut_down.load(Ordering::SeqCst));
    ended.collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn the_code_of_a_quarantined_generation_is_left_to_its_last_instance() {
    let steps = [(1, Step::Hang("long"))];
    let mut harness = RegistryHarness::with(&[("liba.so", "copy 1.0.0 copy")], &steps, true);
    let mut quick = spec("one", "*", "a");
    quick.timeout = Duration::from_millis(50);
    let applied = harness.apply(&[quick, spec("two", "*", "a")]);
    let mut replies = Replies::new();
    let pool = applied.plan.handlers[0].targets[0].pool.clone();
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    replies.next("call timeout", |message| match message {
        PumpMessage::CallTimedOut { .. } => Ok(()),
        other => Err(other),
    });
    drop((pool, applied));
    drop(harness.apply(&[spec("two", "*", "a")]));
    until("its other instances are dropped", || {
        harness.runtime.script.living() == 2
    });
    drop(harness.apply(&[]));
    assert!(harness.registry.shutdown(soon()));
    assert_eq!(
        shut_down(&harness),
        [0, 1],
        "one of its calls is still running"
    );
    let in_use = || Arc::strong_count(&relock(&harness.runtime.loaded)[0]) > 1;
    assert!(in_use());
    harness.runtime.script.open("long");
    until("its use ends with the call", || !in_use());
}

#[test]
fn each_generation_ends_its_use_of_the_code_once_it_is_released() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    drop(harness.apply(&[spec("one", "*", "a"), spec("two", "*", "a")]));
    drop(harness.apply(&[spec("one", "*", "b"), spec("two", "*", "a")]));
    until("the old instance is dropped", || {
        harness.runtime.script.living() == 2
    });
    drop(harness.apply(&[spec("one", "*", "b")]));
    until("another one is dropped", || {
        harness.runtime.script.living() == 1
    });
    until("both uses end", || shut_down(&harness) == [1, 1, 0]);
    drop(harness.apply(&[]));
    assert!(harness.registry.shutdown(soon()));
    assert_eq!(shut_down(&harness), [1, 1, 1]);
}

#[test]
fn the_file_and_the_digest_of_the_code_that_runs_are_reported() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let applied = harness.apply(&[spec("one", "*", "a")]);
    let reported = |at: usize| {
        let report = harness.registry.report().remove(at);
        (report.version, report.path, report.sha256)
    };
    let at = |file: &str| Some(harness.folder.path().join(file).display().to_string());
    let digest = |text: &str| Some(text.to_owned());
    let old = "copy 1.0.0 copy";
    assert_eq!(reported(0), ("1.0.0".into(), at("liba.so"), digest(old)));
    let origin = applied.plan.handlers[0].targets[0].origin.clone();
    let shown = format!("copy 1.0.0 from {} (SHA-256 {old})", at("liba.so").unwrap());
    assert_eq!(origin.to_string(), shown);
    // What runs, not what is in the folder.
    put(harness.folder.path(), "libb.so", "copy 2.0.0 other");
    std::fs::remove_file(harness.folder.path().join("liba.so")).unwrap();
    harness.registry.catalogue().scan();
    assert_eq!(reported(0), ("1.0.0".into(), at("liba.so"), digest(old)));
    put(harness.folder.path(), "libb.so", "copy 2.0.0 copy");
    harness.rescan().unwrap();
    assert_eq!(reported(0), ("1.0.0".into(), None, None));
    let new = digest("copy 2.0.0 copy");
    assert_eq!(reported(1), ("2.0.0".into(), at("libb.so"), new));
}

#[test]
fn a_plugin_that_is_slow_to_load_delays_no_other() {
    let files = [
        ("liba.so", "slow 1.0.0 slow"),
        ("libb.so", "copy 1.0.0 copy"),
    ];
    let harness = RegistryHarness::new(&files);
    let slow = HandlerSpec {
        plugin: "slow".to_owned(),
        ..spec("a-slow", "*", "a")
    };
    let registry = &harness.registry;
    std::thread::scope(|scope| {
        let held = relock(&harness.runtime.slow);
        let mut shared = spec("quick", "*", "a");
        shared.pool = Some("small".to_owned());
        registry.settle(&Snapshot::new(1, [slow, shared]));
        let preparing = scope.spawn(|| registry.prepare_next());
        until("the slow one is being loaded", || {
            harness.runtime.slow_loads.load(Ordering::SeqCst) == 1
        });
        let quick = scope.spawn(|| registry.prepare_next());
        until("the other one serves", || {
            registry.current().plan.handler("quick").is_some()
        });
        drop(held);
        assert!(quick.join().unwrap() && preparing.join().unwrap());
    });
    assert_eq!(registry.current().plan.handlers.len(), 2);
}

#[test]
fn a_plugin_that_is_missing_while_its_code_runs_is_reported_once() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    drop(harness.apply(&[spec("one", "*", "a")]));
    let path = harness.folder.path().join("liba.so");
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        let lines = captured(|| {
            for _ in 0..3 {
                drop(harness.rescan());
            }
        });
        let told = lines.matches("its plugin is missing").count();
        assert_eq!(told, 1, "{lines}");
        put(harness.folder.path(), "liba.so", "copy 1.0.0 copy");
        drop(harness.rescan());
    }
}
