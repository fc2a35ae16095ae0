//! The figures as a table and as `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::measure::Measured;
use super::{Case, median};

/// What was measured, with what it was measured on.
pub(crate) struct Page<'a> {
    case: &'a Case,
    bare: &'a [Measured],
    ours: &'a [Measured],
}

impl<'a> Page<'a> {
    pub(crate) fn new(case: &'a Case, bare: &'a [Measured], ours: &'a [Measured]) -> Self {
        Self { case, bare, ours }
    }

    /// The service's records a second as a share of the bare loop's.
    pub(crate) fn records_ratio(&self) -> f64 {
        self.ratio(Measured::records_a_second)
    }

    fn ratio(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.ours, &of) / median(self.bare, &of)
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| contender | records/s (min … max) | CPU-s per million (min … max) | peak memory |\n\
             |---|---|---|---|\n",
        );
        for (name, runs) in [
            ("bare librdkafka batch loop (C)", self.bare),
            ("sluicegate, native no-op, key order", self.ours),
        ] {
            let rate = |run: &Measured| run.records_a_second() / 1e6;
            let cpu = Measured::cpu_seconds_a_million;
            let _ = writeln!(
                text,
                "| {name} | {} M | {} | {:.0} MiB |",
                spread(runs, rate, 2),
                spread(runs, cpu, 3),
                median(runs, Measured::peak_mib)
            );
        }
        let _ = writeln!(
            text,
            "| **ratio of the medians** | **{:.2}** | **{:.2}** | |",
            self.records_ratio(),
            self.ratio(Measured::cpu_seconds_a_million)
        );
        text
    }

    /// Writes the page.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let case = self.case;
        let text = format!(
            "# Benchmarks\n\n\
             Made by `cargo xtask bench`; every figure is quoted as a ratio to the bare loop of the same run.\n\n\
             {} records of {} B with keys drawn evenly from {}, no headers, {} partitions, one broker (Apache Kafka \
             4.3.1) on the same machine; {} interleaved rounds after a warm-up, medians. Both contenders link the same \
             librdkafka, use jemalloc for it too, and fetch with the same keys. The bare loop takes batches of 1,024 \
             from one application queue and drops them. The service routes by topic, keeps key order, calls a native \
             no-op handler in a pool of one worker, and commits.\n\n\
             {}\n\
             Machine: {}.\n",
            thousands(case.records),
            case.value_bytes,
            thousands(case.keys),
            case.partitions,
            case.rounds,
            self.table(),
            machine()
        );
        Ok(std::fs::write(path, text)?)
    }
}

fn spread(runs: &[Measured], of: impl Fn(&Measured) -> f64, digits: usize) -> String {
    let all = runs.iter().map(&of);
    let least = all.clone().fold(f64::INFINITY, f64::min);
    let most = all.fold(f64::NEG_INFINITY, f64::max);
    let middle = median(runs, of);
    format!("{middle:.digits$} ({least:.digits$} … {most:.digits$})")
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Processor, cores, memory, kernel, and how busy the machine was besides.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_else(|| "unknown".into())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let gib = memory
        .split_whitespace()
        .next()
        .and_then(|kib| kib.parse::<f64>().ok())
        .map_or(memory.clone(), |kib| {
            format!("{:.0} GiB", kib / 1024.0 / 1024.0)
        });
    let kernel = Command::new("uname")
        .args(["-s", "-r"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!(
        "{}, {cores} cores, {gib}, {kernel}; load average at the end {load}",
        value(&read("/proc/cpuinfo"), "model name")
    )
}
