//! Situation: a handler trips, or hangs in endless calls, next to a good one on the same topic; the operator restarts
//! it, switches it off, or deletes it.
//! Property: a restart makes it handle its records; switched off or deleted it releases its partitions within the drain
//! timeout, counted, while other topics continue and readiness reports the state (G1, G8, G14).
//! Needs: Kafka.
//! Mostly waits: for backoff.
//! Command: `cargo xtask test --scenario failed_handlers`

use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const RECORDS: u64 = 3_000;
/// Fewer than `RECORDS`, so that a held partition stops.
const MAX_UNCOMMITTED: u64 = 500;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(60);

struct Stage {
    client: Client,
    workdir: Workdir,
    service: Service,
    /// Read by the good handler and the failing one.
    shared: String,
    /// Read only by another good handler.
    other: String,
    group: String,
}

impl Stage {
    /// A service with the handler `failing` on the shared topic; `spec` is the rest of its spec.
    fn new(spec: &str) -> Self {
        Self::with("", spec)
    }

    /// As [`Self::new`], with further settings of `processing`.
    fn with(more: &str, spec: &str) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (shared, other, group) = (unique("shared"), unique("other"), unique("group"));
        client.create_topic(&shared, 3);
        client.create_topic(&other, 3);
        let copies = unique("copies");
        client.create_topic(&copies, 3);
        let bounds = format!(
            "  max_uncommitted: {MAX_UNCOMMITTED}\n  drain_timeout: {DRAIN_TIMEOUT:?}\n{more}"
        );
        let workdir = Workdir::new(kafka.bootstrap(), &group, &bounds);
        workdir.plugins(&["relay", "misbehave"]);
        for (name, topic) in [("good", &shared), ("other", &other)] {
            workdir.spec(
                name,
                &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {copies} }}\n"),
            );
        }
        let failing =
            format!("plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{shared}] }}\n{spec}");
        workdir.spec("failing", &failing);
        let service = Service::ready(&workdir, &[]);
        Self {
            client,
            workdir,
            service,
            shared,
            other,
            group,
        }
    }

    fn produce(&self, topic: &str) {
        self.client.produce(
            topic,
            (0..RECORDS)
                .map(|number| Outgoing::new(&format!("k{}", number % 50), number.to_string())),
        );
    }

    /// Runs `sluicegate handlers …` on the running service; returns whether it succeeded, and its output.
    fn handlers(&self, arguments: &[&str]) -> (bool, String) {
        let all = [&["handlers"], arguments, &["--admin", self.service.admin()]].concat();
        let done = run_binary(self.workdir.path(), &all);
        let said = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn ready(&self) -> (u16, String) {
        self.service.get("/readyz").expect("an answer")
    }

    fn wait_state(&self, state: &str) {
        wait_for(&format!("`failing` to be {state}"), DEADLINE, || {
            let failing = self.service.api("handlers/failing")?;
            match failing["state"] == state {
                true => Ok(()),
                false => Err(failing["state"].to_string()),
            }
        });
    }

    /// Waits until the handler has failed, its records stop its topic, and the other topic continues.
    fn wait_failed_and_held(&self) {
        self.wait_state("FAILED");
        let (status, why) = self.ready();
        // The service stays ready, because a rollout that waits for this handler would wait forever.
        assert!(
            status == 200 && why.contains("handler `failing` has failed"),
            "{status} {why}"
        );
        self.produce(&self.other);
        self.client
            .wait_committed(&self.group, &self.other, DEADLINE);
        let committed: i64 = self
            .client
            .committed(&self.group, &self.shared)
            .values()
            .sum();
        assert!(
            committed < RECORDS as i64,
            "{committed} committed although the partition is held"
        );
    }

    /// Waits until the shared topic is committed to its end, soon after the drain timeout, counted from `since`.
    fn wait_freed(&self, since: Instant) {
        self.client
            .wait_committed(&self.group, &self.shared, DEADLINE);
        let took = since.elapsed();
        assert!(
            took < DRAIN_TIMEOUT + Duration::from_secs(7),
            "released after {took:?}"
        );
    }

    fn stop(mut self) {
        let status = self.service.stop(DRAIN_TIMEOUT + Duration::from_secs(20));
        assert!(status.success(), "{status}");
    }
}

/// Every call panics.
const PANICS: &str = "workers: 2\nrestart: { max_restarts: 2, restart_window: 1m }\nretry: { max_attempts: 100 }\n\
                      config: { rules: [ { when: { one_in: 1 }, do: panic } ] }\n";

