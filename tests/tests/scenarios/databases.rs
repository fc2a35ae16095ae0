//! Situation: `auditor` writes a backlog and then a steady 5,000 records per second to PostgreSQL, which is stopped or frozen for a
//! while under load.
//! Property: calls write many rows per transaction while records wait; an outage fails no handler, dead-letters nothing and
//! leaves another topic its pace; afterwards every record has one row, and the handler is active within seconds (G1, G8, G14).
//! Alone: rates are measured.
//! Needs: Kafka and PostgreSQL of its own.
//! Takes: 170 s.
//! Command: `cargo xtask test --scenario databases`; with `--long` outages take 60 s instead of 20 s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::postgres::{Postgres, Stop};
use e2e::service::Service;
use e2e::steady::{Load, Steady};
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;
use e2e::{long, unique};

const DEADLINE: Duration = Duration::from_secs(180);
const PARTITIONS: i32 = 6;
const BACKLOG: u64 = 200_000;
/// Records per second of each load.
const RATE: u64 = 5_000;
/// Records of the steady load, in 20 s.
const STEADY_LOAD: u64 = 20 * RATE;
const MIN_ROWS_PER_TRANSACTION: f64 = 50.0;
const MIN_ROWS_OF_ONE_WORKER: f64 = 25.0;
/// How soon after an outage records must succeed again.
const FIRST_DEADLINE: Duration = Duration::from_secs(15);
/// How soon after an outage the handler must be active: each health check, 5 s apart, builds missing instances.
const ACTIVE_DEADLINE: Duration = Duration::from_secs(15);

fn record(number: u64) -> Outgoing {
    let value = format!("{number} {}", "x".repeat(200));
    Outgoing::new(&format!("k{}", number % 1_009), value).header("number", number.to_string())
}

/// A service with `auditor` on one topic and `relay` on another.
struct Stage {
    client: Client,
    postgres: Postgres,
    workdir: Workdir,
    audited: String,
    relayed: String,
    letters: String,
    group: String,
}

impl Stage {
    /// `spec` is added to the spec of `auditor`.
    fn new(spec: &str) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let postgres = Postgres::start().unwrap_or_else(|error| panic!("{error:#}"));
        let (audited, relayed) = (unique("audited"), unique("relayed"));
        let (copies, letters) = (format!("{relayed}.copies"), format!("{audited}.dlt"));
        for topic in [&audited, &relayed, &copies, &letters] {
            client.create_topic(topic, PARTITIONS);
        }
        let group = unique("group");
        let workdir = Workdir::new(kafka.bootstrap(), &group, "");
        workdir.plugins(&["auditor", "relay"]);
        workdir.spec(
            "audit",
            &format!(
                "plugin: auditor\nversion: \"*\"\nroute: {{ topics: [{audited}] }}\n{spec}\
                 config: {{ url: \"{}\" }}\n",
                postgres.url()
            ),
        );
        workdir.spec(
            "copy",
            &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{relayed}] }}\nconfig: {{ topic: {copies} }}\n"),
        );
        Self {
            client,
            postgres,
            workdir,
            audited,
            relayed,
            letters,
            group,
        }
    }

    fn load(&self, topic: &str) -> Load {
        Load::start(&self.client, topic, Steady::new(RATE), record)
    }

    fn written(&self) -> Written {
        let count = |what: &str| {
            self.postgres
                .number(&format!("SELECT count({what}) FROM audit"))
        };
        Written {
            rows: count("*"),
            // Those that have written a row.
            transactions: count("DISTINCT xmin::text"),
        }
    }

    /// Every record has one row.
    fn assert_complete(&self, records: u64) {
        self.client
            .wait_committed(&self.group, &self.audited, DEADLINE);
        let distinct = "SELECT count(DISTINCT headers) FROM audit";
        assert_eq!(self.postgres.number(distinct), records, "all are there");
        assert_eq!(self.written().rows, records, "none is there twice");
        assert_eq!(self.client.count(&self.letters), 0, "no dead letters");
    }
}

