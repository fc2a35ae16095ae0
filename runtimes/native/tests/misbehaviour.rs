//! Situation: handlers that panic, hang and refuse. Property: the failure stays inside the plugin, finished records count,
//! and the remaining ones can be run by another instance.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use sluicegate_runtime::{
    CallProgress, CallStatus, CancelFlag, CreateError, CreateRequest, outcome_code, outcome_flag,
};
use support::{built, codes, handle, handle_until, load, records};

fn rule(key: &str, deed: &str) -> String {
    format!(r#"{{"when":{{"key":true,"equals":"{key}"}},{deed}}}"#)
}

fn config(rules: &[String], more: &str) -> String {
    format!(r#"{{"rules":[{}]{more}}}"#, rules.join(","))
}

#[test]
fn a_panic_ends_the_instance_and_keeps_earlier_outcomes() {
    let loaded = load(&built("misbehave"));
    let config = config(&[rule("k2", r#""do":"panic""#)], r#","emit_to":"out""#);
    let mut instance = loaded.create("misbehave", &config);
    let (status, outcomes, output) = handle(instance.as_mut(), &records(&["a", "b", "c", "d"]));
    assert_eq!(status, CallStatus::Poisoned);
    assert_eq!(
        codes(&outcomes),
        [
            outcome_code::ACK,
            outcome_code::ACK,
            outcome_code::PANICKED,
            outcome_code::NOT_RUN
        ]
    );
    assert_eq!(output.emits.len(), 2);
    let text = &output.details[outcomes[2].detail as usize - 1];
    assert!(
        text.starts_with("panic on purpose at in/0/2 (") && text.contains("lib.rs:"),
        "{text}"
    );
    let (status, outcomes, _) = handle(instance.as_mut(), &records(&["a"]));
    assert_eq!(
        (status, codes(&outcomes)),
        (CallStatus::Poisoned, vec![outcome_code::NOT_RUN])
    );
    drop(instance);
    let mut next = loaded.create("misbehave", &config);
    assert_eq!(
        codes(&handle(next.as_mut(), &records(&["a"])).1),
        [outcome_code::ACK]
    );
}

#[test]
fn panics_in_create_and_drop_are_contained() {
    let loaded = load(&built("misbehave"));
    let error = loaded
        .plugin
        .create(CreateRequest::new(
            "misbehave-create",
            "x",
            "{}",
            loaded.captured.clone(),
        ))
        .err()
        .unwrap();
    assert!(matches!(error, CreateError::Failed(_)));
    let text = error.to_string();
    assert!(
        text.starts_with("instance failed to start: it panicked: create on purpose ("),
        "{text}"
    );
    drop(loaded.create("misbehave-drop", "{}"));
    let captured = loaded.captured.text();
    assert!(
        captured.starts_with("Error: handler panicked in its drop: drop on purpose ("),
        "{captured}"
    );
}

#[test]
fn outcomes_of_errors_carry_their_class_reason_and_failed_emits_are_discarded() {
    let loaded = load(&built("misbehave"));
    let rules = [
        rule("k0", r#""do":"error","class":"retryable""#),
        rule("k1", r#""do":"error","class":"terminal""#),
        rule("k2", r#""do":"drop""#),
    ];
    let mut instance = loaded.create("misbehave", &config(&rules, r#","emit_to":"out""#));
    let (status, outcomes, output) = handle(instance.as_mut(), &records(&["a", "b", "c", "d"]));
    assert_eq!(status, CallStatus::Usable);
    assert_eq!(
        codes(&outcomes),
        [
            outcome_code::RETRY,
            outcome_code::DEAD_LETTER,
            outcome_code::DROP,
            outcome_code::ACK
        ]
    );
    assert_eq!(
        output.details[outcomes[1].detail as usize - 1],
        "error on purpose at in/0/1"
    );
    assert_eq!(output.emits.records().collect::<Vec<_>>(), [3]);
    assert_eq!(
        outcomes.iter().map(|o| o.flags).collect::<Vec<_>>(),
        [0, 0, 0, outcome_flag::EMITTED]
    );
}

#[test]
fn later_records_of_a_lane_wait_for_an_unsettled_one() {
    let loaded = load(&built("misbehave"));
    let mut instance = loaded.create(
        "misbehave",
        &config(&[rule("k0", r#""do":"error","times":1"#)], ""),
    );
    let mut parts = records(&["a", "b", "c", "d"]);
    parts[2].lane = parts[0].lane;
    parts[3].lane = 0;
    let (_, outcomes, _) = handle(instance.as_mut(), &parts);
    assert_eq!(
        codes(&outcomes),
        [
            outcome_code::RETRY,
            outcome_code::ACK,
            outcome_code::NOT_RUN,
            outcome_code::ACK
        ]
    );
}

#[test]
fn a_hang_is_visible_to_the_monitor_and_costs_one_record() {
    let loaded = load(&built("misbehave"));
    let config = config(&[rule("k2", r#""do":"hang""#)], r#","emit_to":"out""#);
    let plugin = loaded.plugin.clone();
    let (monitors, monitor) = mpsc::channel();
    let captured = loaded.captured.clone();
    // The thread is abandoned, as the service does after a call timeout.
    std::thread::spawn(move || {
        let mut instance = plugin
            .create(CreateRequest::new("misbehave", "w", &config, captured))
            .unwrap();
        monitors.send(instance.monitor()).unwrap();
        let parts = records(&["a", "b", "c", "d"]);
        handle_until(instance.as_mut(), &parts, 50, &CancelFlag::default());
        unreachable!("a hang does not return");
    });
    let monitor = monitor.recv().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let at_hang = Some(CallProgress {
        serial: 1,
        index: 2,
    });
    while monitor.current() != at_hang {
        assert!(
            Instant::now() < deadline,
            "the call does not reach record 2: {:?}",
            monitor.current()
        );
        std::thread::yield_now();
    }
    let mut seen = Vec::new();
    assert!(monitor.completed(1, &mut seen));
    assert_eq!(
        codes(&seen),
        [
            outcome_code::ACK,
            outcome_code::ACK,
            outcome_code::NOT_RUN,
            outcome_code::NOT_RUN
        ]
    );
    assert!(!monitor.completed(2, &mut seen), "that call does not exist");
    // Another instance of the same generation is not affected.
    let mut other = loaded.create("misbehave", "{}");
    assert_eq!(
        codes(&handle(other.as_mut(), &records(&["c", "d"])).1),
        [outcome_code::ACK; 2]
    );
}

#[test]
fn a_panic_in_a_batch_fails_records_without_an_outcome() {
    let loaded = load(&built("misbehave"));
    assert!(
        loaded
            .plugin
            .handlers()
            .iter()
            .any(|h| h.name == "misbehave-batch" && h.takes_batches)
    );
    let mut instance = loaded.create("misbehave-batch", "{}");
    assert_eq!(
        codes(&handle(instance.as_mut(), &records(&["drop", "x"])).1),
        [outcome_code::DROP, outcome_code::ACK]
    );
    let (status, outcomes, _) = handle(instance.as_mut(), &records(&["drop", "panic", "x"]));
    assert_eq!(status, CallStatus::Poisoned);
    assert_eq!(
        codes(&outcomes),
        [
            outcome_code::DROP,
            outcome_code::PANICKED,
            outcome_code::PANICKED
        ]
    );
}

#[test]
fn a_call_cancelled_before_its_start_runs_no_record() {
    let loaded = load(&built("misbehave"));
    for handler in ["misbehave", "misbehave-batch", "misbehave-wait"] {
        let mut instance = loaded.create(handler, "{}");
        let mut cancel = CancelFlag::default();
        cancel.set();
        let parts = records(&["1", "2", "3"]);
        let (status, outcomes, _) = handle_until(instance.as_mut(), &parts, 0, &cancel);
        assert_eq!(status, CallStatus::Usable, "{handler}");
        assert_eq!(codes(&outcomes), [outcome_code::NOT_RUN; 3], "{handler}");
        cancel.renew();
        let (_, outcomes, _) = handle_until(instance.as_mut(), &parts, 0, &cancel);
        assert_eq!(codes(&outcomes), [outcome_code::ACK; 3], "{handler}");
    }
}

#[test]
fn an_async_handler_overlaps_its_waits_and_respects_the_timeout() {
    let loaded = load(&built("misbehave"));
    let mut instance = loaded.create("misbehave-wait", "{}");
    let began = Instant::now();
    let (status, outcomes, _) = handle(instance.as_mut(), &records(&["100"; 8]));
    assert_eq!(
        (status, codes(&outcomes)),
        (CallStatus::Usable, vec![outcome_code::ACK; 8])
    );
    assert!(
        began.elapsed() < Duration::from_millis(700),
        "eight waits of 100 ms overlap: {:?}",
        began.elapsed()
    );

    let parts = records(&["1", "60000", "no number"]);
    let within = CancelFlag::default();
    let (status, outcomes, output) = handle_until(instance.as_mut(), &parts, 300, &within);
    assert_eq!(status, CallStatus::Usable);
    assert_eq!(
        codes(&outcomes),
        [
            outcome_code::ACK,
            outcome_code::RETRY,
            outcome_code::DEAD_LETTER
        ]
    );
    assert_eq!(
        output.details[outcomes[1].detail as usize - 1],
        "not finished within the timeout"
    );
}

#[test]
fn a_call_above_the_initial_capacity_is_handled() {
    let loaded = load(&built("misbehave"));
    let mut instance = loaded.create("misbehave", "{}");
    let values = vec!["v"; 5000];
    let (_, outcomes, _) = handle(instance.as_mut(), &records(&values));
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.code == outcome_code::ACK)
    );
    assert_eq!(instance.monitor().current(), None);
}
