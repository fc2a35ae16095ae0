//! `cargo xtask mutants`: applies mutants one by one and shows which suite catches each.
//!
//! ```text
//!  tests/mutants/NAME.patch ─► scratch copy of the tree ─► the suite that should catch it ─► caught | NOT CAUGHT
//! ```
//!
//! Each suite is first run without a mutant: only then does a failing run mean that the suite detected the mutant. A patch that
//! does not apply or does not compile is an error: it became stale with the code that it breaks, and must be renewed.

mod list;
mod scratch;
mod suites;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::artefacts::{cargo, workspace};
use list::MUTANTS;
use scratch::Scratch;

use crate::step;

/// A mutant; its patch has the same name.
#[derive(Clone, Copy)]
struct Mutant {
    /// File name in `tests/mutants`, without `.patch`.
    name: &'static str,
    /// The behaviour with the patch applied.
    what: &'static str,
    /// Arguments of the `cargo test` that must fail.
    suite: &'static [&'static str],
}

/// Time limit of a suite: a mutant can make one hang.
const LIMIT: Duration = Duration::from_mins(10);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only these mutants; the mutation report keeps its rows for the others
    names: Vec<String>,
    /// List the mutants and the suites
    #[arg(long)]
    list: bool,
}

/// The result for a mutant.
enum Fate {
    /// These tests failed.
    Caught(Vec<String>),
    NotCaught,
    /// It could not be applied or tested, with the reason.
    Unusable(String),
}

/// Runs the requested mutants.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for mutant in &*MUTANTS {
            println!(
                "{:<28} {}\n{:<28} {}",
                mutant.name,
                mutant.what,
                "",
                shown(mutant.suite)
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mutants = chosen(&arguments.names)?;
    let root = workspace();
    let root = root.as_path();
    let scratch = Scratch::new(root)?;
    let mut sound = BTreeMap::new();
    for mutant in &mutants {
        if !sound.contains_key(mutant.suite) {
            println!("==> without a mutant: {}", shown(mutant.suite));
            sound.insert(mutant.suite, failures_of(&scratch, mutant.suite)?);
        }
    }
    let mut fates = Vec::new();
    for mutant in &mutants {
        println!("==> {}: {}", mutant.name, mutant.what);
        let fate = match &sound[mutant.suite] {
            Run::Passed => apply(&scratch, root, mutant)?,
            Run::Failed(tests) => Fate::Unusable(format!("its suite fails without it: {tests:?}")),
            Run::NotBuilt => Fate::Unusable("its suite does not compile without it".into()),
            Run::Empty => Fate::Unusable("its suite has no test: name another".into()),
        };
        println!("    {}", fate.in_words());
        fates.push((*mutant, fate));
    }
    let page = root.join("docs/mutation-report.md");
    let earlier = std::fs::read_to_string(&page).unwrap_or_default();
    std::fs::write(&page, mutation_report(&fates, &earlier))
        .with_context(|| format!("cannot write {}", page.display()))?;
    let caught = fates
        .iter()
        .filter(|(_, fate)| matches!(fate, Fate::Caught(_)))
        .count();
    println!("\n{caught} of {} mutants caught", fates.len());
    for (mutant, fate) in &fates {
        println!("{:<28} {}", mutant.name, fate.in_words());
    }
    Ok(match caught == fates.len() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Mutant>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| MUTANTS.iter().all(|mutant| mutant.name != name.as_str()))
    {
        bail!("unknown mutant `{unknown}`; `cargo xtask mutants --list` lists them");
    }
    Ok(MUTANTS
        .iter()
        .filter(|mutant| names.is_empty() || names.iter().any(|name| name == mutant.name))
        .collect())
}

fn apply(scratch: &Scratch, root: &Path, mutant: &Mutant) -> Result<Fate> {
    let patch = root
        .join("tests/mutants")
        .join(format!("{}.patch", mutant.name));
    ensure!(patch.exists(), "{} is missing", patch.display());
    if let Err(reason) = scratch.apply(&patch)? {
        return Ok(Fate::Unusable(format!(
            "its patch does not apply and must be renewed: {reason}"
        )));
    }
    let run = failures_of(scratch, mutant.suite);
    scratch.revert(&patch)?;
    Ok(match run? {
        Run::Passed => Fate::NotCaught,
        Run::Failed(tests) => Fate::Caught(tests),
        Run::NotBuilt => {
            Fate::Unusable("the code does not compile with it; the patch must be renewed".into())
        }
        Run::Empty => {
            Fate::Unusable("the suite has no test with it; the patch must be renewed".into())
        }
    })
}

