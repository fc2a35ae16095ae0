//! Situation: two thousand specs in a real etcd.
//! Property: the service starts with them within seconds, and a change of one takes effect at once, without affecting another one (G10).
//! Alone: both are measured in milliseconds.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario many_specs`

use std::time::{Duration, Instant};

use e2e::client::Outgoing;
use e2e::service::Service;
use e2e::wait::wait_for;
use sluicegate_config::control::ControlKey;

use crate::control_keys::{DEADLINE, member, own_etcd, set_up, spec_key, write};

#[test]
fn two_thousand_specs_start_and_a_change_of_one_takes_effect_at_once() {
    let (_etcd, store, handlers) = own_etcd();
    let (client, source, workdir) = set_up(&handlers);
    for number in 0..2_000 {
        let name = format!("h{number}");
        let text = format!(
            "name: {name}\nplugin: misbehave\nversion: \"*\"\npool: small\nworkers: 2\n\
             route: {{ topics: [{source}], when: {{ header: tenant, equals: t{number} }} }}\nconfig: {{ rules: [] }}\n"
        );
        write(&*store, &spec_key(&name), text);
    }
    let begun = Instant::now();
    let mut service = Service::ready(&workdir, &[]);
    let ready = begun.elapsed();
    client.produce(&source, [Outgoing::new("k", "v").header("tenant", "t7")]);
    service.wait_outcomes("h7", "ack", 1, DEADLINE);
    let generation = |name: &str| -> Result<u64, String> {
        let handler = service.api(&format!("handlers/{name}"))?;
        handler["generation"]
            .as_u64()
            .ok_or_else(|| handler.to_string())
    };
    let before = ["h7", "h8"].map(generation);
    let config = ControlKey::Config("h7".to_owned());
    let mut slowest = Duration::ZERO;
    for every in (1..=10).rev() {
        let begun = Instant::now();
        let value =
            format!(r#"{{"rules": [{{ "when": {{ "one_in": {every} }}, "do": "drop" }}]}}"#);
        let revision = write(&*store, &config, value);
        let report = wait_for("the change to be active", DEADLINE, || {
            let report = member(&*store)?;
            let applied = report.applied_revision;
            (applied >= revision && report.preparing.is_empty())
                .then_some(report)
                .ok_or(format!("{applied}"))
        });
        slowest = slowest.max(begun.elapsed());
        assert!(
            report.rejections.is_empty() && report.handlers.is_empty(),
            "{report:?}"
        );
    }
    client.produce(&source, [Outgoing::new("k", "v").header("tenant", "t7")]);
    service.wait_outcomes("h7", "drop", 1, DEADLINE);
    println!(
        "2,000 specs: ready after {ready:?}, one change active and reported after {slowest:?} at most"
    );
    assert_eq!(
        ["h7", "h8"].map(generation),
        before,
        "another handler was affected, or this one did not keep running"
    );
    assert!(ready < Duration::from_secs(5), "ready after {ready:?}");
    assert!(
        slowest < Duration::from_millis(300),
        "active after {slowest:?}"
    );
    assert!(service.stop(DEADLINE).success());
}
