//! Situation: configs and specs with every kind of mistake, at start and while the service runs.
//! Property: at start each exits with code 2 and names its position and the remedy; while the service runs the last good
//! version of the affected handlers keeps running, and log, metrics and API report the refusal; gates still take effect, or
//! the response says why not. (The wording of each message is checked by snapshots in `config/tests`.)
//! Alone: faults must be reported within seconds.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario bad_configs`

use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(60);
const GOOD: &str = "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\nconfig: { topic: b }\n";

/// A change to the good config, and words that the refusal must contain.
const BAD_CONFIGS: &[(&str, &str, &[&str])] = &[
    (
        "kafka:\n",
        "kafka:\n  bootstrap_server: x\n",
        &["bootstrap_server", "bootstrap_servers", "sluicegate.yaml:2"],
    ),
    ("group_id: g", "group_id: [1, 2]", &["group_id"]),
    (
        "group_id: g",
        "group_id: g\n  client: { auto.offset.reset: latest }",
        &["auto.offset.reset", "kafka.start"],
    ),
    (
        "group_id: g",
        "group_id: g\n  client: { enable.auto.commit: true }",
        &["enable.auto.commit"],
    ),
    (
        "group_id: g",
        "group_id: g\n  client: { enable.partition.eof: true }",
        &["enable.partition.eof"],
    ),
    ("group_id: g", "group_id: g\n  clients: 0", &["clients"]),
    (
        "group_id: g",
        "group_id: g\n  start: yesterday",
        &["start", "yesterday"],
    ),
    (
        "group_id: g",
        "group_id: \"${env:SLUICEGATE_NO_SUCH_VARIABLE}\"",
        &["SLUICEGATE_NO_SUCH_VARIABLE"],
    ),
    (
        "group_id: g",
        "group_id: \"${file:no/such/file}\"",
        &["no/such/file"],
    ),
    (
        "commit_interval: 200ms",
        "commit_interval: soon",
        &["commit_interval", "soon"],
    ),
    ("commit_interval: 200ms", "memory: 0", &["memory"]),
    (
        "commit_interval: 200ms",
        "max_uncommitted: -1",
        &["max_uncommitted"],
    ),
    (
        "commit_interval: 200ms",
        "guarantee: perhaps",
        &["guarantee", "at_least_once"],
    ),
    (
        "folder: handlers.d",
        "folder: no-such-folder",
        &["no-such-folder"],
    ),
    (
        "allow_unsigned: true",
        "allow_unsigned: maybe",
        &["allow_unsigned"],
    ),
];

