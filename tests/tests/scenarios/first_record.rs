//! Situation: one topic, one handler that copies records, a fresh group.
//! Property: every record is copied completely and committed; a graceful stop and a restart handle no record twice (G1, G2, G3). A
//! failed record leaves no trace of its value in the log.
//! Alone: the first record is timed.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario first_record`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::workdir::Workdir;

const RECORDS: u64 = 500;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn records_are_copied_and_committed_and_a_restart_handles_none_twice() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("source"), unique("copy"), unique("group"));
    client.create_topic(&source, 1);
    client.create_topic(&copy, 1);
    let record = |number: u64| {
        let record = Outgoing::new(&format!("k{}", number % 10), format!("value {number}"));
        record
            .header("tenant", "acme")
            .header("tenant", vec![0xff])
            .header("empty", "")
    };
    client.produce(&source, (0..RECORDS).map(record));
    client.produce(
        &source,
        [Outgoing {
            key: None,
            value: None,
            ..Outgoing::default()
        }],
    );

    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy-all",
        &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\norder: partition\nconfig: {{ topic: {copy} }}\n"),
    );
    let mut service = Service::ready(&workdir, &[]);
    service.wait_outcomes("copy-all", "ack", RECORDS + 1, DEADLINE);
    client.wait_committed(&group, &source, DEADLINE);
    assert!(
        service.stop(DEADLINE).success(),
        "a graceful stop exits with 0"
    );

    let (written, copied) = (client.read(&source), client.read(&copy));
    assert_eq!(copied.len(), written.len());
    for (record, copy) in written.iter().zip(&copied) {
        assert_eq!(
            (&copy.key, &copy.value, &copy.headers),
            (&record.key, &record.value, &record.headers)
        );
    }

    let mut again = Service::ready(&workdir, &[]);
    again.wait_caught_up(DEADLINE);
    assert_eq!(
        again.consumed().expect("metrics"),
        0,
        "nothing is handled twice"
    );
    client.produce(&source, [Outgoing::new("k", "one more")]);
    again.wait_outcomes("copy-all", "ack", 1, DEADLINE);
    assert!(again.stop(DEADLINE).success());
    assert_eq!(client.count(&copy), RECORDS + 2);
}

#[test]
fn no_value_appears_in_the_log_even_of_a_failed_record() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, group) = (unique("secret"), unique("group"));
    client.create_topic(&source, 1);
    client.create_topic(&format!("{source}.dlt"), 1);
    client.produce(&source, [Outgoing::new("the-key", "the-secret-value")]);

    let workdir = Workdir::new(
        kafka.bootstrap(),
        &group,
        "logging: { format: json, level: debug }\n",
    );
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "errs",
        &format!(
            "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n\
             config: {{ rules: [ {{ when: {{ one_in: 1 }}, do: error, class: terminal }} ] }}\n"
        ),
    );
    let mut service = Service::ready(&workdir, &[]);
    service.wait_outcomes("errs", "dead_letter", 1, DEADLINE);
    assert!(service.stop(DEADLINE).success());
    let log = service.process().log();
    assert!(
        !log.contains("the-secret-value"),
        "a value is in the log:\n{log}"
    );
    let reported = log
        .lines()
        .find(|line| line.contains("record dead-lettered"));
    let line = reported.unwrap_or_else(|| panic!("no line reports the dead letter:\n{log}"));
    for part in [source.as_str(), "\"partition\":0", "\"offset\":0", "errs"] {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
}