#[test]
fn a_restarted_handler_continues_with_its_records() {
    // One worker: a later successful call on another one would reset the failure count.
    let stage = Stage::new(
        "workers: 1\nrestart: { max_restarts: 2, restart_window: 1m }\nretry: { max_attempts: 100, backoff: { delay: 10ms } }\n\
         config: { rules: [ { when: { one_in: 1 }, do: panic, times: 3 } ] }\n",
    );
    stage.produce(&stage.shared);
    stage.wait_failed_and_held();
    let (done, said) = stage.handlers(&["restart", "failing", "--output", "table"]);
    assert!(done && said.contains("is restarted: generation"), "{said}");
    stage
        .service
        .wait_outcomes("failing", "ack", RECORDS, DEADLINE);
    stage
        .client
        .wait_committed(&stage.group, &stage.shared, DEADLINE);
    stage.wait_state("ACTIVE");
    assert_eq!(stage.ready().0, 200);
    assert_eq!(stage.service.outcomes("failing", "skipped"), Ok(0));
    let (done, said) = stage.handlers(&["restart", "missing"]);
    assert!(!done && said.contains("no handler `missing`"), "{said}");
    stage.stop();
}

#[test]
fn a_tripped_handler_that_is_switched_off_releases_its_partitions() {
    let stage = Stage::new(PANICS);
    stage.produce(&stage.shared);
    stage.wait_failed_and_held();
    let off = Instant::now();
    let (done, said) = stage.handlers(&["off", "failing"]);
    assert!(done, "{said}");
    stage.wait_freed(off);
    assert_eq!(stage.service.outcomes("failing", "skipped"), Ok(RECORDS));
    assert_eq!(stage.ready().0, 200);
    stage.stop();
}

#[test]
fn a_tripped_handler_that_is_deleted_releases_its_partitions_and_is_removed() {
    let stage = Stage::new(PANICS);
    stage.produce(&stage.shared);
    stage.wait_failed_and_held();
    let deleted = Instant::now();
    stage.workdir.remove("handlers.d/failing.yaml");
    stage.wait_freed(deleted);
    wait_for("`failing` to be gone", DEADLINE, || {
        match stage.service.get("/api/v1/handlers/failing")? {
            (404, _) => Ok(()),
            (status, body) => Err(format!("{status}: {body}")),
        }
    });
    assert_eq!(stage.ready().0, 200);
    stage.stop();
}

#[test]
fn hanging_calls_are_abandoned_when_their_handler_is_deleted() {
    let stage = Stage::new(
        "workers: 2\ntimeout: 1h\nconfig: { rules: [ { when: { one_in: 1 }, do: hang } ] }\n",
    );
    stage.produce(&stage.shared);
    wait_for("calls to hang", DEADLINE, || {
        let failing = stage.service.api("handlers/failing")?;
        match failing["busy"].as_u64() {
            Some(2) => Ok(()),
            busy => Err(format!("{busy:?}")),
        }
    });
    let deleted = Instant::now();
    stage.workdir.remove("handlers.d/failing.yaml");
    wait_for("the command to report the delete", DRAIN_TIMEOUT, || {
        let (_, said) = stage.handlers(&["restart", "failing"]);
        match said.contains("is deleted; it has") {
            true => Ok(()),
            false => Err(said),
        }
    });
    stage.wait_freed(deleted);
    assert_eq!(
        stage
            .service
            .get("/api/v1/handlers/failing")
            .expect("an answer")
            .0,
        404
    );
    stage.stop();
}

#[test]
fn a_held_handler_leaves_memory_to_topics_that_it_does_not_read() {
    // Half of the memory is for records in flight: 4 MiB.
    let stage = Stage::with("  memory: 8MiB\n", PANICS);
    let large = vec![b'x'; 10_000];
    stage.client.produce(
        &stage.shared,
        (0..RECORDS).map(|number| Outgoing::new(&format!("k{number}"), large.clone())),
    );
    stage.wait_state("FAILED");
    wait_for(
        "the held partitions to be paused for memory",
        DEADLINE,
        || {
            let partitions = stage.service.partitions()?;
            let held: Vec<_> = partitions
                .iter()
                .filter(|row| row["topic"] == stage.shared.as_str())
                .collect();
            match held.iter().any(|row| row["paused_for"] == "memory") {
                true => Ok(()),
                false => Err(format!("{held:?}")),
            }
        },
    );
    for round in 0..3 {
        stage.produce(&stage.other);
        let begun = Instant::now();
        stage
            .client
            .wait_committed(&stage.group, &stage.other, DEADLINE);
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(15),
            "round {round} took {took:?}"
        );
    }
    let metrics = stage.service.metrics().expect("metrics");
    let held = metrics.sum("sluicegate_in_flight_bytes", &[]);
    assert!(held <= 4.0 * 1_048_576.0 * 1.1, "{held} bytes are held");
    let off = Instant::now();
    let (done, said) = stage.handlers(&["off", "failing"]);
    assert!(done, "{said}");
    stage.wait_freed(off);
    wait_for("nothing to be paused", DEADLINE, || {
        let partitions = stage.service.partitions()?;
        let paused = partitions.iter().find(|row| !row["paused_for"].is_null());
        paused.map_or(Ok(()), |row| Err(row.to_string()))
    });
    stage.stop();
}
