//! Situation: the service's log is not read: a pipe without a reader, one whose reader has gone, a full disk.
//! Property: records flow and are committed, the service is ready and stops gracefully, and lost log lines are counted.
//! Needs: Kafka
//! Mostly waits: for readers.
//! Command: `cargo xtask test --scenario log_ends`

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const RECORDS: u64 = 500;
/// Capacity of a pipe in bytes.
const PIPE: usize = 64 << 10;
const DEADLINE: Duration = Duration::from_secs(60);
/// Time limit of a stop: less than `processing.drain_timeout` plus 5 s, because nothing hangs.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

fn workdir(bootstrap: &str, topic: &str) -> Workdir {
    let workdir = Workdir::new(bootstrap, topic, "logging: { level: debug }\n");
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {topic}-copy }}\n"
        ),
    );
    workdir
}

/// Runs a service whose log goes to `stderr`, which blocks, or refuses writes.
fn records_flow(stderr: Stdio, refuses: bool) {
    let bootstrap = Kafka::shared().bootstrap();
    let topic = &*unique("unlogged");
    let client = Client::new(bootstrap);
    for topic in [topic, &format!("{topic}-copy")] {
        client.create_topic(topic, 2);
    }
    let workdir = workdir(bootstrap, topic);
    let mut service = Service::start_with_stderr(&workdir, &[], Some(stderr));
    service.wait_ready();
    client.produce(
        topic,
        (0..RECORDS).map(|number| Outgoing::new(&number.to_string(), "v")),
    );
    service.wait_outcomes("copy", "ack", RECORDS, DEADLINE);
    client.wait_committed(topic, topic, DEADLINE);
    wait_for("the count of lost lines", DEADLINE, || {
        match service
            .metrics()?
            .sum("sluicegate_log_lines_lost_total", &[])
        {
            lost if refuses && lost == 0.0 => Err("none yet".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(service.get("/livez").expect("an answer").0, 200);
    assert!(service.stop(STOP_DEADLINE).success());
    assert_eq!(client.count(&format!("{topic}-copy")), RECORDS);
}

#[test]
fn an_unread_pipe_blocks_nothing() {
    let (_unread, mut end) = std::io::pipe().expect("a pipe");
    end.write_all(&[b'\n'; PIPE])
        .expect("the pipe has room for its capacity");
    records_flow(end.into(), false);
}

#[test]
fn a_pipe_whose_reader_has_gone_ends_nothing() {
    let (reader, end) = std::io::pipe().expect("a pipe");
    drop(reader);
    records_flow(end.into(), true);
}

#[test]
fn a_full_disk_ends_nothing() {
    let full = File::options().write(true).open("/dev/full");
    records_flow(full.expect("/dev/full").into(), true);
}
