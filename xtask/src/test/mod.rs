//! `cargo xtask test`: every step of the gate in order, each timed, with a table and one line of counts at the end.
//!
//! ```text
//! form       fmt, clippy, docs, tidy
//! own code   unit (unit, model and property tests), doctest
//! real       provision (servers), build (binary and plugins), e2e (scenarios, a few at a time) │ behind them: loom, miri
//! ```
//!
//! A step that cannot run on this machine is skipped by name with its reason; a step that fails does not stop the others.

mod closing;
mod code;
mod scenarios;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use e2e::artefacts::cargo;

use crate::step::{self, Report};

const MINUTE: Duration = Duration::from_secs(60);
/// A step is stopped after this long; the whole gate is meant to take less than 30 minutes on two cores.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// The steps in their order.
const STEPS: [&str; 9] = [
    "fmt", "clippy", "docs", "tidy", "unit", "doctest", "loom", "miri", "e2e",
];

/// Steps that build in folders of their own: they use the processor time that scenarios leave, which mostly wait.
const BEHIND: [scenarios::Behind; 2] = [
    ("loom", || code::loom(step::run_behind)),
    ("miri", || code::miri(step::run_behind)),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Add the long forms of the scenarios: soaks and full sizes
    #[arg(long)]
    long: bool,
    /// Run these steps alone: fmt, clippy, docs, tidy, unit, doctest, loom, miri, e2e
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    only: Vec<String>,
    /// Of the scenarios run these alone
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    scenario: Vec<String>,
}

/// Runs the steps asked for and prints what came of them.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(unknown) = arguments
        .only
        .iter()
        .find(|name| !STEPS.contains(&name.as_str()))
    {
        bail!(
            "there is no step {unknown}; the steps are {}",
            STEPS.join(", ")
        );
    }
    let wanted = |step: &str| match (arguments.only.is_empty(), arguments.scenario.is_empty()) {
        (true, true) => true,
        (true, false) => step == "e2e",
        (false, _) => arguments.only.iter().any(|name| name == step),
    };
    let mut reports = Vec::new();
    let behind: Vec<scenarios::Behind> = match wanted("e2e") {
        true => BEHIND
            .into_iter()
            .filter(|(step, _)| wanted(step))
            .collect(),
        false => Vec::new(),
    };
    let is_behind = |step: &str| behind.iter().any(|(name, _)| *name == step);
    let steps = STEPS.into_iter();
    for step in steps.filter(|step| wanted(step) && !is_behind(step)) {
        let mut add = |done: Result<Report>| {
            reports.push(done.unwrap_or_else(|error| {
                eprintln!("{step}: {error:#}");
                let mut failed = Report::new(step);
                failed.failed.push(format!("{step} ({error})"));
                failed
            }));
        };
        match step {
            "fmt" => add(step::run(
                step,
                cargo().args(["fmt", "--all", "--check"]),
                MINUTE,
            )),
            "clippy" => add(code::clippy()),
            "docs" => add(code::docs()),
            "tidy" => add(code::tidy()),
            "unit" => add(code::unit()),
            "doctest" => add(step::run(
                step,
                cargo().args(["test", "--workspace", "--doc"]),
                LIMIT,
            )),
            "loom" => add(code::loom(step::run)),
            "miri" => add(code::miri(step::run)),
            _ => reports.extend(scenarios::run(&arguments.scenario, arguments.long, &behind)),
        }
    }
    Ok(closing::print(&reports))
}

/// The rules of the house alone.
pub(crate) fn tidy() -> Result<ExitCode> {
    Ok(closing::print(&[code::tidy()?]))
}