/// A bad spec (below `name: copy`), and words that the refusal must contain.
const BAD_SPECS: &[(&str, &[&str])] = &[
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [\"/(/\"] }\n",
        &["copy.yaml:4", "topics"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [] }\n",
        &["copy.yaml", "topics"],
    ),
    (
        "plugin: relay\nversion: one\nroute: { topics: [a] }\n",
        &["copy.yaml:3", "version"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a], when: { header: x, equal: y } }\n",
        &["equal", "equals"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a], when: { header: x, regex: \"(\" } }\n",
        &["copy.yaml:4", "regex"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroutes: { topics: [a] }\n",
        &["routes", "route"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\nworkers: 0\n",
        &["workers"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\norder: random\n",
        &["order", "partition"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\nretry: { max_attempts: 0 }\n",
        &["max_attempts"],
    ),
    (
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\ntimeout: forever\n",
        &["timeout", "forever"],
    ),
    ("plugin: relay\nroute: { topics: [a]\n", &["copy.yaml"]),
];

fn good(bootstrap: &str, group: &str) -> Workdir {
    let workdir = Workdir::new(bootstrap, group, "");
    workdir.plugins(&["relay"]);
    workdir.spec("copy", GOOD);
    workdir
}

/// Cannot conflict with other processes.
const ANY_PORT: &str = "admin.listen=127.0.0.1:0";

/// Runs `validate` and `run`, both of which must fail with exit code 2 and the same words.
fn assert_refused(workdir: &Workdir, what: &str, words: &[&str]) {
    for command in ["validate", "run"] {
        let arguments = [command, "-c", "sluicegate.yaml", "--set", ANY_PORT];
        let done = run_binary(workdir.path(), &arguments);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        assert_eq!(
            done.status.code(),
            Some(2),
            "{} with {what}:\n{said}",
            arguments[0]
        );
        for word in words {
            assert!(
                said.contains(word),
                "{} with {what} does not name {word:?}:\n{said}",
                arguments[0]
            );
        }
    }
}

#[test]
fn a_bad_config_exits_with_2_and_names_its_position() {
    let workdir = good("127.0.0.1:1", "g");
    let text = std::fs::read_to_string(workdir.config()).expect("the config");
    let valid = run_binary(workdir.path(), &["validate", "-c", "sluicegate.yaml"]);
    assert_eq!(
        valid.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&valid.stderr)
    );
    for (from, to, words) in BAD_CONFIGS {
        assert!(text.contains(from), "the good config has no {from:?}");
        workdir.write("sluicegate.yaml", &text.replacen(from, to, 1));
        assert_refused(&workdir, to, words);
    }
}

#[test]
fn a_bad_spec_exits_with_2_and_names_its_position() {
    let workdir = good("127.0.0.1:1", "g");
    for (spec, words) in BAD_SPECS {
        workdir.spec("copy", spec);
        assert_refused(&workdir, spec, words);
    }
    workdir.spec("copy", GOOD);
    workdir.write("handlers.d/second.yaml", &format!("name: copy\n{GOOD}"));
    assert_refused(&workdir, "two specs of one name", &["copy", "second.yaml"]);
    workdir.remove("handlers.d/second.yaml");
    workdir.spec("copy", &GOOD.replace("plugin: relay", "plugin: relai"));
    let done = run_binary(
        workdir.path(),
        &["run", "-c", "sluicegate.yaml", "--set", ANY_PORT],
    );
    let said =
        String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(
        said.contains("relai") && said.contains("relay"),
        "the nearest known plugin is named: {said}"
    );
}

/// The most likely first mistake: no broker listens at the configured address.
#[test]
fn a_wrong_broker_address_is_reported_soon_and_once_with_the_address() {
    /// Time for loading the plugin, which comes first.
    const LOAD_TIME: Duration = Duration::from_secs(3);

    let workdir = good("127.0.0.1:1", "g");
    workdir.spec("copy", GOOD);
    let mut service = Service::start(&workdir, &[]);
    let says = "no broker at `127.0.0.1:1` can be connected to yet";
    let within = Duration::from_secs(3) + LOAD_TIME;
    wait_for("the report of the address", within, || {
        let log = service.process().log();
        log.contains(says).then_some(()).ok_or(log)
    });
    assert_eq!(service.process().exited(), None, "it may come up yet");
    let ended = service
        .process()
        .wait(Duration::from_secs(12))
        .unwrap_or_else(|error| panic!("{error:#}"));
    let said = service.process().log();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert_eq!(said.matches(says).count(), 1, "{said}");
    let end = "no broker answers at `127.0.0.1:1` within 10 s";
    assert_eq!(said.matches(end).count(), 1, "{said}");
    assert_eq!(said.matches("check the address").count(), 2, "{said}");
}

#[test]
fn a_bad_spec_in_a_running_service_leaves_the_last_good_snapshot() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("source"), unique("copy"), unique("group"));
    client.create_topic(&source, 1);
    client.create_topic(&copy, 1);
    let workdir = good(kafka.bootstrap(), &group);
    let spec = |topic: &str| {
        format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ topic: {topic} }}\n"
        )
    };
    workdir.spec("copy", &spec(&copy));
    let mut service = Service::ready(&workdir, &[]);
    let rejections = |service: &Service| {
        Ok::<_, String>(
            service
                .metrics()?
                .sum("sluicegate_snapshot_rejections_total", &[]),
        )
    };
    for (round, (bad, _)) in (1..).zip(BAD_SPECS) {
        let before = rejections(&service).expect("metrics");
        workdir.spec("copy", bad);
        wait_for(
            "the refusal to be counted",
            DEADLINE,
            || match rejections(&service)? {
                now if now > before => Ok(()),
                now => Err(format!("{now} rejections with {bad}")),
            },
        );
        let status = service.api("status").expect("the status");
        assert!(
            status["last_rejection"]
                .as_str()
                .is_some_and(|text| text.contains("copy.yaml")),
            "{status}"
        );
        client.produce(&source, [Outgoing::new("k", "v")]);
        service.wait_outcomes("copy", "ack", round, DEADLINE);
    }
    let other = unique("other");
    client.create_topic(&other, 1);
    workdir.spec("copy", &spec(&other));
    wait_for("the good spec to be applied", DEADLINE, || {
        client.produce(&source, [Outgoing::new("k", "v")]);
        if client.count(&other) > 0 {
            Ok(())
        } else {
            Err("nothing in the other topic".to_owned())
        }
    });
    let status = service.api("status").expect("the status");
    assert!(status["last_rejection"].is_null(), "{status}");
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn gates_take_effect_despite_bad_specs_and_responses_are_true() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("source"), unique("copy"), unique("group"));
    client.create_topic(&source, 1);
    client.create_topic(&copy, 1);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay"]);
    let spec = format!(
        "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ topic: {copy} }}\n"
    );
    let names = ["good", "twice", "typo", "torn"];
    for name in names {
        workdir.spec(name, &spec);
    }
    let mut service = Service::ready(&workdir, &[]);
    workdir.write("handlers.d/second.yaml", &format!("name: twice\n{spec}"));
    workdir.spec("typo", &format!("{spec}wrokers: 3\n"));
    workdir.spec("torn", &format!("{spec}retry: {{ max_attempts: [1 }}\n"));
    wait_for("the refusals", DEADLINE, || {
        let last = service.api("status")?["last_rejection"].to_string();
        let all = ["second.yaml", "typo.yaml", "torn.yaml"];
        let told = all.iter().all(|file| last.contains(file));
        told.then_some(()).ok_or(last)
    });
    let admin = service.admin().to_owned();
    let off = |name: &str| {
        let done = run_binary(
            workdir.path(),
            &["handlers", "off", name, "--admin", &admin],
        );
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let gates = || {
        names.map(|name| {
            let handler = service.api(&format!("handlers/{name}"));
            let handler = handler.unwrap_or_else(|error| panic!("{error}"));
            (name, handler["gate"] == "closed")
        })
    };
    for name in ["good", "twice", "typo"] {
        let (code, said) = off(name);
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(
            gates().contains(&(name, true)),
            "reported as closed: {:?}",
            gates()
        );
    }
    let (code, said) = off("torn");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("torn.yaml") && said.contains("not valid YAML"),
        "{said}"
    );
    assert!(gates().contains(&("torn", false)));
    // `enabled: false` also takes effect in a file that is not valid YAML.
    workdir.spec(
        "torn",
        &format!("enabled: false\n{spec}retry: {{ max_attempts: [1 }}\n"),
    );
    wait_for("the gate", DEADLINE, || {
        gates()
            .contains(&("torn", true))
            .then_some(())
            .ok_or("open".to_owned())
    });
    client.produce(&source, [Outgoing::new("k", "v")]);
    for name in names {
        service.wait_outcomes(name, "skipped", 1, DEADLINE);
    }
    // A gate that stays closed is not reported as open.
    workdir.spec("good", &format!("enabled: false\n{spec}"));
    workdir.spec("good", &format!("enabled: false\n{spec}wrokers: 3\n"));
    wait_for("the refusal", DEADLINE, || {
        let last = service.api("status")?["last_rejection"].to_string();
        last.contains("good.yaml").then_some(()).ok_or(last)
    });
    let done = run_binary(
        workdir.path(),
        &["handlers", "on", "good", "--admin", &admin],
    );
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(
        said.contains("good.yaml") && said.contains("wrokers"),
        "{said}"
    );
    assert!(gates().contains(&("good", true)));
    assert!(service.stop(DEADLINE).success());
}