/// Rows per transaction of what is written between two counts.
struct Written {
    rows: u64,
    transactions: u64,
}

impl Written {
    fn per_transaction(&self) -> f64 {
        self.rows as f64 / self.transactions as f64
    }
}

/// Lets the handler write a backlog, and then records at a steady rate. Returns the rows per transaction of the backlog.
fn write_backlog_and_steady_load(name: &str, spec: &str) -> f64 {
    let stage = Stage::new(spec);
    stage
        .client
        .produce(&stage.audited, (0..BACKLOG).map(record));
    let mut service = Service::ready(&stage.workdir, &[]);
    service.wait_outcomes("audit", "ack", 1, DEADLINE);
    let (begun, first) = (Instant::now(), service.outcomes("audit", "ack"));
    service.wait_outcomes("audit", "ack", BACKLOG, DEADLINE);
    let rate = (BACKLOG - first.unwrap_or(0)) as f64 / begun.elapsed().as_secs_f64();
    let backlog = stage.written().per_transaction();
    println!("    {name}: backlog: {rate:.0} rows/s, {backlog:.0} rows per transaction");
    stage.assert_complete(BACKLOG);

    let _ = stage.postgres.query("TRUNCATE audit");
    let mut load = stage.load(&stage.audited);
    wait_for("the steady load", DEADLINE, || match load.made() {
        made if made >= STEADY_LOAD => Ok(()),
        made => Err(format!("{made} records")),
    });
    let made = load.end();
    service.wait_outcomes("audit", "ack", BACKLOG + made, DEADLINE);
    let steady = stage.written().per_transaction();
    println!("    {name}: {RATE} records/s: {made} rows, {steady:.1} rows per transaction");
    stage.assert_complete(made);
    assert!(service.stop(DEADLINE).success());
    backlog
}

#[test]
fn calls_with_a_backlog_write_many_rows_per_transaction() {
    let by_default = write_backlog_and_steady_load("4 workers, by key", "");
    assert!(by_default >= MIN_ROWS_PER_TRANSACTION, "{by_default}");
}

/// Commits do not overlap: the fixed cost of a call is lower, and so is the number of rows that make it negligible.
#[test]
fn one_worker_writes_a_backlog_with_many_rows_per_transaction() {
    let one =
        write_backlog_and_steady_load("1 worker, unordered", "order: unordered\nworkers: 1\n");
    assert!(one >= MIN_ROWS_OF_ONE_WORKER, "{one}");
}

/// What was observed of a handler.
#[derive(Default)]
struct Observed {
    /// How long it was first seen in each state.
    states: BTreeMap<String, Duration>,
    since: Option<Instant>,
}

impl Observed {
    fn observe(&mut self, service: &Service) -> Result<String, String> {
        let handler = service.api("handlers/audit")?;
        let state = handler["state"].as_str().unwrap_or_default().to_owned();
        assert_ne!(state, "FAILED", "{handler}");
        let since = self.since.get_or_insert_with(Instant::now);
        self.states.entry(state.clone()).or_insert(since.elapsed());
        Ok(state)
    }
}

