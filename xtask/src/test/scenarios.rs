//! The scenarios on real servers: their requirements and how they can run, as declared in their headers.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::artefacts::workspace;
use e2e::{etcd, kafka, launcher, postgres, zookeeper};

use super::lanes::{Load, Waiting};
use super::programs::Artefacts;
use crate::step::{self, Report};

const LIMIT: Duration = Duration::from_secs(15 * 60);
const LONG_LIMIT: Duration = Duration::from_secs(4 * 60 * 60);
/// Their folder, one file each.
const FOLDER: &str = "tests/tests/scenarios";

/// The requirements of a scenario, from its header line `//! Needs: …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Only the binary.
    Nothing,
    /// Any broker, including one given in the environment.
    Kafka,
    /// Brokers that it can stop and configure.
    OwnKafka,
    /// Any broker, and a PostgreSQL server that it can stop.
    Postgres,
    /// Kafka, ZooKeeper and etcd of its own.
    Everything,
}

impl Needs {
    fn of(scenario: &str) -> Result<Self> {
        match header(scenario, "Needs")?.as_deref() {
            Some("nothing") => Ok(Self::Nothing),
            Some("Kafka") => Ok(Self::Kafka),
            Some("Kafka of its own") => Ok(Self::OwnKafka),
            Some("Kafka and PostgreSQL of its own") => Ok(Self::Postgres),
            Some("Kafka, ZooKeeper and etcd of its own") => Ok(Self::Everything),
            other => anyhow::bail!("{scenario}: the header line `Needs:` says {other:?}"),
        }
    }
}

/// A number in a scenario's header, such as `//! At once: 4`, the number of its tests that run concurrently because they
/// mostly wait.
fn number(scenario: &str, name: &str) -> Result<Option<u64>> {
    let said = header(scenario, name)?;
    said.map(|said| {
        let digits = said.split_once(' ').map_or(&*said, |(digits, _)| digits);
        digits
            .parse()
            .with_context(|| format!("{scenario}: the header line `{name}:` says {said}"))
    })
    .transpose()
}

