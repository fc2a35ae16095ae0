//! Situation: all 336,776 flights of 2013 in twelve partitions, four concurrent handlers: a nested header predicate, a topic
//! regex, late flights, and everything; one process, then two processes in one group.
//! Property: the output of each handler equals the result computed independently from the file, the records of every key keep
//! their order (G4), and after SIGTERM a restart handles no record twice (G3).
//! Needs: Kafka.
//! Takes: 85 s.
//! Command: `cargo xtask test --scenario flights`

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use e2e::client::{Client, Read};
use e2e::flights::{self, FLIGHTS, Flight};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const PARTITIONS: i32 = 12;
const COMPLETION_DEADLINE: Duration = Duration::from_secs(240);
const HANDLERS: [&str; 4] = ["nested", "by-regex", "late", "everything"];

/// Values by key, in order; null keys have no order, so their values are sorted.
type PerKey = HashMap<Option<Vec<u8>>, Vec<u64>>;

fn fingerprint(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn per_key(client: &Client, topic: &str, mut keep: impl FnMut(&Read) -> bool) -> PerKey {
    let mut found = PerKey::new();
    client.for_each(topic, |record| {
        if keep(&record) {
            let value = fingerprint(record.value.as_deref().unwrap_or_default());
            found.entry(record.key).or_default().push(value);
        }
    });
    if let Some(unordered) = found.get_mut(&None) {
        unordered.sort_unstable();
    }
    found
}

fn is_nested(carrier: &str, origin: &str, destination: &str) -> bool {
    ["UA", "DL", "B6"].contains(&carrier) && (origin == "JFK" || !destination.starts_with('S'))
}

/// The expected outcomes of each handler, computed from the file.
struct Expected {
    nested: u64,
    late: u64,
    cancelled: u64,
}

impl Expected {
    fn of(flights: &[Flight]) -> Self {
        let count = |keep: &dyn Fn(&Flight) -> bool| {
            flights.iter().filter(|flight| keep(flight)).count() as u64
        };
        Self {
            nested: count(&|flight| {
                is_nested(&flight.carrier, &flight.origin, &flight.destination)
            }),
            late: count(&|flight| {
                flight.departed && flight.departure_delay.is_some_and(|delay| delay >= 60.0)
            }),
            cancelled: count(&|flight| !flight.departed),
        }
    }
}

/// The output topics and the folder with the four specs.
struct Setting {
    group: String,
    outputs: BTreeMap<&'static str, String>,
    workdir: Workdir,
}

impl Setting {
    fn new(client: &Client, bootstrap: &str, source: &str) -> Self {
        let group = unique("flights-group");
        let outputs: BTreeMap<&str, String> = HANDLERS
            .iter()
            .map(|name| (*name, unique(&format!("out-{name}"))))
            .collect();
        for topic in outputs.values() {
            client.create_topic(topic, PARTITIONS);
        }
        let workdir = Workdir::new(bootstrap, &group, "");
        workdir.plugins(&["relay", "flight-delays"]);
        let relay = |name: &str, route: &str| {
            let spec = format!(
                "plugin: relay\nversion: \"*\"\nworkers: 2\n{route}\nconfig: {{ topic: {} }}\n",
                outputs[name]
            );
            workdir.spec(name, &spec);
        };
        relay(
            "nested",
            &format!(
                "route:\n  topics: [{source}]\n  when:\n    all:\n      - {{ header: carrier, in: [UA, DL, B6] }}\n\
                 \x20     - any:\n          - {{ header: origin, equals: JFK }}\n          - not: {{ header: dest, prefix: S }}\n"
            ),
        );
        let regex = format!("/^{}[0-9]$/", &source[..source.len() - 1]);
        relay("by-regex", &format!("route: {{ topics: [\"{regex}\"] }}"));
        relay("everything", &format!("route: {{ topics: [{source}] }}"));
        workdir.spec(
            "late",
            &format!(
                "plugin: flight-delays\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n\
                 config: {{ topic: {}, threshold_minutes: 60 }}\n",
                outputs["late"]
            ),
        );
        Self {
            group,
            outputs,
            workdir,
        }
    }

    /// Checks number and order of all records that the handlers wrote.
    fn check(&self, client: &Client, source: &str, expected: &Expected) {
        let all = per_key(client, source, |_| true);
        for name in ["everything", "by-regex"] {
            assert_eq!(client.count(&self.outputs[name]), FLIGHTS as u64, "{name}");
            assert!(
                per_key(client, &self.outputs[name], |_| true) == all,
                "{name}: values or their order per key differ"
            );
        }
        let wanted = per_key(client, source, |record| {
            let header = |name: &str| record.header(name).unwrap_or_default();
            is_nested(&header("carrier"), &header("origin"), &header("dest"))
        });
        assert_eq!(
            wanted
                .values()
                .map(|values| values.len() as u64)
                .sum::<u64>(),
            expected.nested
        );
        assert!(
            per_key(client, &self.outputs["nested"], |_| true) == wanted,
            "nested: values or their order per key differ"
        );
        assert_eq!(client.count(&self.outputs["late"]), expected.late);
        client.for_each(&self.outputs["late"], |record| {
            let value: serde_json::Value =
                serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("JSON");
            assert!(
                value["delay_minutes"].as_f64().expect("minutes") >= 60.0,
                "{value}"
            );
            assert_eq!(
                value["tail_number"].as_str().map(str::as_bytes),
                record.key.as_deref(),
                "{value}"
            );
            assert!(
                value["scheduled"]
                    .as_str()
                    .expect("a time")
                    .starts_with("2013-"),
                "{value}"
            );
        });
    }
}

fn produce(bootstrap: &str, topic: &str) {
    let file = flights::file();
    let file = file.to_str().expect("a path in UTF-8");
    let arguments = [
        "produce", file, "--topic", topic, "--key", "tailnum", "--header", "carrier", "--header",
        "origin",
    ];
    let done = run_binary(
        std::path::Path::new("."),
        &[
            &arguments[..],
            &["--header", "dest", "--brokers", bootstrap],
        ]
        .concat(),
    );
    assert!(
        done.status.success(),
        "produce: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn outcomes(services: &[&Service], handler: &str, outcome: &str) -> Result<u64, String> {
    services
        .iter()
        .map(|service| service.outcomes(handler, outcome))
        .sum()
}

/// Waits until all handlers have settled everything, and checks the outcomes.
fn wait_settled(services: &[&Service], expected: &Expected) {
    for name in HANDLERS {
        let (acks, drops) = match name {
            "nested" => (expected.nested, 0),
            "late" => (FLIGHTS as u64 - expected.cancelled, expected.cancelled),
            _ => (FLIGHTS as u64, 0),
        };
        let seen = wait_for(
            &format!("{name} to have settled all"),
            COMPLETION_DEADLINE,
            || {
                let seen = (
                    outcomes(services, name, "ack")?,
                    outcomes(services, name, "drop")?,
                );
                if seen.0 + seen.1 >= acks + drops {
                    Ok(seen)
                } else {
                    Err(format!("{seen:?} of {:?}", (acks, drops)))
                }
            },
        );
        assert_eq!(seen, (acks, drops), "{name}: acks and drops");
        assert_eq!(
            outcomes(services, name, "dead_letter").expect("metrics"),
            0,
            "{name}"
        );
    }
}

/// Checks the order in which flights were written, per key, against the file.
fn check_source(client: &Client, source: &str, header: &csv::StringRecord, flights: &[Flight]) {
    let position = |name: &str| {
        header
            .iter()
            .position(|field| field == name)
            .expect("a column")
    };
    let (hour, number) = (position("time_hour"), position("flight"));
    let mut wanted: HashMap<Option<Vec<u8>>, Vec<String>> = HashMap::new();
    for flight in flights {
        let key = flight.tail_number.clone().map(String::into_bytes);
        wanted.entry(key).or_default().push(format!(
            "{} {} {}",
            &flight.row[hour], flight.carrier, &flight.row[number]
        ));
    }
    let mut written: HashMap<Option<Vec<u8>>, Vec<String>> = HashMap::new();
    client.for_each(source, |record| {
        let row: serde_json::Value =
            serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("JSON");
        let text = |name: &str| {
            row[name]
                .as_str()
                .map_or_else(|| row[name].to_string(), str::to_owned)
        };
        written.entry(record.key).or_default().push(format!(
            "{} {} {}",
            text("time_hour"),
            text("carrier"),
            text("flight")
        ));
    });
    for found in [&mut wanted, &mut written] {
        if let Some(unordered) = found.get_mut(&None) {
            unordered.sort();
        }
    }
    assert!(
        wanted == written,
        "the topic does not contain the flights in the file's order per key"
    );
}

#[test]
fn four_handlers_process_every_flight_as_computed_from_the_file() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (header, flights) = flights::read().expect("the flights");
    let expected = Expected::of(&flights);
    let source = unique("flights");
    client.create_topic(&source, PARTITIONS);
    produce(kafka.bootstrap(), &source);
    assert_eq!(client.count(&source), FLIGHTS as u64);
    check_source(&client, &source, &header, &flights);

    let setting = Setting::new(&client, kafka.bootstrap(), &source);
    let mut service = Service::ready(&setting.workdir, &[]);
    wait_settled(&[&service], &expected);
    client.wait_committed(&setting.group, &source, COMPLETION_DEADLINE);
    assert!(service.stop(Duration::from_secs(60)).success());
    setting.check(&client, &source, &expected);

    let mut again = Service::ready(&setting.workdir, &[]);
    again.wait_caught_up(COMPLETION_DEADLINE);
    assert_eq!(
        again.consumed().expect("metrics"),
        0,
        "nothing is handled twice"
    );
    assert!(again.stop(Duration::from_secs(60)).success());
    assert_eq!(client.count(&setting.outputs["everything"]), FLIGHTS as u64);
}

#[test]
fn two_processes_share_the_flights_and_repeat_none() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (_, flights) = flights::read().expect("the flights");
    let expected = Expected::of(&flights);
    let source = unique("flights");
    client.create_topic(&source, PARTITIONS);
    let setting = Setting::new(&client, kafka.bootstrap(), &source);
    let mut first = Service::ready(&setting.workdir, &[]);
    let mut second = Service::ready(&setting.workdir, &[]);
    wait_for("both to have partitions", COMPLETION_DEADLINE, || {
        let counts = [&first, &second].map(|service| {
            service
                .api("partitions")
                .map(|list| list.as_array().map_or(0, Vec::len))
        });
        match counts {
            [Ok(one), Ok(two)] if one > 0 && two > 0 && one + two == PARTITIONS as usize => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    produce(kafka.bootstrap(), &source);
    wait_settled(&[&first, &second], &expected);
    client.wait_committed(&setting.group, &source, COMPLETION_DEADLINE);
    assert!(
        first.consumed().expect("metrics") > 0 && second.consumed().expect("metrics") > 0,
        "both took part"
    );
    assert!(first.stop(Duration::from_secs(60)).success());
    second.wait_caught_up(COMPLETION_DEADLINE);
    assert!(second.stop(Duration::from_secs(60)).success());
    setting.check(&client, &source, &expected);

    let mut again = Service::ready(&setting.workdir, &[]);
    again.wait_caught_up(COMPLETION_DEADLINE);
    assert_eq!(
        again.consumed().expect("metrics"),
        0,
        "nothing is handled twice"
    );
    assert!(again.stop(Duration::from_secs(60)).success());
}
