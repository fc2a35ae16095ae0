//! Situation: plugins as built. Property: shipped plugins pass the suite; a misbehaving one fails the right check.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use sluicegate_native::conformance::{CheckResult, Options, Report, run};
use support::built;

fn failures(report: &Report) -> Vec<String> {
    let failed = report
        .checks
        .iter()
        .filter(|check| matches!(check.result, CheckResult::Failed(_)));
    failed
        .map(|check| {
            format!(
                "{}: {}",
                check.handler.as_deref().unwrap_or("-"),
                check.name
            )
        })
        .collect()
}

#[test]
fn shipped_plugins_pass() {
    let cache = tempfile::tempdir().unwrap();
    for package in ["relay", "flight-delays", "fraud-detector"] {
        let file = built(&format!("sluicegate-handler-{package}"));
        let report = run(&file, &Options::new(cache.path().into()));
        assert!(report.passed(), "{package}:\n{report}");
        assert!(report.checks.len() >= 13, "{package}:\n{report}");
        assert!(
            !report
                .checks
                .iter()
                .any(|check| matches!(check.result, CheckResult::Skipped(_))),
            "{report}"
        );
    }
}

#[test]
fn misbehaviour_fails_the_right_check() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = Options::new(cache.path().into());
    options.timeout = Duration::from_secs(2);
    let rules = r#"{"rules":[{"when":{"key":true,"equals":"other"},"do":"hang"}]}"#;
    options.configs.insert("misbehave".into(), rules.into());
    let report = run(&built("misbehave"), &options);
    let failed = failures(&report);
    assert!(
        failed.contains(&"misbehave: returns from every call".into()),
        "{report}"
    );
    assert!(
        failed.iter().all(|line| line.starts_with("misbehave: ")),
        "{report}"
    );
    let skipped = report
        .checks
        .iter()
        .find(|check| matches!(check.result, CheckResult::Skipped(_)))
        .unwrap();
    assert_eq!(
        skipped.handler.as_deref(),
        Some("misbehave-create"),
        "{report}"
    );

    options.timeout = Duration::from_secs(60);
    let rules = r#"{"rules":[{"when":{"not":{"key":true,"exists":true}},"do":"panic"}]}"#;
    options.configs.insert("misbehave".into(), rules.into());
    let report = run(&built("misbehave"), &options);
    assert_eq!(
        failures(&report),
        ["misbehave: returns an outcome for every unusual record"],
        "{report}"
    );
    assert!(
        report
            .to_string()
            .contains("it panics on null key and null value: panic on purpose"),
        "{report}"
    );
}

#[test]
fn a_file_that_is_not_a_plugin_fails_the_load_checks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libtext.so");
    std::fs::write(&file, "text").unwrap();
    let report = run(&file, &Options::new(folder.path().join("cache")));
    assert_eq!(failures(&report), ["-: passes the load checks"]);
}
