//! Situation: an async handler with one worker waits for each record of a backlog: 64 records at a time for 20 ms, and 256 or 4,096
//! at a time for 1 ms.
//! Property: the waits overlap as they do in a plain loop with as many concurrent waits: little is lost between the calls, and what
//! records cost besides is bounded.
//! Alone: rates are measured.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario waits`

use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(180);
const PARTITIONS: i32 = 6;
/// Share of the possible rate that the service must reach in one of several rounds.
const MIN_SHARE: f64 = 0.9;
const ROUNDS: usize = 3;
/// Share of the ideal rate that a plain loop reaches unless the machine is busy.
const IDLE_LOOP: f64 = 0.94;

/// Waits of one record each.
#[derive(Clone, Copy, Debug)]
struct Waits {
    concurrency: usize,
    wait: Duration,
    records: u64,
}

impl Waits {
    /// Waits per second, if nothing else takes time.
    fn ideal(self) -> f64 {
        self.concurrency as f64 / self.wait.as_secs_f64()
    }

    /// Waits per second of a plain loop, on a runtime as that of an async handler.
    fn plain(self) -> f64 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let begun = Instant::now();
            let (mut started, mut running) = (0, FuturesUnordered::new());
            loop {
                while started < self.records && running.len() < self.concurrency {
                    started += 1;
                    running.push(tokio::time::sleep(self.wait));
                }
                if running.next().await.is_none() {
                    return self.records as f64 / begun.elapsed().as_secs_f64();
                }
            }
        })
    }

    /// Records per second of the service.
    fn service(self) -> f64 {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (topic, group) = (unique("waited"), unique("group"));
        client.create_topic(&topic, PARTITIONS);
        let records = (0..self.records).map(|number| Outgoing::new(&format!("k{number}"), "x"));
        client.produce(&topic, records);
        let workdir = Workdir::new(kafka.bootstrap(), &group, "");
        workdir.plugins(&["misbehave"]);
        workdir.spec(
            "waiting",
            &format!(
                "plugin: misbehave/misbehave-wait\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nworkers: 1\n\
                 max_in_flight: {{ records: 32768 }}\n\
                 config: {{ wait_ms: {}, concurrency: {} }}\n",
                self.wait.as_millis(),
                self.concurrency
            ),
        );
        let mut service = Service::ready(&workdir, &[]);
        let acked = || service.outcomes("waiting", "ack").expect("an answer");
        // The first calls are small, until their cost is known.
        service.wait_outcomes("waiting", "ack", self.records / 10, DEADLINE);
        let (begun, first) = (Instant::now(), acked());
        service.wait_outcomes("waiting", "ack", self.records, DEADLINE);
        let rate = (self.records - first) as f64 / begun.elapsed().as_secs_f64();
        assert!(service.stop(DEADLINE).success());
        rate
    }
}

/// What was measured, in waits per second.
struct Rates {
    ideal: f64,
    plain: f64,
    service: f64,
}

fn compare(waits: Waits) -> Rates {
    let rates = Rates {
        ideal: waits.ideal(),
        plain: waits.plain(),
        service: waits.service(),
    };
    println!(
        "    {} waits of {:?}: ideal {:.0} per second, plain loop {:.0}, service {:.0}: {:.2} of the ideal rate, {:.2} of the loop's",
        waits.concurrency,
        waits.wait,
        rates.ideal,
        rates.plain,
        rates.service,
        rates.service / rates.ideal,
        rates.service / rates.plain,
    );
    rates
}

/// Timers end at whole milliseconds, so that a wait of 20 ms takes 21 ms: a plain loop has 0.95 of the ideal rate on an idle
/// machine. On one where it has less, even without the service, the service is compared with the loop.
#[test]
fn waits_of_20_ms_overlap_with_hardly_a_gap() {
    let waits = Waits {
        concurrency: 64,
        wait: Duration::from_millis(20),
        records: 32_000,
    };
    let has_passed = (0..ROUNDS).any(|_| {
        let rates = compare(waits);
        let possible = match rates.plain >= IDLE_LOOP * rates.ideal {
            true => rates.ideal,
            false => rates.plain,
        };
        rates.service >= MIN_SHARE * possible
    });
    assert!(
        has_passed,
        "less than {MIN_SHARE} in each of {ROUNDS} rounds"
    );
}

#[test]
fn short_waits_are_limited_by_what_records_cost() {
    for (concurrency, min_share) in [(256, 0.25), (4_096, 0.05)] {
        let rates = compare(Waits {
            concurrency,
            wait: Duration::from_millis(1),
            records: 300_000,
        });
        let share = rates.service / rates.plain;
        assert!(share >= min_share, "{concurrency}: {share} of the loop's");
    }
}
