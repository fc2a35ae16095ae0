//! `cargo xtask bench`: the service against a bare librdkafka loop, interleaved, on the same real broker.
//!
//! ```text
//!  Kafka of our own ◄── bare-loop load ── 12 partitions of records
//!        │
//!        ├──► bare-loop read   (C, the service's librdkafka, allocator and client keys)  ┐
//!        │    or relay                                                                   │
//!        ├──► sluicegate run   (native handlers, key order, a group of its own)          │ × workloads × rounds, in turn
//!        ├──► the same by another build of it, if one is named                           │
//!        └──► relays with other clients: Go, Java (`peers`)                              ┘
//! ```
//!
//! All are timed from the first record seen to the last one completed; CPU is that of the process. A relay has a new output
//! topic in every run, and the run counts only if the topic has the expected number of records afterwards.

mod measure;
mod page;
mod peers;
mod topics;
mod workload;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use e2e::artefacts;
use e2e::kafka::{Kafka, KafkaOptions};

use measure::{Measured, measure};
use peers::Peer;
use workload::{Suite, Workload};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Measure relaying to another topic instead of consuming, also with relays of other clients; writes
    /// `docs/benchmarks-relay.md`
    #[arg(long)]
    relay: bool,
    /// Fewer records and rounds; takes some minutes, most of them for the release build
    #[arg(long)]
    quick: bool,
    /// Records in a topic [default: 5 million with `--quick`, else 20 million; with `--relay` 500,000 and 3 million]
    #[arg(long)]
    records: Option<u64>,
    /// Rounds [default: 3 with `--quick`, else 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// Another build of the service, measured in the same rounds: what a change has changed
    #[arg(long, value_name = "BINARY")]
    baseline: Option<PathBuf>,
}

/// The parameters of a benchmark.
pub(crate) struct Case {
    pub(crate) rounds: usize,
    pub(crate) partitions: u32,
    pub(crate) keys: u64,
}

/// A program under measurement.
pub(crate) enum Program {
    BareLoop,
    /// A build of the service.
    Service(PathBuf),
    Peer(Peer),
}

/// The programs under measurement.
pub(crate) struct Programs {
    bare_loop: PathBuf,
    /// All but the bare loop, by name; the first is the service.
    others: Vec<(String, Program)>,
    /// The folder of the handlers' libraries.
    pub(crate) libraries: PathBuf,
    /// What could not be built here, and why.
    skipped: Vec<String>,
}

/// The runs of one contender.
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) runs: Vec<Measured>,
}

/// The results of a workload: of the bare loop on its topic, and of the service and its peers.
pub(crate) struct Results {
    pub(crate) bare: Contender,
    pub(crate) others: Vec<Contender>,
}

/// What every run needs.
pub(crate) struct Bench<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) kafka: &'a Kafka,
    pub(crate) case: &'a Case,
}