/// Makes the database unavailable under load with `begin`, ends that with `end`, and compares what is there afterwards.
fn endure(mut stage: Stage, name: &str, begin: fn(&mut Postgres), end: fn(&mut Postgres)) {
    let mut service = Service::ready(&stage.workdir, &[]);
    let mut audited = stage.load(&stage.audited);
    let mut relayed = stage.load(&stage.relayed);
    service.wait_outcomes("audit", "ack", 2 * RATE, DEADLINE);
    service.wait_outcomes("copy", "ack", 2 * RATE, DEADLINE);

    let outage = Duration::from_secs(if long() { 60 } else { 20 });
    let mut observed = Observed::default();
    begin(&mut stage.postgres);
    let begun = Instant::now();
    let before = service.outcomes("copy", "ack").expect("an answer");
    stays("an outage without a failed handler", outage, || {
        observed.observe(&service).map(drop)
    });
    let copied = service.outcomes("copy", "ack").expect("an answer") - before;
    let pace = copied as f64 / begun.elapsed().as_secs_f64();
    let copies_waiting = relayed.made() - before - copied;
    end(&mut stage.postgres);
    let healed = Instant::now();
    let acked = service.outcomes("audit", "ack").expect("an answer");
    wait_for("a record that succeeds", FIRST_DEADLINE, || {
        observed.observe(&service)?;
        match service.outcomes("audit", "ack")? {
            now if now > acked => Ok(()),
            now => Err(format!("{now} acked")),
        }
    });
    let first = healed.elapsed();
    wait_for(
        "the handler to be active",
        ACTIVE_DEADLINE,
        || match observed.observe(&service)?.as_str() {
            "ACTIVE" => Ok(()),
            state => Err(state.to_owned()),
        },
    );
    let active = healed.elapsed();
    let made = audited.end();
    relayed.end();
    wait_for("the backlog of the outage", DEADLINE, || {
        observed.observe(&service)?;
        match service.outcomes("audit", "ack")? {
            acked if acked >= made => Ok(()),
            acked => Err(format!("{acked} of {made}")),
        }
    });
    println!(
        "    {name} for {outage:?}: states {:?}, first record after {first:.1?}, active after {active:.1?}, caught up after \
         {:.1?}; the other handler had {pace:.0} records/s, {copies_waiting} waiting; retries {:?}",
        observed.states,
        healed.elapsed(),
        service.outcomes("audit", "retry"),
    );
    stage.assert_complete(made);
    assert_eq!(service.outcomes("audit", "retry"), Ok(0), "no attempts");
    let quarantined = service.metrics().expect("metrics").sum(
        "sluicegate_handler_quarantined_workers",
        &[("handler", "audit")],
    );
    assert_eq!(quarantined, 0.0, "no call hangs");
    assert!(pace >= 0.9 * RATE as f64, "{pace}");
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn an_outage_of_the_database_loses_nothing_and_fails_no_handler() {
    let stage = Stage::new("");
    let again = |postgres: &mut Postgres| {
        postgres
            .start_again()
            .unwrap_or_else(|error| panic!("{error:#}"));
    };
    endure(stage, "stopped", |it| it.stop(Stop::Immediate), again);
}

#[test]
fn a_frozen_database_loses_nothing_and_fails_no_handler() {
    let stage = Stage::new("");
    endure(stage, "frozen", |it| it.freeze(), |it| it.thaw());
}

#[test]
fn a_stopped_or_killed_server_keeps_its_rows_and_a_frozen_one_answers_later() {
    let mut postgres = Postgres::start().unwrap_or_else(|error| panic!("{error:#}"));
    let _ = postgres.query("CREATE TABLE kept (number INT)");
    for (number, how) in [Stop::Fast, Stop::Immediate, Stop::Kill]
        .into_iter()
        .enumerate()
    {
        let _ = postgres.query(&format!("INSERT INTO kept VALUES ({number})"));
        postgres.stop(how);
        assert!(postgres.try_query("SELECT 1").is_err(), "{how:?}");
        postgres
            .start_again()
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
    assert_eq!(
        postgres.query("SELECT number FROM kept ORDER BY 1"),
        "0\n1\n2"
    );
    for setting in ["fsync", "synchronous_commit"] {
        assert_eq!(postgres.query(&format!("SHOW {setting}")), "on");
    }
    postgres.freeze();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| postgres.number("SELECT count(*) FROM kept"));
        stays(
            "a question without an answer",
            Duration::from_secs(1),
            || match asked.is_finished() {
                true => Err("it is answered".to_owned()),
                false => Ok(()),
            },
        );
        postgres.thaw();
        assert_eq!(asked.join().expect("an answer"), 3);
    });
}
