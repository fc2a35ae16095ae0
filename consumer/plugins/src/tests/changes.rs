//! What settling a snapshot reports: the same as what the registry then does.

use std::sync::atomic::Ordering;

use sluicegate_config::spec::TopicPattern;
use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_engine::status::HandlerState;
use sluicegate_kit::plugin_doubles::until;

use super::registry::{RegistryHarness, spec};
use crate::{Required, SpecChange, SpecEffect};

/// A spec whose instances take a config.
fn hot() -> HandlerSpec {
    HandlerSpec {
        plugin: "hot".to_owned(),
        ..spec("one", "*", "a")
    }
}

fn route(spec: &mut HandlerSpec) {
    spec.route.topics = vec![TopicPattern::Exact("u".to_owned())];
}

fn config(spec: &mut HandlerSpec) {
    spec.config = super::registry::spec("one", "*", "b").config;
}

fn restart(harness: &mut RegistryHarness) {
    harness.registry.restart("one").expect("it is declared");
}

/// Closes the gate, and makes the instance unhealthy.
fn close_unhealthy(harness: &mut RegistryHarness) {
    harness.apply(&[HandlerSpec {
        enabled: false,
        ..hot()
    }]);
    let unhealthy = &harness.runtime.script.unhealthy;
    unhealthy.store(true, Ordering::SeqCst);
    until("it is reported", || {
        harness.registry.report()[0].state == HandlerState::Unhealthy
    });
}

fn nothing_before(_: &mut RegistryHarness) {}

type Before = fn(&mut RegistryHarness);
type Edit = fn(&mut HandlerSpec);

/// What happens before, the change of the spec, the fields and the gate that are reported, and the effect.
type Case = (
    Before,
    Edit,
    &'static [&'static str],
    Option<bool>,
    SpecEffect,
);

#[test]
fn a_changed_spec_is_reported_with_what_happens_to_it() {
    use Required::{Generation, Nothing, Reconfigure};
    use SpecEffect::{Applied, Held, Refused};
    let cases: [Case; 9] = [
        (nothing_before, route, &["route"], None, Applied(Nothing)),
        (
            nothing_before,
            |spec| spec.enabled = false,
            &[],
            Some(false),
            Applied(Nothing),
        ),
        (
            nothing_before,
            config,
            &["config"],
            None,
            Applied(Reconfigure),
        ),
        (
            nothing_before,
            |spec| spec.workers = 2,
            &["workers"],
            None,
            Applied(Generation),
        ),
        (
            nothing_before,
            |spec| {
                spec.plugin = "absent".to_owned();
                spec.enabled = false;
            },
            &["plugin"],
            Some(false),
            Refused,
        ),
        (close_unhealthy, route, &["route"], Some(true), Held),
        (
            close_unhealthy,
            config,
            &["config"],
            Some(true),
            Applied(Generation),
        ),
        (restart, route, &["route"], None, Applied(Generation)),
        (restart, config, &["config"], None, Applied(Generation)),
    ];
    for (at, (before, edit, fields, gate, effect)) in cases.into_iter().enumerate() {
        let mut harness = RegistryHarness::new(&[("liba.so", "hot 1.0.0 hot")]);
        harness.apply(&[hot()]);
        before(&mut harness);
        let mut next = hot();
        edit(&mut next);
        let settled = harness.registry.settle(&Snapshot::new(9, [next]));
        let change = SpecChange::Changed {
            fields: fields.to_vec(),
            gate,
            effect,
        };
        assert_eq!(settled.changes, [("one".to_owned(), change)], "case {at}");
        let builds = matches!(effect, Applied(Reconfigure | Generation));
        assert_eq!(settled.prepares, builds, "case {at}");
    }
}

#[test]
fn added_and_removed_handlers_are_reported_and_unchanged_ones_are_not() {
    let mut harness = RegistryHarness::new(&[("liba.so", "hot 1.0.0 hot")]);
    let named = |name: &str| HandlerSpec {
        name: name.to_owned(),
        ..hot()
    };
    harness.apply(&[named("kept"), named("old")]);
    let next = Snapshot::new(9, [named("kept"), named("new")]);
    let changes = harness.registry.settle(&next).changes;
    let expected = [("old", SpecChange::Removed), ("new", SpecChange::Added)];
    assert_eq!(
        changes,
        expected.map(|(name, change)| (name.to_owned(), change))
    );
    assert_eq!(harness.registry.settle(&next).changes, []);
}

#[test]
fn a_held_gate_is_applied_apart_from_the_gate_itself() {
    let mut harness = RegistryHarness::new(&[("liba.so", "hot 1.0.0 hot")]);
    harness.apply(&[hot()]);
    close_unhealthy(&mut harness);
    let mut next = hot();
    route(&mut next);
    let settled = harness.registry.settle(&Snapshot::new(9, [next.clone()]));
    assert_eq!(
        settled.changes[0].1.to_string(),
        "gate opened, route changed; the gate is held until its instances are healthy"
    );
    let applied = harness.registry.current().plan.handlers.remove(0).spec;
    assert_eq!(applied.route.topics, next.route.topics);
    assert!(!applied.enabled);
}
