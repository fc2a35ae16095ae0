//! `cargo xtask bench`: the service against a bare librdkafka loop, interleaved, on the same real broker.
//!
//! ```text
//!  Kafka of our own ◄── bare-loop load ── 12 partitions of small records, once without and once with a header
//!        │
//!        ├──► bare-loop read   (C, the service's librdkafka, allocator and fetch keys)   ┐
//!        ├──► sluicegate run   (native no-op handlers, key order, a group of its own)    │ × workloads × rounds, in turn
//!        └──► the same by another build of it, if one is named                           ┘
//! ```
//!
//! All are timed from the first record seen to the last one completed; CPU is that of the process.

mod measure;
mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::artefacts;
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::launcher::run as run_command;

use measure::{Measured, bare_loop};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fewer records and rounds; takes some minutes, most of them for the release build
    #[arg(long)]
    quick: bool,
    /// Records in the topic [default: 5 million with `--quick`, else 20 million]
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
    pub(crate) records: u64,
    pub(crate) rounds: usize,
    pub(crate) value_bytes: usize,
    pub(crate) partitions: u32,
    pub(crate) keys: u64,
}

/// What the service does with the records of a topic.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) topic: &'static str,
    /// Values of the header `region`; 0 for no header.
    regions: u64,
    /// The handlers: their names, and the rest of their routes.
    pub(crate) handlers: Vec<(String, String)>,
    /// How many of them handle each record.
    pub(crate) acks: u64,
}

impl Workload {
    fn all() -> Vec<Self> {
        let regions = |range: std::ops::Range<u64>| {
            let values: Vec<String> = range.map(|region| format!("r{region}")).collect();
            format!("when: {{ header: region, in: [{}] }}", values.join(", "))
        };
        vec![
            Self {
                name: "no-op",
                topic: "bench",
                regions: 0,
                handlers: vec![("noop".into(), String::new())],
                acks: 1,
            },
            Self {
                name: "header-routed",
                topic: "bench-headers",
                regions: 8,
                handlers: vec![
                    ("east".into(), regions(0..4)),
                    ("west".into(), regions(4..8)),
                ],
                acks: 1,
            },
            Self {
                name: "fan-out to 5",
                topic: "bench",
                regions: 0,
                handlers: (1..=5)
                    .map(|place| (format!("noop-{place}"), String::new()))
                    .collect(),
                acks: 5,
            },
        ]
    }
}

/// The programs under measurement.
pub(crate) struct Programs {
    pub(crate) bare_loop: PathBuf,
    /// The service, and another build of it.
    services: Vec<(&'static str, PathBuf)>,
    pub(crate) noop: PathBuf,
}

/// The runs of one contender.
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) runs: Vec<Measured>,
}

/// A workload, the bare loop on its topic, and the service.
pub(crate) struct Results {
    pub(crate) bare: Contender,
    pub(crate) services: Vec<Contender>,
}

/// Minimum ratio of records per second to the bare loop.
const FLOOR: f64 = 0.6;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (records, rounds) = match arguments.quick {
        true => (5_000_000, 3),
        false => (20_000_000, 5),
    };
    let case = Case {
        records: arguments.records.unwrap_or(records),
        rounds: arguments.rounds.unwrap_or(rounds),
        value_bytes: 100,
        partitions: 12,
        keys: 100_000,
    };
    let programs = build(arguments.baseline.as_ref())?;
    let workloads = Workload::all();
    eprintln!("Starting Kafka and loading 2 × {} records …", case.records);
    let kafka = Kafka::start(&broker(&case))?;
    // The last workload has the topic of the first one.
    for workload in &workloads[..2] {
        load(&programs, kafka.bootstrap(), workload, &case)?;
    }
    let mut results: Vec<Results> = workloads.iter().map(|one| empty(&programs, one)).collect();
    for round in 0..=case.rounds {
        for (workload, results) in workloads.iter().zip(&mut results) {
            let bare = bare_loop(&programs, kafka.bootstrap(), workload.topic, &case)?;
            report(round, &results.bare.name, &bare);
            let mut runs: Vec<Option<Measured>> = vec![None; programs.services.len()];
            // Whatever the one before leaves in caches and on the broker meets each of them.
            let mut order: Vec<usize> = (0..runs.len()).collect();
            order.rotate_left(round % runs.len().max(1));
            for place in order {
                let (_, service) = &programs.services[place];
                let run = measure::service(service, &programs, &kafka, workload, &case)?;
                report(round, &results.services[place].name, &run);
                runs[place] = Some(run);
            }
            let runs = std::iter::once(bare).chain(runs.into_iter().flatten());
            if round > 0 {
                let contenders = std::iter::once(&mut results.bare).chain(&mut results.services);
                for (contender, run) in contenders.zip(runs) {
                    contender.runs.push(run);
                }
            }
        }
    }
    let page = page::Page::new(&case, &results);
    println!("{}", page.table());
    if arguments.baseline.is_none() {
        let path = artefacts::workspace().join("docs/benchmarks.md");
        page.write(&path)?;
        println!("written to docs/benchmarks.md");
    }
    let ratio = page.records_ratio();
    if ratio < FLOOR {
        bail!(
            "the service reaches {ratio:.2} of the bare loop's records per second; expected at least {FLOOR}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn report(round: usize, name: &str, run: &Measured) {
    let of = if round == 0 { "warm-up" } else { "round" };
    eprintln!("{of} {round}: {name}: {}", run.line());
}

/// Fills the topic of a workload.
fn load(programs: &Programs, bootstrap: &str, workload: &Workload, case: &Case) -> Result<()> {
    let mut command = std::process::Command::new(&programs.bare_loop);
    command
        .args(["load", bootstrap, workload.topic])
        .args([&case.records.to_string(), &case.value_bytes.to_string()])
        .arg(case.keys.to_string());
    if workload.regions > 0 {
        command.arg(workload.regions.to_string());
    }
    run_command(&mut command).map(drop)
}

fn empty(programs: &Programs, workload: &Workload) -> Results {
    let named = |name: String| Contender {
        name,
        runs: Vec::new(),
    };
    let services = programs.services.iter();
    Results {
        bare: named(format!(
            "bare librdkafka batch loop (C), topic of {}",
            workload.name
        )),
        services: services
            .map(|(build, _)| named(format!("{build}, {}", workload.name)))
            .collect(),
    }
}

/// Options of a broker that creates the topic with the requested number of partitions.
fn broker(case: &Case) -> KafkaOptions {
    KafkaOptions {
        extra: vec![
            ("num.partitions".into(), case.partitions.to_string()),
            ("auto.create.topics.enable".into(), "true".into()),
        ],
        ..KafkaOptions::default()
    }
}

fn build(baseline: Option<&PathBuf>) -> Result<Programs> {
    eprintln!("Building with optimisation …");
    let mut command = artefacts::cargo();
    command.args(["build", "--release"]);
    for package in ["sluicegate", "benches", "noop"] {
        command.args(["--package", package]);
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| artefacts::workspace().join("target"), PathBuf::from)
        .join("release");
    let mut services = vec![("sluicegate", target.join("sluicegate"))];
    services.extend(baseline.map(|path| ("the baseline", path.clone())));
    Ok(Programs {
        bare_loop: target.join("bare-loop"),
        services,
        noop: target.join(artefacts::library_name("noop")),
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
