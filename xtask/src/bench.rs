//! `cargo xtask bench`: the service against a bare librdkafka loop, interleaved, on the same real broker.
//!
//! ```text
//!  Kafka of our own ◄── bare-loop load ── 12 partitions of small records
//!        │
//!        ├──► bare-loop read   (C, the service's librdkafka, allocator and fetch keys)   ┐
//!        └──► sluicegate run   (native no-op handler, key order, a group of its own)     ┘ × rounds, in turn
//! ```
//!
//! Both are timed from the first record seen to the last one completed; CPU is that of the process.

mod measure;
mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::artefacts;
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::launcher::run as run_command;

use measure::{Measured, bare_loop, service};

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
}

/// The parameters of a benchmark.
pub(crate) struct Case {
    pub(crate) records: u64,
    pub(crate) rounds: usize,
    pub(crate) value_bytes: usize,
    pub(crate) partitions: u32,
    pub(crate) keys: u64,
}

/// The programs under measurement.
pub(crate) struct Programs {
    pub(crate) bare_loop: PathBuf,
    pub(crate) service: PathBuf,
    pub(crate) noop: PathBuf,
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
    let programs = build()?;
    eprintln!("Starting Kafka and loading {} records …", case.records);
    let kafka = Kafka::start(&broker(&case))?;
    let topic = "bench";
    run_command(
        std::process::Command::new(&programs.bare_loop)
            .args(["load", kafka.bootstrap(), topic])
            .args([&case.records.to_string(), &case.value_bytes.to_string()])
            .arg(case.keys.to_string()),
    )?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=case.rounds {
        let one = bare_loop(&programs, kafka.bootstrap(), topic, &case)?;
        let other = service(&programs, kafka.bootstrap(), topic, &case, round)?;
        let name = if round == 0 { "warm-up" } else { "round" };
        eprintln!(
            "{name} {round}: bare {} | service {}",
            one.line(),
            other.line()
        );
        if round > 0 {
            bare.push(one);
            ours.push(other);
        }
    }
    let page = page::Page::new(&case, &bare, &ours);
    println!("{}", page.table());
    let path = artefacts::workspace().join("docs/benchmarks.md");
    page.write(&path)?;
    println!("written to docs/benchmarks.md");
    let ratio = page.records_ratio();
    if ratio < FLOOR {
        bail!(
            "the service reaches {ratio:.2} of the bare loop's records per second; expected at least {FLOOR}"
        );
    }
    Ok(ExitCode::SUCCESS)
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

fn build() -> Result<Programs> {
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
    Ok(Programs {
        bare_loop: target.join("bare-loop"),
        service: target.join("sluicegate"),
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
