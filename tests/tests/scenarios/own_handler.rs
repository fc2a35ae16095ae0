//! Situation: an author with only the binary and Rust; a running service without their handler.
//! Property: three commands create, build and test an unedited handler; put into the plugins folder with its spec it
//! handles records in the running service, without a restart, within a minute in addition to compiling.
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

const DEADLINE: Duration = Duration::from_secs(60);
const LIVE_DEADLINE: Duration = Duration::from_secs(60);

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
        // Announced, because it takes minutes the first time.
        assert!(
            errors.contains("building and running the crate's tests"),
            "{errors}"
        );
    }
    begun.elapsed()
}

#[test]
fn a_new_handler_runs_in_the_running_service() {
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
    service.wait_outcomes("old", "ack", 1, DEADLINE);

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
    // Compiles faster; the code is the same.
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
    service.wait_outcomes("my-handler", "ack", 300, LIVE_DEADLINE);
    let live = made + begun.elapsed();
    println!("live after {live:?}, without compiling");
    assert!(live < LIVE_DEADLINE, "live after {live:?}");

    client.produce(&known, [Outgoing::new("k", "v")]);
    service.wait_outcomes("old", "ack", 2, DEADLINE);
    assert!(
        service.stop(DEADLINE).success(),
        "the same process served both"
    );
}
