//! Snapshot diffs: applying the diff of a and b to a gives b, and only what must be rebuilt is rebuilt.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sluicegate_config::diff::{Change, apply};
use sluicegate_config::spec::{HandlerConfig, OnFailure, Order, Route, TopicPattern};
use sluicegate_config::{Environment, HandlerSpec, Predicate, Snapshot, Test, diff, read_spec};

fn base(name: &str) -> HandlerSpec {
    let text = format!("name: {name}\nplugin: relay\nroute: {{ topics: [t] }}\n");
    read_spec(&text, None, &Environment::default()).unwrap()
}

/// Specs that differ in every field.
fn any_spec() -> impl Strategy<Value = HandlerSpec> {
    let identity = (
        "[a-e]",
        prop::sample::select(vec!["relay", "auditor"]),
        prop::sample::select(vec!["*", "1.2"]),
    );
    let pool = (
        1..3_usize,
        prop::option::of(Just("small".to_owned())),
        1..3_u64,
        1..3_u64,
    );
    let light = (
        any::<bool>(),
        0..3_usize,
        0..3_i32,
        1..3_u32,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (identity, pool, light).prop_map(
        |((name, plugin, version), (workers, pool, records, seconds), light)| {
            let (enabled, topic, threshold, attempts, dead, hold, keyed) = light;
            HandlerSpec {
                plugin: plugin.to_owned(),
                version: version.parse().unwrap(),
                enabled,
                route: Route {
                    topics: vec![TopicPattern::Exact(format!("t{topic}"))],
                    when: if keyed {
                        Predicate::Key(Test::Exists(true))
                    } else {
                        Predicate::always()
                    },
                },
                order: if keyed { Order::Key } else { Order::Unordered },
                workers,
                pool,
                max_in_flight: sluicegate_config::spec::InFlightLimit { records, bytes: 1 },
                timeout: Duration::from_secs(seconds),
                retry: sluicegate_config::spec::Retry {
                    max_attempts: attempts,
                    ..base("a").retry
                },
                dead_letter: sluicegate_config::spec::DeadLetter {
                    topic: "d".to_owned(),
                    create: dead,
                },
                on_failure: if hold {
                    OnFailure::Hold
                } else {
                    OnFailure::DeadLetter
                },
                restart: sluicegate_config::spec::Restart {
                    max_restarts: attempts,
                    ..base("a").restart
                },
                config: HandlerConfig::new(serde_json::json!({ "threshold": threshold })),
                ..base(&name)
            }
        },
    )
}

fn any_snapshot(revision: u64) -> impl Strategy<Value = Snapshot> {
    prop::collection::vec(any_spec(), 0..6).prop_map(move |specs| Snapshot::new(revision, specs))
}

proptest! {
    #[test]
    fn applying_the_diff_gives_the_new_snapshot(old in any_snapshot(1), new in any_snapshot(2)) {
        let changes = diff(&old, &new);
        let mut running = old.handlers.clone();
        apply(&mut running, &changes);
        prop_assert_eq!(&running, &new.handlers);
        prop_assert_eq!(diff(&new, &new), Vec::new());
    }

    #[test]
    fn an_unchanged_handler_has_no_changes(old in any_snapshot(1), new in any_snapshot(2)) {
        for change in diff(&old, &new) {
            let name = change.handler();
            prop_assert_ne!(old.handlers.get(name), new.handlers.get(name));
            match change {
                Change::Added(_) => prop_assert!(!old.handlers.contains_key(name)),
                Change::Removed { ref name } => prop_assert!(!new.handlers.contains_key(name)),
                Change::Replaced { ref because, .. } => prop_assert!(!because.is_empty()),
                _ => prop_assert!(old.handlers.contains_key(name) && new.handlers.contains_key(name)),
            }
        }
    }

    #[test]
    fn a_serialised_spec_parses_to_the_same_spec(spec in any_spec()) {
        let text = serde_json::to_string(&spec).unwrap();
        let again = read_spec(&text, None, &Environment::default());
        prop_assert_eq!(again, Ok(spec));
    }
}

fn change_of(edit: impl FnOnce(&mut HandlerSpec)) -> Vec<Change> {
    let old = Snapshot::new(1, [base("a"), base("b")]);
    let mut new = old.clone();
    edit(Arc::make_mut(new.handlers.get_mut("a").unwrap()));
    diff(&old, &new)
}

#[test]
fn only_changes_of_code_or_pool_require_a_new_generation() {
    assert!(
        matches!(change_of(|spec| spec.enabled = false).as_slice(), [Change::Gate { name, open: false }] if name == "a")
    );
    let topic = TopicPattern::Glob("x*".to_owned());
    assert!(matches!(
        change_of(|spec| spec.route.topics.push(topic)).as_slice(),
        [Change::Route { .. }]
    ));
    let config = HandlerConfig::new(serde_json::json!({ "x": 1 }));
    assert!(matches!(
        change_of(|spec| spec.config = config).as_slice(),
        [Change::Config { .. }]
    ));
    assert!(matches!(
        change_of(|spec| spec.retry.max_attempts = 9).as_slice(),
        [Change::Failure { .. }]
    ));
    let both = change_of(|spec| {
        spec.workers = 9;
        spec.version = "2".parse().unwrap();
        spec.enabled = false;
    });
    assert_eq!(both[0].to_string(), "replaced for its new version, workers");
    let [Change::Replaced { spec, because }] = both.as_slice() else {
        panic!("{both:?}")
    };
    assert_eq!(
        (because.as_slice(), spec.workers, spec.enabled),
        (&["version", "workers"][..], 9, false)
    );
}

#[test]
fn a_changed_secret_is_a_config_change() {
    let read = |password: &str| {
        let environment: Environment = [("P", password)].into_iter().collect();
        let text =
            "name: a\nplugin: relay\nroute: { topics: [t] }\nconfig: { password: \"${env:P}\" }\n";
        Snapshot::new(1, [read_spec(text, None, &environment).unwrap()])
    };
    assert!(diff(&read("one"), &read("one")).is_empty());
    assert!(matches!(
        diff(&read("one"), &read("two")).as_slice(),
        [Change::Config { .. }]
    ));
}
