//! `cargo xtask instructions`: instructions per record, step by step, compared with a budget.
//!
//! Callgrind counts the same on every machine and under every load, so unlike timings it shows changes of a few per cent.
//! The budget (`benches/instructions.json`) is the cost of the cases when it was written; more than 3 % above it is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use e2e::artefacts::{cargo, workspace};
use e2e::launcher;

use crate::step::Report;

/// What to do with the counts.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write them as the new budget
    #[arg(long)]
    write: bool,
}

/// The budget file: instructions per record, by case.
const BUDGET: &str = "benches/instructions.json";
/// Tolerated excess over the budget, as a fraction.
const TOLERANCE: f64 = 0.03;

type Counts = BTreeMap<String, f64>;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !launcher::works(Command::new("valgrind").arg("--version")) {
        bail!("valgrind is not installed: its callgrind counts the instructions");
    }
    let program = build()?;
    let counts = count(&program)?;
    let path = workspace().join(BUDGET);
    if arguments.write {
        std::fs::write(&path, serde_json::to_string_pretty(&counts)? + "\n")?;
        println!("{}", table(&counts, &Counts::new()));
        println!("written to {BUDGET}");
        return Ok(ExitCode::SUCCESS);
    }
    let budget = budget()?;
    println!("{}", table(&counts, &budget));
    let beyond = beyond(&counts, &budget);
    for line in &beyond {
        println!("FAILED: {line}");
    }
    Ok(match beyond.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The comparison as a step of the long test run: each case within its budget is a passed test.
pub(crate) fn step() -> Result<Report> {
    const NAME: &str = "instructions";
    if !launcher::works(Command::new("valgrind").arg("--version")) {
        return Ok(Report::skipped(NAME, "valgrind is not installed"));
    }
    let start = Instant::now();
    let (counts, budget) = (count(&build()?)?, budget()?);
    println!("{}", table(&counts, &budget));
    Ok(Report {
        took: start.elapsed(),
        ..compared(NAME, &counts, &budget)
    })
}

/// Not every failure is a counted case that has not passed: a budget without a case fails, too.
fn compared(name: &str, counts: &Counts, budget: &Counts) -> Report {
    let passed = counts
        .iter()
        .filter(|(case, count)| is_within(**count, budget.get(*case)));
    Report {
        passed: passed.count() as u64,
        failed: beyond(counts, budget),
        ..Report::new(name)
    }
}

fn is_within(count: f64, budget: Option<&f64>) -> bool {
    budget.is_some_and(|budget| count <= budget * (1.0 + TOLERANCE))
}

fn budget() -> Result<Counts> {
    let text = std::fs::read_to_string(workspace().join(BUDGET))
        .with_context(|| format!("cannot read {BUDGET}"))?;
    serde_json::from_str(&text).with_context(|| format!("{BUDGET} is not a map of numbers"))
}

/// Builds the cases and the plugin that one of them calls.
fn build() -> Result<PathBuf> {
    eprintln!("Building with optimisation …");
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "--package",
        "benches",
        "--package",
        "noop",
    ]);
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("release/instructions"))
}

/// Runs every case under callgrind and returns its instructions per record.
fn count(program: &Path) -> Result<Counts> {
    let listed = launcher::run(Command::new(program).arg("list"))?;
    let mut counts = Counts::new();
    for line in listed.lines() {
        let (case, records) = line.split_once(' ').context("a case without its records")?;
        let records: f64 = records.parse()?;
        eprintln!("counting {case} …");
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*instructions*measured*")
            .arg(program)
            .arg(case)
            .output()
            .context("cannot start valgrind")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{case} failed with {}:\n{said}", output.status);
        }
        let collected = collected(&said)
            .with_context(|| format!("callgrind counted nothing of {case}:\n{said}"))?;
        counts.insert(
            case.to_owned(),
            (collected as f64 / records * 10.0).round() / 10.0,
        );
    }
    Ok(counts)
}

/// The count in callgrind's closing line, `==123== Collected : 456`.
fn collected(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))?;
    let count = line.1.trim().parse().ok()?;
    (count > 0).then_some(count)
}

fn table(counts: &Counts, budget: &Counts) -> String {
    let mut table = format!(
        "{:12} {:>14} {:>10} {:>8}\n",
        "case", "instructions", "budget", "change"
    );
    for (case, count) in counts {
        table.push_str(&format!("{case:12} {count:>14.1}"));
        if let Some(budget) = budget.get(case) {
            table.push_str(&format!(
                " {budget:>10.1} {:>+7.1}%",
                (count / budget - 1.0) * 100.0
            ));
        }
        table.push('\n');
    }
    table
}

/// Cases that exceed their budget, or are missing from either side.
fn beyond(counts: &Counts, budget: &Counts) -> Vec<String> {
    let mut beyond = Vec::new();
    for (case, count) in counts {
        match budget.get(case) {
            budget if is_within(*count, budget) => {}
            Some(budget) => beyond.push(format!(
                "{case} costs {count} instructions per record; its budget is {budget}"
            )),
            None => beyond.push(format!(
                "{case} has no budget: `cargo xtask instructions --write`"
            )),
        }
    }
    let gone = budget.keys().filter(|case| !counts.contains_key(*case));
    beyond.extend(
        gone.map(|case| {
            format!("case {case} no longer exists: `cargo xtask instructions --write`")
        }),
    );
    beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, f64)]) -> Counts {
        let owned = pairs
            .iter()
            .map(|(case, count)| ((*case).to_owned(), *count));
        owned.collect()
    }

    #[test]
    fn three_per_cent_over_budget_is_tolerated_and_four_is_not() {
        let budget = counts(&[("route", 100.0), ("gone", 1.0)]);
        assert_eq!(
            beyond(&counts(&[("route", 103.0), ("gone", 0.5)]), &budget),
            [""; 0]
        );
        let beyond = beyond(&counts(&[("route", 104.0), ("new", 1.0)]), &budget);
        assert_eq!(beyond.len(), 3, "{beyond:?}");
    }

    #[test]
    fn only_cases_within_their_budget_have_passed() {
        let budget = counts(&[("gone", 1.0), ("route", 100.0), ("settle", 100.0)]);
        let counted = counts(&[("new", 1.0), ("route", 100.0), ("settle", 200.0)]);
        let report = compared("instructions", &counted, &budget);
        assert_eq!((report.passed, report.failed.len()), (1, 3));
    }

    #[test]
    fn the_count_is_in_the_closing_line() {
        assert_eq!(
            collected("==7== Events    : Ir\n==7== Collected : 1234\n"),
            Some(1234)
        );
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected(""), None);
    }
}