impl Bench<'_> {
    /// A command of the bare loop on a topic.
    pub(crate) fn bare_loop(&self, mode: &str, topic: &str) -> Command {
        let mut command = Command::new(&self.programs.bare_loop);
        command.args([mode, self.kafka.bootstrap(), topic]);
        command
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (suite, case) = plan(arguments);
    let programs = build(&suite, arguments)?;
    let inputs = suite.inputs();
    eprintln!("Starting Kafka and loading {} topics …", inputs.len());
    let kafka = Kafka::start(&broker())?;
    let bench = Bench {
        programs: &programs,
        kafka: &kafka,
        case: &case,
    };
    for input in &inputs {
        topics::load(&bench, input)?;
    }
    let results = rounds(&bench, &suite)?;
    let page = page::Page::new(&suite, &case, &results, &programs.skipped);
    println!("{}", page.table());
    if arguments.baseline.is_none() {
        page.write(&artefacts::workspace().join(suite.page))?;
        println!("written to {}", suite.page);
    }
    let ratio = page.records_ratio();
    match suite.floor {
        Some(floor) if ratio < floor => bail!(
            "the service reaches {ratio:.2} of the bare loop's records per second; expected at least {floor}"
        ),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What the arguments ask for.
fn plan(arguments: &Arguments) -> (Suite, Case) {
    let default = match (arguments.relay, arguments.quick) {
        (false, true) => 5_000_000,
        (false, false) => 20_000_000,
        (true, true) => 500_000,
        (true, false) => 3_000_000,
    };
    let records = arguments.records.unwrap_or(default);
    let suite = match arguments.relay {
        true => Suite::relay(records),
        false => Suite::consuming(records),
    };
    let rounds = if arguments.quick { 3 } else { 5 };
    let case = Case {
        rounds: arguments.rounds.unwrap_or(rounds),
        partitions: 12,
        keys: 100_000,
    };
    (suite, case)
}

/// Runs every contender on every workload, in each round; the first round warms up.
fn rounds(bench: &Bench<'_>, suite: &Suite) -> Result<Vec<Results>> {
    let others = &bench.programs.others;
    let workloads = &suite.workloads;
    let mut results: Vec<Results> = workloads
        .iter()
        .map(|one| empty(suite, others, one))
        .collect();
    for round in 0..=bench.case.rounds {
        for (workload, results) in workloads.iter().zip(&mut results) {
            one_run(
                bench,
                round,
                &Program::BareLoop,
                workload,
                &mut results.bare,
            )?;
            // Whatever the one before leaves in caches and on the broker meets each of them.
            let mut order: Vec<usize> = (0..others.len()).collect();
            order.rotate_left(round % others.len().max(1));
            for place in order {
                let (_, program) = &others[place];
                one_run(bench, round, program, workload, &mut results.others[place])?;
            }
        }
    }
    Ok(results)
}

fn one_run(
    bench: &Bench<'_>,
    round: usize,
    program: &Program,
    workload: &Workload,
    contender: &mut Contender,
) -> Result<()> {
    let run = measure(bench, program, workload).with_context(|| contender.name.clone())?;
    let of = if round == 0 { "warm-up" } else { "round" };
    eprintln!("{of} {round}: {}: {}", contender.name, run.line());
    if round > 0 {
        contender.runs.push(run);
    }
    Ok(())
}

fn empty(suite: &Suite, others: &[(String, Program)], workload: &Workload) -> Results {
    let named = |program: &str| Contender {
        name: format!("{program}, {}", workload.name),
        runs: Vec::new(),
    };
    Results {
        bare: named(suite.bare),
        others: others.iter().map(|(name, _)| named(name)).collect(),
    }
}

/// Options of a broker that soon frees the space of a deleted topic.
fn broker() -> KafkaOptions {
    KafkaOptions {
        extra: vec![("log.segment.delete.delay.ms".into(), "1000".into())],
        ..KafkaOptions::default()
    }
}

fn build(suite: &Suite, arguments: &Arguments) -> Result<Programs> {
    eprintln!("Building with optimisation …");
    let mut command = artefacts::cargo();
    command.args(["build", "--release"]);
    for package in ["sluicegate", "benches"]
        .into_iter()
        .chain(suite.packages())
    {
        command.args(["--package", package]);
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| artefacts::workspace().join("target"), PathBuf::from);
    let release = target.join("release");
    let service = |name: &str, binary| (name.to_owned(), Program::Service(binary));
    let mut others = vec![service("sluicegate", release.join("sluicegate"))];
    let baseline = arguments.baseline.iter();
    others.extend(baseline.map(|path| service("the baseline", path.clone())));
    let mut skipped = Vec::new();
    if arguments.relay {
        let (peers, missing) = peers::build(&target.join("bench-peers"));
        let named = |peer: Peer| (peer.name.to_owned(), Program::Peer(peer));
        others.extend(peers.into_iter().map(named));
        skipped = missing;
    }
    Ok(Programs {
        bare_loop: release.join("bare-loop"),
        others,
        libraries: release,
        skipped,
    })
}

/// The median of the values that `of` takes from the runs.
pub(crate) fn median(runs: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Divisor, unit and digits of a rate.
pub(crate) fn scaled(rate: f64) -> (f64, &'static str, usize) {
    match rate {
        _ if rate >= 1e5 => (1e6, " M", 2),
        _ if rate >= 1e3 => (1e3, " k", 1),
        _ => (1.0, "", 0),
    }
}
