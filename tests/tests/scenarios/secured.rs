//! Situation: a broker with TLS that requires a login.
//! Property: with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 over TLS, and SCRAM without TLS, records flow and are committed; with a
//! wrong password the service reports the refusal, is not ready, and commits nothing. The password is neither in the log nor in the API.
//! Needs: Kafka of its own.
//! Mostly waits: for logins.
//! Command: `cargo xtask test --scenario secured`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions, PASSWORD, USER};
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const RECORDS: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(60);

fn workdir(
    bootstrap: &str,
    group: &str,
    protocol: &str,
    mechanism: &str,
    password: &str,
    more: &str,
) -> Workdir {
    let workdir = Workdir::new(bootstrap, group, "");
    workdir.write("password", password);
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: {group}\n  client:\n    security.protocol: {protocol}\n    \
             sasl.mechanism: {mechanism}\n    sasl.username: {USER}\n    sasl.password: \"${{file:password}}\"\n{more}\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing: {{ commit_interval: 200ms }}\n"
        ),
    );
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [guarded] }\nconfig: { topic: copied }\n",
    );
    workdir
}

#[test]
fn records_flow_through_tls_and_logins() {
    let options = KafkaOptions {
        secured: true,
        ..KafkaOptions::default()
    };
    let kafka = Kafka::start(&options).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("guarded", 2);
    client.create_topic("copied", 2);
    client.produce(
        "guarded",
        (0..RECORDS).map(|number| Outgoing::new(&number.to_string(), "v")),
    );
    let (secure, ca) = kafka.secure();
    let trust = format!("    ssl.ca.location: {}\n", ca.display());
    let ways = [
        ("SASL_SSL", "PLAIN", secure.clone(), &*trust),
        ("SASL_SSL", "SCRAM-SHA-256", secure.clone(), &*trust),
        ("SASL_SSL", "SCRAM-SHA-512", secure, &*trust),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256", kafka.login(), ""),
    ];
    for (round, (protocol, mechanism, bootstrap, more)) in (1..).zip(ways) {
        let group = format!("{protocol}-{mechanism}").to_lowercase();
        let workdir = workdir(&bootstrap, &group, protocol, mechanism, PASSWORD, more);
        let mut service = Service::ready(&workdir, &[]);
        service.wait_outcomes("copy", "ack", RECORDS, DEADLINE);
        client.wait_committed(&group, "guarded", DEADLINE);
        let status = service.api("status").expect("the status").to_string();
        assert!(service.stop(DEADLINE).success());
        assert!(
            !status.contains(PASSWORD) && !service.process().log().contains(PASSWORD),
            "the password leaks"
        );
        assert_eq!(
            client.count("copied"),
            RECORDS * round,
            "{protocol} {mechanism}"
        );
    }

    let workdir = workdir(
        &kafka.login(),
        "intruder",
        "SASL_PLAINTEXT",
        "SCRAM-SHA-256",
        "wrong",
        "",
    );
    let mut service = Service::start(&workdir, &[]);
    wait_for("the refusal to be reported", DEADLINE, || {
        let log = service.process().log();
        if log.to_lowercase().contains("authenticat") {
            Ok(())
        } else {
            Err("nothing about authentication in the log".to_owned())
        }
    });
    wait_for(
        "the service to report that it is not ready",
        DEADLINE,
        || {
            match service.process().exited() {
                Some(status) if status.success() => panic!("the service exited successfully"),
                Some(_) => return Ok(()),
                None => {}
            }
            match service.get("/readyz")? {
                (503, _) => Ok(()),
                (status, body) => Err(format!("/readyz answered {status}: {body}")),
            }
        },
    );
    assert!(client.committed("intruder", "guarded").is_empty());
}
