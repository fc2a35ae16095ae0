//! Situation: records of few keys are relayed while the output topic refuses some: it is deleted and created again, or its maximum
//! size is too small for every hundredth record.
//! Property: nothing is lost, only what can never be written is dead-lettered, and the last copies of each key are in the order of its
//! records (G1, G4, G7).
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario relaying`, and with `--long` 100,000 records

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::Kafka;
use e2e::long;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(240);
const KEYS: u64 = 20;

struct Relay {
    client: Client,
    source: String,
    copies: String,
    letters: String,
    group: String,
    workdir: Workdir,
}

/// A service that is going to relay records of a new topic to one with these settings.
fn relay(settings: &[(&str, &str)]) -> Relay {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, group) = (unique("relayed"), unique("group"));
    let (copies, letters) = (format!("{source}.copies"), format!("{source}.dlt"));
    client.create_topic(&source, 3);
    client.create_topic(&letters, 1);
    client.create_topic_with(&copies, 3, 1, settings);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        &format!(
            "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n\
             dead_letter: {{ topic: \"{{topic}}.dlt\", create: false }}\nconfig: {{ topic: {copies} }}\n"
        ),
    );
    Relay {
        client,
        source,
        copies,
        letters,
        group,
        workdir,
    }
}

fn records() -> u64 {
    if long() { 100_000 } else { 12_000 }
}

/// The number at the beginning of a value.
fn number_of(record: &Read) -> u64 {
    let text = record.text();
    let number = text.split(' ').next().map(str::parse);
    number
        .and_then(Result::ok)
        .unwrap_or_else(|| panic!("a value without a number: {text:.40}"))
}

fn numbers(records: &[Read]) -> BTreeSet<u64> {
    records.iter().map(number_of).collect()
}

/// The last copies of each key are in the order of its records.
fn assert_last_copies_in_order(copies: &[Read]) {
    let mut last: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for (place, copy) in copies.iter().enumerate() {
        last.insert((copy.key_text(), number_of(copy)), place);
    }
    let mut before: Option<(&(String, u64), usize)> = None;
    for (copy, &place) in &last {
        if let Some((earlier, written)) = before
            && earlier.0 == copy.0
        {
            assert!(written < place, "{copy:?} is written before {earlier:?}");
        }
        before = Some((copy, place));
    }
}

#[test]
fn records_that_are_too_large_are_dead_lettered_and_the_others_keep_their_order() {
    let relay = relay(&[("max.message.bytes", "10000")]);
    let mut service = Service::ready(&relay.workdir, &[]);
    let is_bad = |number: u64| number % 100 == 37;
    let record = |number: u64| {
        let size = if is_bad(number) { 20_000 } else { 10 };
        let value = format!("{number} {}", "x".repeat(size));
        Outgoing::new(&format!("k{}", number % KEYS), value)
    };
    relay
        .client
        .produce(&relay.source, (0..records()).map(record));
    relay
        .client
        .wait_committed(&relay.group, &relay.source, DEADLINE);
    let expected = |bad: bool| (0..records()).filter(move |number| is_bad(*number) == bad);
    let letters = relay.client.read(&relay.letters);
    assert_eq!(numbers(&letters), expected(true).collect());
    assert_eq!(letters.len() as u64, records() / 100, "each once");
    let copies = relay.client.read(&relay.copies);
    assert_eq!(numbers(&copies), expected(false).collect());
    assert_last_copies_in_order(&copies);
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_topic_that_is_deleted_and_created_again_gets_the_rest_in_order() {
    let relay = relay(&[]);
    let mut service = Service::ready(&relay.workdir, &[]);
    let parts = 4;
    let size = records() / parts;
    for part in 0..parts {
        if part > 0 {
            // Some are refused, some are deleted with the topic.
            relay.client.delete_topic(&relay.copies);
        }
        let record =
            |number: u64| Outgoing::new(&format!("k{}", number % KEYS), number.to_string());
        let numbers = part * size..(part + 1) * size;
        relay.client.produce(&relay.source, numbers.map(record));
        if part == 0 {
            continue;
        }
        wait_for("a refusal by the missing topic", DEADLINE, || {
            let metrics = service.metrics()?;
            let refused = metrics.sum("sluicegate_handler_refused_records", &[("handler", "copy")]);
            match refused > 0.0 {
                true => Ok(()),
                false => Err(format!("{refused} records wait")),
            }
        });
        relay.client.create_topic(&relay.copies, 3);
    }
    relay
        .client
        .wait_committed(&relay.group, &relay.source, DEADLINE);
    assert_eq!(relay.client.count(&relay.letters), 0);
    let copies = relay.client.read(&relay.copies);
    let last_part: BTreeSet<u64> = ((parts - 1) * size..parts * size).collect();
    assert!(
        numbers(&copies).is_superset(&last_part),
        "everything that was produced after the last deletion is there"
    );
    assert_last_copies_in_order(&copies);
    assert!(service.stop(DEADLINE).success());
}
