//! Situation: three members of a fleet read their handlers from one real etcd, and an operator writes from the command line.
//! Property: `--wait` returns after the last member has the change, and names a member that does not answer; a rollout whose second
//! wave refuses restores the earlier spec everywhere, reports it and exits with 1; one that no member refuses reaches all of them. A
//! member with the id of another one works, takes another id and reports it.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Mostly waits: for members to settle.
//! Takes: 83 s.
//! Command: `cargo xtask test --scenario fleet`

use std::process::Output;
use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::kafka::Kafka;
use e2e::process::Signal;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use serde_json::Value;
use sluicegate_config::control::MemberReport;
use sluicegate_config::service::EtcdSettings;
use sluicegate_store::OpenStore;

const DEADLINE: Duration = Duration::from_secs(60);
const MEMBERS: [&str; 3] = ["m1", "m2", "m3"];

struct Fleet {
    // Dropped first: the services end before their store and their folders.
    services: Vec<Service>,
    workdirs: Vec<Workdir>,
    source: String,
    copies: String,
    client: Client,
    etcd: Etcd,
}

impl Fleet {
    /// Three members with the plugin `relay`; only the first one has the `extra` plugins.
    fn start(extra: &[&str]) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (source, copies, group) = (unique("source"), unique("copies"), unique("group"));
        client.create_topic(&source, 3);
        client.create_topic(&copies, 1);
        let etcd = Etcd::start_own(&EtcdOptions::default());
        let etcd = etcd.unwrap_or_else(|error| panic!("{error:#}"));
        let workdirs: Vec<Workdir> = MEMBERS
            .iter()
            .map(|member| {
                let workdir = Workdir::empty();
                workdir.write(
                    "sluicegate.yaml",
                    &format!(
                        "kafka: {{ bootstrap_servers: \"{}\", group_id: {group} }}\n\
                         handlers: {{ member_id: {member}, etcd: {{ endpoints: [\"{}\"] }} }}\n\
                         plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n",
                        kafka.bootstrap(),
                        etcd.endpoint()
                    ),
                );
                workdir.plugins(&["relay"]);
                workdir
            })
            .collect();
        workdirs[0].plugins(extra);
        let mut fleet = Self {
            services: Vec::new(),
            workdirs,
            source,
            copies,
            client,
            etcd,
        };
        fleet.write_relay("copy.yaml", 1);
        let applied = fleet.sluicegate(&["handlers", "apply", "copy.yaml"]);
        assert!(applied.status.success(), "{}", told(&applied));
        fleet.services = fleet
            .workdirs
            .iter()
            .map(|workdir| Service::start(workdir, &[]))
            .collect();
        for service in &mut fleet.services {
            service.wait_ready();
        }
        fleet
    }

    /// Writes a spec of the handler `copy` next to the first member's config.
    fn write_spec(&self, file: &str, rest: &str) {
        let source = &self.source;
        let text = format!("name: copy\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n{rest}");
        self.workdirs[0].write(file, &text);
    }

    fn write_relay(&self, file: &str, workers: usize) {
        let copies = &self.copies;
        let rest = format!("plugin: relay\nworkers: {workers}\nconfig: {{ topic: {copies} }}\n");
        self.write_spec(file, &rest);
    }

    /// Runs a command with the first member's config.
    fn sluicegate(&self, arguments: &[&str]) -> Output {
        let output = ["--output", "json"];
        run_binary(self.workdirs[0].path(), &[arguments, &output[..]].concat())
    }

    fn handler(&self, member: usize) -> Result<Value, String> {
        self.services[member].api("handlers/copy")
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in {output:?}"))
}

#[test]
fn waiting_returns_after_the_last_member_and_names_an_unresponsive_one() {
    let mut fleet = Fleet::start(&[]);
    let off = fleet.sluicegate(&["handlers", "off", "copy", "--wait"]);
    assert!(off.status.success(), "{}", told(&off));
    let members = json(&off)["awaited"]["members"].clone();
    for (at, member) in MEMBERS.iter().enumerate() {
        assert_eq!(members[at]["member"], *member, "{members}");
        assert_eq!(members[at]["state"], "applied", "{members}");
        let handler = fleet.handler(at).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(handler["gate"], "closed", "{handler}");
    }
    fleet.services[1].process().signal(Signal::STOP);
    let on = fleet.sluicegate(&["handlers", "on", "copy", "--wait", "--timeout", "4s"]);
    fleet.services[1].process().signal(Signal::CONT);
    assert_eq!(on.status.code(), Some(1), "{on:?}");
    let why = told(&on);
    assert!(why.contains("m2 does not answer"), "{why}");
    assert!(!why.contains("m1") && !why.contains("m3"), "{why}");
    let on = fleet.sluicegate(&["handlers", "on", "copy", "--wait"]);
    assert!(on.status.success(), "{}", told(&on));
    fleet.client.produce(
        &fleet.source,
        (0..30).map(|number| Outgoing::new(&format!("k{number}"), "x")),
    );
    wait_for("the records to be handled", DEADLINE, || {
        let mut handled = 0;
        for service in &fleet.services {
            handled += service.outcomes("copy", "ack")?;
        }
        match handled {
            30 => Ok(()),
            other => Err(format!("{other}")),
        }
    });
}

