//! Situation: the handler of a topic of 10 KB records trips and holds them, with the default memory; another topic has a
//! handler of its own.
//! Property: the other topic keeps its pace, the held partitions say that memory is why they are paused, and they resume
//! once the handler is restarted (G8, G14).
//! Alone: the time that records take is measured.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario pace`

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const DEADLINE: Duration = Duration::from_secs(120);
/// Twice the default memory.
const LARGE: u64 = 50_000;
const SMALL: u64 = 100_000;
const ROUNDS: u64 = 3;
const PARTITIONS: i32 = 3;

struct Stage {
    client: Client,
    workdir: Workdir,
    service: Service,
    large: String,
    small: String,
    rounds: u64,
}

impl Stage {
    fn new() -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (large, small, group) = (unique("large"), unique("small"), unique("group"));
        for topic in [&large, &small] {
            client.create_topic(topic, PARTITIONS);
        }
        let workdir = Workdir::new(kafka.bootstrap(), &group, "");
        workdir.plugins(&["misbehave"]);
        let spec = |topic: &str, more: &str| {
            format!("plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\n{more}")
        };
        workdir.spec("good", &spec(&small, "config: { rules: [] }\n"));
        // As often as it takes to trip, and not again.
        let panics = "workers: 1\nrestart: { max_restarts: 2, restart_window: 1m }\nretry: { max_attempts: 100 }\n\
                      config: { rules: [ { when: { one_in: 1 }, do: panic, times: 3 } ] }\n";
        workdir.spec("failing", &spec(&large, panics));
        let service = Service::ready(&workdir, &[]);
        Self {
            client,
            workdir,
            service,
            large,
            small,
            rounds: 0,
        }
    }

    /// Produces and waits, several times. Returns the records per second, from the first that is produced to the last that
    /// is handled, and the share of that time in which they were produced: the producer may be what is slow.
    fn pace(&mut self) -> (f64, f64) {
        let (mut producing, mut handling) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            self.rounds += 1;
            let value = vec![b'x'; 1_000];
            let records =
                (0..SMALL).map(|number| Outgoing::new(&format!("k{number}"), value.clone()));
            let begun = Instant::now();
            self.client.produce(&self.small, records);
            producing += begun.elapsed().as_secs_f64();
            let all = self.rounds * SMALL;
            self.service.wait_outcomes("good", "ack", all, DEADLINE);
            handling += begun.elapsed().as_secs_f64();
        }
        ((ROUNDS * SMALL) as f64 / handling, producing / handling)
    }

    fn wait_paused(&self, count: usize) {
        wait_for("the held partitions to be paused", DEADLINE, || {
            let rows = self.service.partitions()?;
            let paused = rows
                .iter()
                .filter(|row| row["topic"] == self.large.as_str() && row["paused_for"] == "memory");
            match paused.count() {
                paused if paused == count => Ok(()),
                paused => Err(format!("{paused} are paused")),
            }
        });
    }
}

#[test]
fn a_failed_handler_of_large_records_leaves_other_topics_their_pace() {
    let mut stage = Stage::new();
    let before = stage.pace();
    let large = vec![b'x'; 10_000];
    let records = (0..LARGE).map(|number| Outgoing::new(&format!("k{number}"), large.clone()));
    stage.client.produce(&stage.large, records);
    stage.wait_paused(PARTITIONS as usize);
    let failing = stage.service.api("handlers/failing").expect("a handler");
    assert_eq!(failing["state"], "FAILED");
    let next_to_it = stage.pace();
    println!(
        "records per second, share of producing: {before:?}, {next_to_it:?} next to a failed handler"
    );
    assert!(next_to_it.1 >= 0.8 * before.1, "{next_to_it:?} {before:?}");

    let restart = [
        "handlers",
        "restart",
        "failing",
        "--admin",
        stage.service.admin(),
    ];
    let done = run_binary(stage.workdir.path(), &restart);
    assert!(done.status.success(), "{done:?}");
    stage
        .service
        .wait_outcomes("failing", "ack", LARGE, DEADLINE);
    stage.wait_paused(0);
    assert!(stage.service.stop(Duration::from_secs(30)).success());
}
