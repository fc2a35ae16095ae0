//! Situation: a thousand handlers of one plugin in one process, in one shared pool, each routed by one of 500 header values.
//! Property: the service is ready within seconds using less than 200 MiB, and every record reaches exactly its two handlers.
//! Alone: its start is measured in seconds.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario thousand_handlers`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::workdir::Workdir;

const HANDLERS: usize = 1000;
const VALUES: usize = 500;
const RECORDS: usize = 5_000;
const DEADLINE: Duration = Duration::from_secs(120);
const READY_DEADLINE: Duration = Duration::from_secs(30);
const MEMORY: u64 = 200 << 20;

#[test]
fn every_record_reaches_its_two_handlers_of_a_thousand() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("many"), unique("copy"), unique("group"));
    client.create_topic(&source, 6);
    client.create_topic(&copy, 6);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay"]);
    for number in 0..HANDLERS {
        workdir.spec(
            &format!("h{number}"),
            &format!(
                "plugin: relay\nversion: \"*\"\npool: small\nworkers: 2\n\
                 route: {{ topics: [{source}], when: {{ header: tenant, equals: t{} }} }}\n\
                 config: {{ topic: {copy}, set_headers: {{ by: h{number} }} }}\n",
                number % VALUES
            ),
        );
    }
    let begun = Instant::now();
    let mut service = Service::ready(&workdir, &[]);
    let ready_after = begun.elapsed();
    assert!(ready_after < READY_DEADLINE, "ready after {ready_after:?}");
    client.produce(
        &source,
        (0..RECORDS).map(|number| {
            Outgoing::new(&format!("k{}", number % 97), number.to_string())
                .header("tenant", format!("t{}", number % VALUES))
        }),
    );
    client.wait_committed(&group, &source, DEADLINE);
    let resident = service
        .process()
        .resident_bytes()
        .expect("the process runs");
    println!(
        "ready after {ready_after:?}, {} MiB resident",
        resident >> 20
    );
    assert!(resident < MEMORY, "{} MiB resident", resident >> 20);
    assert!(service.stop(DEADLINE).success());

    let mut reached: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for record in client.read(&copy) {
        let number = record.text().parse().expect("a number");
        reached
            .entry(number)
            .or_default()
            .push(record.header("by").expect("the handler's mark"));
    }
    assert_eq!(reached.len(), RECORDS);
    for (number, mut handlers) in reached {
        handlers.sort();
        let tenant = number % VALUES;
        let mut wanted = [format!("h{tenant}"), format!("h{}", tenant + VALUES)];
        wanted.sort();
        assert_eq!(handlers, wanted, "record {number}");
    }
}
