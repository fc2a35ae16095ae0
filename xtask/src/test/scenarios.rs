//! The scenarios on real servers: provisions what they need, builds what they test, and runs them: those whose header says
//! `//! Alone: …` one after the other, the rest a few at a time, since they mostly wait.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::artefacts::{self, BINARY, PLUGINS, cargo, workspace};
use e2e::{etcd, kafka, launcher, zookeeper};

use super::code::test_targets;
use crate::step::{self, Report};

const LIMIT: Duration = Duration::from_secs(15 * 60);
const LONG_LIMIT: Duration = Duration::from_secs(4 * 60 * 60);
/// Scenarios that run at a time.
const LANES: usize = 2;

/// What a scenario stands on; its header says so in a line `//! Needs: …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// The binary alone.
    Nothing,
    /// Any broker, also one of the environment.
    Kafka,
    /// Brokers that it can stop and configure.
    OwnKafka,
    /// Kafka, ZooKeeper and etcd of its own.
    Everything,
}

impl Needs {
    fn of(scenario: &str) -> Result<Self> {
        match header(scenario, "Needs")?.as_deref() {
            Some("nothing") => Ok(Self::Nothing),
            Some("Kafka") => Ok(Self::Kafka),
            Some("Kafka of its own") => Ok(Self::OwnKafka),
            Some("Kafka, ZooKeeper and etcd of its own") => Ok(Self::Everything),
            other => anyhow::bail!("{scenario}: the header line `Needs:` says {other:?}"),
        }
    }
}

/// How many tests of a scenario run at once: one, unless its header says `//! At once: …` because they mostly wait.
fn at_once(scenario: &str) -> Result<usize> {
    match header(scenario, "At once")? {
        None => Ok(1),
        Some(number) => number
            .parse()
            .with_context(|| format!("{scenario}: the header line `At once:` says {number}")),
    }
}

