//! `cargo xtask test`: every step of the test suite, each timed, with a table and one line of counts at the end.
//!
//! ```text
//! fmt
//! build         the service, its plugins and every test, in one call of cargo
//! concurrent    the test programs of every crate (unit, model and property tests, tidy), doctest, and the scenarios on
//!               real servers, which mostly wait │ in the background: clippy, docs, loom, miri
//! alone         scenarios that measure
//! ```
//!
//! A step that cannot run on this machine is skipped and listed with its reason; a failed step does not stop the others.

mod changed;
mod closing;
mod code;
mod lanes;
mod programs;
mod scenarios;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use lanes::Waiting;
use programs::{Artefacts, Program};
use scenarios::Scenario;

use crate::instructions;
use crate::step::{self, Report};

/// Time limit of a step; the whole suite should take less than 30 minutes on two cores.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// All steps, in order.
const STEPS: [&str; 10] = [
    "fmt",
    "clippy",
    "docs",
    "tidy",
    "unit",
    "doctest",
    "loom",
    "miri",
    "advisories",
    "e2e",
];

/// A step by name.
type Step = (&'static str, fn() -> Result<Report>);

/// Checks that take seconds.
const FORM: [Step; 1] = [("fmt", code::fmt)];
/// Steps that need cargo to run.
const OF_CARGO: [Step; 1] = [("doctest", code::doctest)];
/// CPU-bound steps; they run at low priority on the CPU time that the others leave.
const BACKGROUND: [Step; 5] = [
    ("advisories", code::advisories),
    ("clippy", code::clippy),
    ("docs", code::docs),
    ("loom", code::loom),
    ("miri", code::miri),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Add the long forms of the scenarios (soaks and full sizes), ten million steps of the simulator, and compare
    /// instructions per record with their budget
    #[arg(long)]
    long: bool,
    /// Run only these steps: fmt, clippy, docs, tidy, unit, doctest, loom, miri, advisories, e2e
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    only: Vec<String>,
    /// Run what a change affects: fmt, clippy, tidy, the tests of the crates that differ from this revision and of their
    /// dependents, the scenarios that differ, and three short ones
    #[arg(
        long,
        value_name = "REVISION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "HEAD",
        conflicts_with_all = ["only", "scenario", "long"]
    )]
    changed: Option<String>,
    /// Run only these scenarios
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    scenario: Vec<String>,
}

/// Runs the requested steps and prints their results.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let wanted = Wanted::of(arguments)?;
    let mut reports = wanted.each(&FORM, |name, step| lanes::done(name, step()));
    if arguments.long && arguments.only.is_empty() && arguments.scenario.is_empty() {
        reports.push(lanes::done("instructions", instructions::step()));
        reports.push(lanes::done("simulation", code::simulation()));
    }
    let mut artefacts = None;
    if wanted.runs_programs() {
        let (report, built) = programs::build()?;
        reports.push(report);
        artefacts = built;
    }
    let programs = artefacts.iter().flat_map(Artefacts::own);
    let programs: Vec<_> = programs.filter(|one| wanted.program(one)).collect();
    // They run until all steps have ended.
    let of_handlers = programs.iter().any(|program| program.is_of_handler());
    let databases = of_handlers.then(code::Databases::start);
    let (mut steps, mut alone) = (Vec::new(), Vec::new());
    if let Some(artefacts) = &artefacts {
        if wanted.step("e2e") {
            let (provisioned, servers) = scenarios::provision();
            reports.push(provisioned);
            match scenarios::find(&wanted.scenarios, arguments.long, artefacts, &servers) {
                Ok(found) => {
                    let concurrent = found.concurrent.into_iter();
                    let waiting = |one: Scenario| one.waiting(step::run_concurrently, artefacts);
                    steps.extend(concurrent.map(waiting));
                    let measured = found.alone.into_iter();
                    alone.extend(measured.map(|one| one.waiting(step::run, artefacts)));
                    reports.extend(found.skipped);
                }
                Err(error) => reports.push(lanes::done("e2e", Err(error))),
            }
        }
        let databases = databases.as_ref();
        let own = programs.into_iter();
        steps.extend(own.map(|program| code::waiting(program, artefacts, databases)));
    }
    steps.extend(wanted.each(&OF_CARGO, Waiting::of));
    let background = wanted.each(&BACKGROUND, Waiting::of);
    let mut concurrent = lanes::run(steps, background);
    concurrent.sort_by(|one, other| one.name.cmp(&other.name));
    reports.extend(concurrent);
    reports.extend(lanes::one_by_one(alone));
    Ok(closing::print(&reports))
}

/// The requested part of the suite.
struct Wanted {
    steps: Vec<&'static str>,
    /// The scenarios by name; empty means all.
    scenarios: Vec<String>,
    /// Packages whose test programs run; `None` means all.
    packages: Option<BTreeSet<String>>,
}

impl Wanted {
    fn of(arguments: &Arguments) -> Result<Self> {
        if let Some(unknown) = arguments
            .only
            .iter()
            .find(|name| !STEPS.contains(&name.as_str()))
        {
            bail!("unknown step {unknown}; the steps are {}", STEPS.join(", "));
        }
        if let Some(revision) = &arguments.changed {
            return Ok(Self::by(changed::since(revision)?));
        }
        // Naming a scenario requests no other step.
        let is_wanted =
            |step: &&str| match (arguments.only.is_empty(), arguments.scenario.is_empty()) {
                (true, true) => true,
                (true, false) => *step == "e2e",
                (false, _) => arguments.only.iter().any(|name| name == step),
            };
        Ok(Self {
            steps: STEPS.into_iter().filter(is_wanted).collect(),
            scenarios: arguments.scenario.clone(),
            packages: None,
        })
    }

    /// The part of the suite that a change affects.
    fn by(concerned: changed::Concerned) -> Self {
        let mut steps = vec!["fmt", "clippy", "tidy"];
        if !concerned.packages.is_empty() {
            steps.push("unit");
        }
        if !concerned.scenarios.is_empty() {
            steps.push("e2e");
        }
        let left_out = STEPS.into_iter().filter(|step| !steps.contains(step));
        println!(
            "affected packages: {}\nscenarios: {}\nleft out: {}, and every other package and scenario",
            join(&concerned.packages),
            join(&concerned.scenarios),
            left_out.collect::<Vec<_>>().join(", "),
        );
        Self {
            steps,
            scenarios: concerned.scenarios.into_iter().collect(),
            packages: Some(concerned.packages),
        }
    }

    fn step(&self, step: &str) -> bool {
        self.steps.contains(&step)
    }

    fn runs_programs(&self) -> bool {
        ["unit", "tidy", "e2e"].iter().any(|step| self.step(step))
    }

    fn program(&self, program: &Program) -> bool {
        if program.name == code::TIDY {
            return self.step("tidy");
        }
        let packages = self.packages.as_ref();
        self.step("unit") && packages.is_none_or(|packages| packages.contains(&program.package))
    }

    /// Maps each requested step of `steps` with `take`.
    fn each<T>(
        &self,
        steps: &[Step],
        take: impl Fn(&'static str, fn() -> Result<Report>) -> T,
    ) -> Vec<T> {
        let wanted = steps.iter().filter(|(name, _)| self.step(name));
        wanted.map(|&(name, step)| take(name, step)).collect()
    }
}

fn join(names: &BTreeSet<String>) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().cloned().collect::<Vec<_>>().join(", "),
    }
}

/// Checks only the repository rules.
pub(crate) fn tidy() -> Result<ExitCode> {
    Ok(closing::print(&[code::tidy()?]))
}
