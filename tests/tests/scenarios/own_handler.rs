//! Situation: an author with nothing but the binary and Rust; a service that runs and does not know of them.
//! Property: three commands make, build and test a handler that nobody edited; dropped into the plugins folder with its spec it
//! handles records in the running service, without a restart, within a minute besides compiling.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario own_handler`

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::artefacts::workspace;
use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::workdir::Workdir;

const SOON: Duration = Duration::from_secs(60);
const BESIDES_COMPILING: Duration = Duration::from_secs(60);

fn run(folder: &Path, arguments: &[&str]) -> Duration {
    let begun = Instant::now();
    let done = run_binary(folder, arguments);
    let (out, errors) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(
        done.status.success(),
        "sluicegate {}:\n{out}{errors}",
        arguments.join(" ")
    );
    if arguments[1] == "test" {
        // It takes minutes at first.
        assert!(
            errors.contains("building and running the crate's tests"),
            "{errors}"
        );
    }
    begun.elapsed()
}

#[test]
fn a_handler_made_from_nothing_runs_in_the_live_service() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (known, source, group) = (unique("known"), unique("orders"), unique("group"));
    client.create_topic(&known, 1);
    client.create_topic(&source, 3);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "old",
        &format!(
            "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{known}] }}\nconfig: {{}}\n"
        ),
    );
    let mut service = Service::ready(&workdir, &[]);
    client.produce(&known, [Outgoing::new("k", "v")]);
    service.wait_outcomes("old", "ack", 1, SOON);

    let sdk = workspace().join("handler-sdk");
    let made = run(
        workdir.path(),
        &[
            "handler",
            "new",
            "my-handler",
            "--sdk",
            sdk.to_str().expect("a path in UTF-8"),
        ],
    );
    let own = workdir.path().join("my-handler");
    // Quick to compile; what is compiled is the same.
    run(&own, &["handler", "build", "--debug"]);
    run(&own, &["handler", "test", "--debug"]);
    let begun = Instant::now();
    run(
        &own,
        &["handler", "build", "--debug", "--into", "../plugins"],
    );
    let spec = std::fs::read_to_string(own.join("handler.yaml")).expect("the template's spec");
    assert!(spec.contains("topics: [my-topic]"), "{spec}");
    workdir.write(
        "handlers.d/my-handler.yaml",
        &spec.replace("topics: [my-topic]", &format!("topics: [{source}]")),
    );
    client.produce(
        &source,
        (0..300).map(|number| Outgoing::new(&number.to_string(), "v")),
    );
    service.wait_outcomes("my-handler", "ack", 300, BESIDES_COMPILING);
    let live = made + begun.elapsed();
    println!("live after {live:?} besides compiling");
    assert!(live < BESIDES_COMPILING, "live after {live:?}");

    client.produce(&known, [Outgoing::new("k", "v")]);
    service.wait_outcomes("old", "ack", 2, SOON);
    assert!(service.stop(SOON).success(), "the same process served both");
}