/// The value of a line in the header of a scenario.
fn header(scenario: &str, name: &str) -> Result<Option<String>> {
    let path = workspace().join(FOLDER).join(format!("{scenario}.rs"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let start = format!("//! {name}: ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.map(|line| line.trim_end_matches('.').to_owned()))
}

/// How each kind of server was provisioned, or why it is unavailable.
pub(super) struct Servers {
    kafka: Result<String, String>,
    own_kafka: Result<String, String>,
    others: Result<String, String>,
    own_postgres: Result<String, String>,
}

impl Servers {
    fn missing(&self, needs: Needs) -> Option<&str> {
        match needs {
            Needs::Nothing => None,
            Needs::Kafka => self.kafka.as_ref().err(),
            Needs::OwnKafka => self.own_kafka.as_ref().err(),
            Needs::Postgres => self
                .kafka
                .as_ref()
                .err()
                .or(self.own_postgres.as_ref().err()),
            Needs::Everything => self.own_kafka.as_ref().err().or(self.others.as_ref().err()),
        }
        .map(String::as_str)
    }
}

/// The requested scenarios that can run here, and those that cannot.
pub(super) struct Scenarios {
    /// Can run concurrently. The longest come first, so that the run does not end with a single long one.
    pub(super) concurrent: Vec<Scenario>,
    /// Must run alone, because of their measurements or their resource usage.
    pub(super) alone: Vec<Scenario>,
    pub(super) skipped: Vec<Report>,
}

/// Sorts the scenarios named in `only`, or all, by how they can run; `long` selects their long forms, which run alone.
pub(super) fn find(
    only: &[String],
    long: bool,
    artefacts: &Artefacts,
    servers: &Servers,
) -> Result<Scenarios> {
    let names = names()?;
    if let Some(unknown) = only.iter().find(|name| !names.contains(name)) {
        anyhow::bail!("unknown scenario {unknown} under {FOLDER}");
    }
    let mut found = Scenarios {
        concurrent: Vec::new(),
        alone: Vec::new(),
        skipped: Vec::new(),
    };
    let mut list = artefacts.command(artefacts.scenarios()?);
    let tests = launcher::run(list.args(["--list", "--format=terse"]))?;
    for name in names {
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        let scenario = Scenario::of(name, &tests, long)?;
        match servers.missing(scenario.needs) {
            Some(why) => found.skipped.push(scenario.skipped(why)),
            None if scenario.alone || long => found.alone.push(scenario),
            None => found.concurrent.push(scenario),
        }
    }
    found
        .concurrent
        .sort_by_key(|scenario| std::cmp::Reverse(scenario.takes));
    Ok(found)
}

/// Every scenario, one per file. Shared code is in folders.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    let folder = workspace().join(FOLDER);
    for entry in
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if let (true, Some(name)) = (path.extension().is_some_and(|it| it == "rs"), name)
            && name != "main"
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A scenario with the values of its header.
pub(super) struct Scenario {
    pub(super) name: String,
    /// Its tests, with their module path.
    tests: Vec<String>,
    needs: Needs,
    alone: bool,
    mostly_waits: bool,
    at_once: u64,
    /// Approximate seconds; declared only if more than a minute.
    takes: u64,
    long: bool,
}

impl Scenario {
    /// `tests` is the output of the program's `--list`.
    fn of(name: String, tests: &str, long: bool) -> Result<Self> {
        let of_module = |line: &str| {
            let test = line.strip_suffix(": test")?;
            let (module, _) = test.split_once("::")?;
            (module == name).then(|| test.to_owned())
        };
        let tests: Vec<String> = tests.lines().filter_map(of_module).collect();
        anyhow::ensure!(
            !tests.is_empty(),
            "{name} has no tests: does main.rs name it?"
        );
        Ok(Self {
            tests,
            needs: Needs::of(&name)?,
            alone: header(&name, "Alone")?.is_some(),
            mostly_waits: header(&name, "Mostly waits")?.is_some(),
            at_once: number(&name, "At once")?.unwrap_or(1),
            takes: number(&name, "Takes")?.unwrap_or(0),
            long,
            name,
        })
    }

    /// A command that runs its tests in their own process.
    fn command(&self, mut program: Command) -> Command {
        program.args(&self.tests).arg("--exact");
        program.arg(format!("--test-threads={}", self.at_once));
        if self.long {
            program.env("SLUICEGATE_TEST_LONG", "1");
        }
        program
    }

    /// As a queued step.
    pub(super) fn waiting(self, run: step::Run, artefacts: &Artefacts) -> Waiting<'_> {
        Waiting {
            name: self.name.clone(),
            load: match self.mostly_waits {
                true => Load::Light,
                false => Load::Full,
            },
            run: Box::new(move || self.run(run, artefacts)),
        }
    }

    fn run(&self, run: step::Run, artefacts: &Artefacts) -> Result<Report> {
        let limit = if self.long { LONG_LIMIT } else { LIMIT };
        let program = artefacts.command(artefacts.scenarios()?);
        let mut report = run(&self.name, &mut self.command(program), limit)?;
        if report.passed > 0 && self.needs != Needs::Nothing {
            report.note = ON_KAFKA.to_owned();
        }
        Ok(report)
    }

    fn skipped(&self, why: &str) -> Report {
        println!("\n==> {}: skipped: {why}", self.name);
        let mut report = Report::new(&self.name);
        let named = self.tests.iter().map(|test| (test.clone(), why.to_owned()));
        report.skipped.extend(named);
        report
    }
}

/// The note by which the summary recognizes scenarios that ran on Kafka.
pub(super) const ON_KAFKA: &str = "on a real Kafka";

pub(super) fn provision() -> (Report, Servers) {
    println!("\n==> provision: Kafka, ZooKeeper, etcd, PostgreSQL (downloaded once per machine)");
    let start = Instant::now();
    let mut report = Report::new("provision");
    let try_one = |what: &str, provision: fn() -> Result<String>| {
        println!("    {what} …");
        let begun = Instant::now();
        let done = provision().map_err(|error| format!("{error:#}"));
        match &done {
            Ok(how) => println!(
                "    {what}: {how}, ready in {:.1} s",
                begun.elapsed().as_secs_f32()
            ),
            Err(why) => println!("    {what}: unavailable: {why}"),
        }
        done
    };
    let kafka = try_one("Kafka", kafka::provision);
    let own_kafka = if std::env::var_os(kafka::ENDPOINT).is_some() {
        try_one("Kafka nodes to start", kafka::provision_own)
    } else {
        kafka.clone()
    };
    let zookeeper = try_one("ZooKeeper", zookeeper::provision);
    let etcd = try_one("etcd", etcd::provision);
    let own_postgres = try_one("PostgreSQL", postgres::provision);
    report.note = [&kafka, &zookeeper, &etcd, &own_postgres]
        .into_iter()
        .flatten()
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    let others = zookeeper.and(etcd);
    report.took = start.elapsed();
    (
        report,
        Servers {
            kafka,
            own_kafka,
            others,
            own_postgres,
        },
    )
}
