//! Situation: a handler blocks for a long time while far more data waits in Kafka than fits into memory.
//! Property: resident memory stays below the byte budget plus 10 %, polling continues (the group does not rebalance), and
//! afterwards every record is handled once (G8).
//! Alone: the memory of the process is measured under load.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario memory`, and with `--long` 3 GB and a minute

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;
use e2e::{long, unique};

const PARTITIONS: i32 = 6;
const VALUE: usize = 10_000;
const BUDGET: u64 = 256 << 20;
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_blocked_handler_does_not_exhaust_the_memory() {
    let (records, stop) = if long() {
        (300_000, Duration::from_secs(60))
    } else {
        (60_000, Duration::from_secs(20))
    };
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, group) = (unique("waiting"), unique("group"));
    client.create_topic(&source, PARTITIONS);
    // Incompressible values, so that the size in Kafka equals the size in memory.
    let value = |number: u64| -> Vec<u8> {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(VALUE).collect()
    };
    client.produce(
        &source,
        (0..records).map(|number| Outgoing::new(&format!("k{}", number % 1000), value(number))),
    );

    let workdir = Workdir::new(
        kafka.bootstrap(),
        &group,
        "  memory: 256MiB\n  max_uncommitted: 1000000\n",
    );
    workdir.plugins(&["misbehave"]);
    workdir.spec(
        "stops",
        &format!(
            "plugin: misbehave\nversion: \"*\"\nworkers: 1\ntimeout: 5m\n\
             max_in_flight: {{ records: 1000000, bytes: 4GiB }}\nroute: {{ topics: [{source}] }}\n\
             config: {{ rules: [ {{ when: {{ one_in: 1 }}, do: sleep, for: {}s, times: 1 }} ] }}\n",
            stop.as_secs()
        ),
    );
    // A member that does not poll for this long is removed from the group, and its partitions get a new epoch.
    let short = [
        "--set",
        "kafka.client.session.timeout.ms=6000",
        "--set",
        "kafka.client.max.poll.interval.ms=10000",
    ];
    let mut service = Service::ready(&workdir, &short);
    wait_for("the budget to be used", DEADLINE, || {
        let used = service.metrics()?.sum("sluicegate_in_flight_bytes", &[]) as u64;
        // Half of the memory is for records in flight; slow partitions fill at least three quarters of that.
        if used > BUDGET / 2 / 4 * 3 {
            Ok(())
        } else {
            Err(format!("{used} bytes in flight"))
        }
    });
    let epochs = epochs(&service);
    assert_eq!(epochs.len(), PARTITIONS as usize);
    let mut peak = 0;
    let check = Instant::now();
    stays(
        "the memory bound",
        stop.saturating_sub(Duration::from_secs(4)),
        || {
            let resident = service
                .process()
                .resident_bytes()
                .ok_or("the process is gone")?;
            peak = peak.max(resident);
            if resident <= BUDGET + BUDGET / 10 {
                Ok(())
            } else {
                Err(format!("{} MiB resident", resident >> 20))
            }
        },
    );
    println!(
        "peak {} MiB resident over {:?}, {} MB waiting",
        peak >> 20,
        check.elapsed(),
        records * VALUE as u64 / 1_000_000
    );
    service.wait_outcomes("stops", "ack", records, stop + Duration::from_secs(240));
    client.wait_committed(&group, &source, DEADLINE);
    assert_eq!(self::epochs(&service), epochs, "the group has rebalanced");
    assert_eq!(
        service.consumed().expect("metrics"),
        records,
        "everything is read once"
    );
    assert!(service.stop(DEADLINE).success());
}

fn epochs(service: &Service) -> Vec<(i64, i64)> {
    let partitions = service.api("partitions").expect("the partitions");
    let rows = partitions.as_array().expect("a list");
    let mut epochs: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["partition"].as_i64().expect("a number"),
                row["epoch"].as_i64().expect("a number"),
            )
        })
        .collect();
    epochs.sort_unstable();
    epochs
}