#[test]
fn another_member_with_the_same_id_works_takes_another_id_and_reports_it() {
    let mut fleet = Fleet::start(&[]);
    let store = EtcdSettings::new(&[fleet.etcd.endpoint()]).open();
    let store = store.unwrap_or_else(|error| panic!("{error}"));
    let members = || -> Vec<(String, MemberReport)> {
        let members = store.members().unwrap_or_else(|error| panic!("{error}"));
        let read = |(id, report): (String, Vec<u8>)| {
            (id, MemberReport::from_json(&report).expect("a report"))
        };
        members.into_iter().map(read).collect()
    };
    let first = members()[0].1.instance.clone();
    // The same config on another machine.
    let workdir = Workdir::empty();
    let config = fleet.workdirs[0].config();
    let config = std::fs::read_to_string(config).expect("the first member's config");
    workdir.write("sluicegate.yaml", &config);
    workdir.plugins(&["relay"]);
    let mut second = Service::ready(&workdir, &[]);
    assert_eq!(
        members().len(),
        3,
        "the second one works before it is listed"
    );
    let taken = wait_for("another id", DEADLINE, || {
        let ids: Vec<String> = members().into_iter().map(|(id, _)| id).collect();
        let taken = ids.iter().find(|id| id.starts_with("m1-"));
        taken.cloned().ok_or_else(|| ids.join(", "))
    });
    let now = members();
    assert_eq!(now.len(), 4);
    assert_eq!(
        (&*now[0].0, &now[0].1.instance),
        ("m1", &first),
        "the first one keeps its id"
    );
    let problems = wait_for("the problem in the status", DEADLINE, || {
        let problems = second.api("status")?["problems"].to_string();
        let told = problems.contains(&taken) && problems.contains("handlers.member_id");
        told.then(|| problems.clone()).ok_or(problems)
    });
    assert!(problems.contains("member id `m1`"), "{problems}");
    let log = second.process().log();
    assert!(log.contains("two processes share one member id"), "{log}");

    // `--wait` counts both members.
    second.process().signal(Signal::STOP);
    let off = ["handlers", "off", "copy", "--wait", "--timeout", "3s"];
    let silent = fleet.sluicegate(&off);
    second.process().signal(Signal::CONT);
    assert_eq!(silent.status.code(), Some(1), "{silent:?}");
    assert!(
        told(&silent).contains(&format!("{taken} does not answer")),
        "{}",
        told(&silent)
    );
    let all = fleet.sluicegate(&off[..4]);
    assert!(all.status.success(), "{}", told(&all));
    assert_eq!(
        json(&all)["awaited"]["members"].as_array().map(Vec::len),
        Some(4)
    );
    assert!(second.stop(DEADLINE).success());
    wait_for("its key to go, and no other", DEADLINE, || {
        match members().len() {
            3 => Ok(()),
            other => Err(format!("{other} members")),
        }
    });
    assert_eq!(members()[0].1.instance, first);

    // A killed member gets its id back as soon as its old key expires, and works until then.
    fleet.services[0].process().signal(Signal::KILL);
    let mut again = Service::ready(&fleet.workdirs[0], &[]);
    wait_for("its id", DEADLINE, || {
        let (id, report) = members().swap_remove(0);
        let is_new = id == "m1" && report.instance != first;
        is_new
            .then_some(())
            .ok_or(format!("{id} of {}", report.instance))
    });
    assert_eq!(members().len(), 3);
    assert!(again.stop(DEADLINE).success());
}

#[test]
fn a_refusal_in_the_second_wave_restores_the_earlier_spec() {
    // Only the first member has the new plugin.
    let fleet = Fleet::start(&["misbehave"]);
    fleet.write_spec("new.yaml", "plugin: misbehave\nconfig: { rules: [] }\n");
    let waves = [
        "--waves",
        "1,100%",
        "--wait-healthy",
        "1s",
        "--timeout",
        "20s",
    ];
    let refused = fleet.sluicegate(&[&["handlers", "apply", "new.yaml"][..], &waves].concat());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let why = told(&refused);
    assert!(why.contains("wave 2 of 2: m1, m2, m3"), "{why}");
    assert!(
        why.contains("m2 refuses it") && why.contains("m3 refuses it"),
        "{why}"
    );
    assert!(why.contains("the earlier spec is restored"), "{why}");
    assert_eq!(json(&refused)["result"], "restored");
    for member in 0..MEMBERS.len() {
        let handler = fleet
            .handler(member)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(handler["plugin"], "relay", "{handler}");
    }
    let none = fleet.sluicegate(&["handlers", "rollout", "copy", "--resume"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        told(&none).contains("no rollout of `copy`"),
        "{}",
        told(&none)
    );

    fleet.write_spec(
        "new.yaml",
        "plugin: relay\nworkers: 2\nconfig: { topic: copies }\n",
    );
    let done = fleet.sluicegate(&[&["handlers", "apply", "new.yaml"][..], &waves].concat());
    assert!(done.status.success(), "{}", told(&done));
    assert_eq!(json(&done)["result"], "done");
    for member in 0..MEMBERS.len() {
        wait_for("the new spec", DEADLINE, || {
            match fleet.handler(member)? {
                handler if handler["workers"] == 2 => Ok(()),
                handler => Err(handler.to_string()),
            }
        });
    }
    let history = json(&fleet.sluicegate(&["handlers", "history", "copy"]));
    let values = history.as_array().map(Vec::len);
    assert_eq!(values, Some(2), "{history}");
}