/// What the header of a scenario says in its line of that name.
fn header(scenario: &str, name: &str) -> Result<Option<String>> {
    let path = workspace()
        .join("tests/tests")
        .join(format!("{scenario}.rs"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let start = format!("//! {name}: ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.map(|line| line.trim_end_matches('.').to_owned()))
}

/// Why each kind of server cannot be had here, if it cannot.
struct Servers {
    kafka: Result<String, String>,
    own_kafka: Result<String, String>,
    others: Result<String, String>,
}

impl Servers {
    fn missing(&self, needs: Needs) -> Option<&str> {
        match needs {
            Needs::Nothing => None,
            Needs::Kafka => self.kafka.as_ref().err(),
            Needs::OwnKafka => self.own_kafka.as_ref().err(),
            Needs::Everything => self.own_kafka.as_ref().err().or(self.others.as_ref().err()),
        }
        .map(String::as_str)
    }
}

/// A step by name that runs behind the scenarios.
pub(super) type Behind = (&'static str, fn() -> Result<Report>);

/// Runs the scenarios named in `only`, or all; `long` asks for their long forms. `behind` runs one after the other while
/// scenarios run that bear others beside them, or at the end.
pub(super) fn run(only: &[String], long: bool, behind: &[Behind]) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut waiting = Some(behind);
    if let Err(error) = run_all(only, long, &mut waiting, &mut reports) {
        eprintln!("e2e: {error:#}");
        reports.push(failed("e2e", &error));
    }
    if let Some(behind) = waiting {
        reports.extend(run_behind(behind));
    }
    reports
}

fn run_all(
    only: &[String],
    long: bool,
    behind: &mut Option<&[Behind]>,
    reports: &mut Vec<Report>,
) -> Result<()> {
    let mut scenarios = test_targets()?;
    scenarios
        .retain(|(package, test)| package == "e2e" && (only.is_empty() || only.contains(test)));
    if let Some(unknown) = only
        .iter()
        .find(|name| !scenarios.iter().any(|(_, test)| test == *name))
    {
        anyhow::bail!("there is no scenario {unknown} under tests/tests");
    }
    let (provisioned, servers) = provision();
    reports.push(provisioned);
    let (build, built) = build()?;
    reports.push(build);
    let Some(built) = built else {
        return Ok(());
    };
    let mut beside = Vec::new();
    for (_, scenario) in scenarios {
        let scenario = Scenario::of(scenario, &built, long)?;
        match servers.missing(scenario.needs) {
            Some(why) => reports.push(scenario.skipped(why)?),
            None if scenario.alone || long => reports.push(scenario.run(step::run)?),
            None => beside.push(scenario),
        }
    }
    reports.extend(run_beside(beside, behind.take().unwrap_or_default()));
    Ok(())
}

/// Runs steps one after the other; what cannot be run has failed.
fn run_behind(steps: &[Behind]) -> Vec<Report> {
    let done = steps
        .iter()
        .map(|(name, step)| step().unwrap_or_else(|error| failed(name, &error)));
    done.collect()
}

/// Runs scenarios, as many at a time as there are lanes, and the other steps behind them.
fn run_beside(scenarios: Vec<Scenario>, behind: &[Behind]) -> Vec<Report> {
    let waiting = Mutex::new(scenarios.into_iter());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    let lane = || {
        let mut reports = Vec::new();
        while let Some(scenario) = next() {
            let done = scenario.run(step::run_beside);
            reports.push(done.unwrap_or_else(|error| failed(&scenario.name, &error)));
        }
        reports
    };
    let mut reports: Vec<Report> = std::thread::scope(|scope| {
        let behind = scope.spawn(|| run_behind(behind));
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        let ended = lanes.into_iter().chain([behind]);
        let ended = ended.flat_map(|lane| match lane.join() {
            Ok(reports) => reports,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    });
    reports.sort_by(|one, other| one.name.cmp(&other.name));
    reports
}

/// The report of what could not be run.
fn failed(name: &str, error: &anyhow::Error) -> Report {
    let mut failed = Report::new(name);
    failed.failed.push(format!("{name} ({error:#})"));
    failed
}

/// A scenario, and what its header says of it.
struct Scenario {
    name: String,
    needs: Needs,
    /// What it measures or takes up bears no other one beside it.
    alone: bool,
    long: bool,
    built: artefacts::Built,
}

impl Scenario {
    fn of(name: String, built: &artefacts::Built, long: bool) -> Result<Self> {
        Ok(Self {
            needs: Needs::of(&name)?,
            alone: header(&name, "Alone")?.is_some(),
            long,
            built: built.clone(),
            name,
        })
    }

    fn command(&self) -> Result<Command> {
        let mut command = cargo();
        command.args(["test", "--workspace", "--test", &self.name, "--"]);
        command.arg(format!("--test-threads={}", at_once(&self.name)?));
        command
            .env(BINARY, &self.built.binary)
            .env(PLUGINS, &self.built.plugins);
        if self.long {
            command.env("SLUICEGATE_TEST_LONG", "1");
        }
        Ok(command)
    }

    fn run(
        &self,
        run: impl FnOnce(&str, &mut Command, Duration) -> Result<Report>,
    ) -> Result<Report> {
        let limit = if self.long { LONG_LIMIT } else { LIMIT };
        let mut report = run(&self.name, &mut self.command()?, limit)?;
        if report.passed > 0 && self.needs != Needs::Nothing {
            report.note = ON_KAFKA.to_owned();
        }
        Ok(report)
    }

    fn skipped(&self, why: &str) -> Result<Report> {
        Ok(skipped(&self.name, self.command()?.arg("--list"), why))
    }
}

/// The remark that the closing lines gather the scenarios by.
pub(super) const ON_KAFKA: &str = "on a real Kafka";

fn provision() -> (Report, Servers) {
    println!("\n==> provision: Kafka, ZooKeeper, etcd (fetched once for a machine)");
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
            Err(why) => println!("    {what}: not to be had: {why}"),
        }
        done
    };
    let kafka = try_one("Kafka", kafka::provision);
    let own_kafka = if std::env::var_os(kafka::ENDPOINT).is_some() {
        try_one("Kafka nodes of our own", kafka::provision_own)
    } else {
        kafka.clone()
    };
    let zookeeper = try_one("ZooKeeper", zookeeper::provision);
    let etcd = try_one("etcd", etcd::provision);
    report.note = [&kafka, &zookeeper, &etcd]
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
        },
    )
}

fn build() -> Result<(Report, Option<artefacts::Built>)> {
    println!("\n==> build: the service and its plugins");
    let start = Instant::now();
    let mut report = Report::new("build");
    let built = match artefacts::build(&["--workspace"]) {
        Ok(built) => Some(built),
        Err(error) => {
            report.failed.push(format!("build ({error})"));
            None
        }
    };
    report.took = start.elapsed();
    Ok((report, built))
}

/// A scenario that cannot run here, with each of its tests named.
fn skipped(scenario: &str, list: &mut Command, why: &str) -> Report {
    println!("\n==> {scenario}: skipped: {why}");
    let mut report = Report::new(scenario);
    let printed = launcher::run(list).unwrap_or_default();
    let names = printed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    report.skipped = names
        .map(|test| (format!("{scenario}::{test}"), why.to_owned()))
        .collect();
    if report.skipped.is_empty() {
        report.skipped.push((scenario.to_owned(), why.to_owned()));
    }
    report
}
