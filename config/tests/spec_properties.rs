//! Random specs: what is written is read back as the same spec.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use proptest::prelude::*;
use sluicegate_config::spec::{HandlerConfig, OnFailure, Order, Route, TopicPattern};
use sluicegate_config::{Environment, HandlerSpec, Predicate, Test, read_spec};

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

proptest! {
    #[test]
    fn a_serialised_spec_parses_to_the_same_spec(spec in any_spec()) {
        let text = serde_json::to_string(&spec).unwrap();
        let again = read_spec(&text, None, &Environment::default());
        prop_assert_eq!(again, Ok(spec));
    }
}
