//! Situation: topics are deleted while a service uses them: one that a handler names, and a dead-letter topic.
//! Property: the first is reported in `/readyz` and `explain`, and once in the log, within a metadata refresh; the second is created
//! again, and the waiting dead letters are written, so that nothing is lost and no operator has to act (G7).
//! Needs: Kafka.
//! Mostly waits: for metadata.
//! Command: `cargo xtask test --scenario deleted_topics`

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);
/// The service's metadata refresh interval, plus another check for confirmation.
const REFRESH_DEADLINE: Duration = Duration::from_secs(30 + 15);

fn problems(service: &Service) -> Result<Vec<Value>, String> {
    let (_, body) = service.get("/readyz")?;
    let body: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    let all = body["problems"].as_array();
    all.cloned().ok_or_else(|| body.to_string())
}

#[test]
fn a_deleted_topic_is_reported_soon_and_a_dead_letter_topic_is_re_created() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, read, group) = (unique("source"), unique("read"), unique("group"));
    let (letters, copies) = (format!("{source}.fails"), format!("{read}.copies"));
    for topic in [&source, &read, &copies] {
        client.create_topic(topic, 1);
    }
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay", "misbehave"]);
    workdir.spec(
        "fails",
        &format!(
            "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\ndead_letter: {{ topic: \"{letters}\" }}\n\
             config: {{ rules: [ {{ when: {{ one_in: 1 }}, do: error, class: terminal }} ] }}\n"
        ),
    );
    workdir.spec(
        "copy",
        &format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{read}] }}\nconfig: {{ topic: {copies} }}\n"
        ),
    );
    let mut service = Service::ready(&workdir, &[]);
    let three = || (0..3).map(|number| Outgoing::new("k", number.to_string()));
    client.produce(&source, three());
    client.wait_committed(&group, &source, DEADLINE);
    assert_eq!(client.count(&letters), 3);

    client.delete_topic(&letters);
    client.produce(&source, three());
    client.wait_committed(&group, &source, DEADLINE);
    assert_eq!(
        client.count(&letters),
        3,
        "earlier ones were deleted with their topic"
    );

    client.delete_topic(&read);
    let deleted = Instant::now();
    let what = format!("handler `copy` reads topic {read}, which does not exist");
    wait_for("the deleted topic to be reported", REFRESH_DEADLINE, || {
        let problems = problems(&service)?;
        for problem in &problems {
            let kind = &problem["kind"];
            // The first problem to appear must give the cause.
            if kind == "commits_refused" || kind == "partition_unreadable" {
                let remedy = problem["remedy"].to_string();
                assert!(remedy.contains("deleted"), "{problem}");
            }
        }
        match problems.iter().any(|one| one["what"] == what.as_str()) {
            true => Ok(()),
            false => Err(format!("{problems:?}")),
        }
    });
    println!("    reported after {:?}", deleted.elapsed());
    let (_, said) = service
        .get(&format!("/api/v1/explain/{read}/0"))
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("which does not exist"), "{said}");
    client.create_topic(&read, 1);
    wait_for("all problems to clear", DEADLINE, || {
        match problems(&service)? {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?}")),
        }
    });
    client.produce(&read, three());
    wait_for("copies", DEADLINE, || match client.count(&copies) {
        3 => Ok(()),
        count => Err(count.to_string()),
    });
    let log = service.process().log();
    let told = log
        .lines()
        .filter(|line| line.contains("topics of the route do not exist") && line.contains(&read));
    assert_eq!(told.count(), 1, "{log}");
    assert!(service.stop(DEADLINE).success());
}