/// The result of a suite.
enum Run {
    Passed,
    /// The failed tests, or the failure of the suite as a whole.
    Failed(Vec<String>),
    NotBuilt,
    /// The suite's filter matches no test, so it cannot catch anything.
    Empty,
}

fn failures_of(scratch: &Scratch, suite: &[&str]) -> Result<Run> {
    let (package, filter) = match suite.iter().position(|word| word.ends_with("::")) {
        Some(at) => suite.split_at(at),
        None => (suite, [].as_slice()),
    };
    let mut build = command(scratch);
    build.arg("--no-run").args(package);
    if !build.status().context("cannot start cargo")?.success() {
        return Ok(Run::NotBuilt);
    }
    let mut test = command(scratch);
    test.args(package)
        .arg("--")
        .args(filter)
        .env("RUST_BACKTRACE", "0");
    let report = step::run("the suite", &mut test, LIMIT)?;
    Ok(match (report.failed.is_empty(), report.passed) {
        (true, 0) => Run::Empty,
        (true, _) => Run::Passed,
        (false, _) => Run::Failed(report.failed),
    })
}

fn command(scratch: &Scratch) -> Command {
    let mut command = cargo();
    command
        .args(["test", "--locked"])
        .current_dir(scratch.tree())
        .env("CARGO_TARGET_DIR", scratch.target())
        .env("CARGO_TERM_COLOR", "never");
    command
}

fn shown(suite: &[&str]) -> String {
    match suite.split_last() {
        Some((filter, package)) if filter.ends_with("::") => {
            format!("cargo test {} -- {filter}", package.join(" "))
        }
        _ => format!("cargo test {}", suite.join(" ")),
    }
}

impl Fate {
    fn in_words(&self) -> String {
        match self {
            Self::Caught(tests) => format!("caught by {}", tests.join(", ")),
            Self::NotCaught => "NOT CAUGHT".into(),
            Self::Unusable(reason) => format!("error: {reason}"),
        }
    }
}

/// The page: one row per mutant, from this run, or from the `earlier` page if mutant and suite are unchanged.
fn mutation_report(fates: &[(&Mutant, Fate)], earlier: &str) -> String {
    let mut page = String::from(
        "# Mutation report\n\nThe mutants, applied one by one, and the tests that catch each. Generated by `cargo xtask mutants`; the \
         patches are in `tests/mutants`.\n\n| mutant | what it does | suite | outcome |\n|---|---|---|---|\n",
    );
    for mutant in &*MUTANTS {
        let suite = shown(mutant.suite);
        let start = format!("| {} | {} | `{suite}` |", mutant.name, mutant.what);
        let row = match fates.iter().find(|(tried, _)| tried.name == mutant.name) {
            Some((_, fate)) => format!("{start} {} |", fate.in_words()),
            None => match earlier.lines().find(|line| line.starts_with(&start)) {
                Some(row) => row.to_owned(),
                None => continue,
            },
        };
        page.push_str(&row);
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_the_rows_of_mutants_that_were_not_run_again() {
        let first = mutation_report(
            &[
                (&MUTANTS[0], Fate::NotCaught),
                (&MUTANTS[1], Fate::NotCaught),
            ],
            "",
        );
        let second = mutation_report(
            &[(&MUTANTS[0], Fate::Caught(vec!["a_test".into()]))],
            &first,
        );
        let row = |page: &str, mutant: &Mutant| {
            let start = format!("| {} |", mutant.name);
            page.lines()
                .find(|line| line.starts_with(&start))
                .map(str::to_owned)
        };
        assert!(row(&second, &MUTANTS[0]).is_some_and(|row| row.ends_with("| caught by a_test |")));
        assert!(row(&first, &MUTANTS[1]).is_some_and(|row| row.ends_with("| NOT CAUGHT |")));
        assert_eq!(row(&second, &MUTANTS[1]), row(&first, &MUTANTS[1]));
    }

    #[test]
    fn every_mutant_has_a_patch_and_every_patch_a_mutant() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/mutants");
        let mut patches: Vec<String> = std::fs::read_dir(folder)
            .expect("the patches exist")
            .map(|entry| entry.expect("it can be read").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        patches.sort();
        let mut mutants: Vec<String> = MUTANTS
            .iter()
            .map(|mutant| format!("{}.patch", mutant.name))
            .collect();
        mutants.sort();
        assert_eq!(patches, mutants);
    }
}
