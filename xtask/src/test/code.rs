//! The steps that need no server: formatting, lints, rules, unit tests, models, Miri.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::artefacts::{cargo, workspace};
use e2e::launcher;
use e2e::postgres::{self, Postgres};
use serde_json::Value;

use super::LIMIT;
use super::lanes::{Load, Waiting};
use super::programs::{self, Artefacts, Program};
use crate::step::{self, Report};

pub(super) fn fmt() -> Result<Report> {
    step::run("fmt", cargo().args(["fmt", "--all", "--check"]), LIMIT)
}

pub(super) fn clippy() -> Result<Report> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    step::run_in_background("clippy", programs::cargo().args(arguments), LIMIT)
}

pub(super) fn docs() -> Result<Report> {
    let mut command = programs::cargo();
    command
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run_in_background("docs", &mut command, LIMIT)
}

/// Checks only the repository rules.
pub(super) fn tidy() -> Result<Report> {
    step::run(
        "tidy",
        cargo().args(["test", "--package", "xtask", "--test", "tidy"]),
        LIMIT,
    )
}

/// The test program of the repository rules.
pub(super) const TIDY: &str = "xtask::tidy";

/// Programs that mostly wait for group members and hung handlers.
const MOSTLY_WAIT: [&str; 2] = [
    "sluicegate-kafka::kafka_source",
    "sluicegate-plugins::native_handlers",
];

/// The databases for the tests of handlers: they are plain test programs, which do not start servers.
pub(super) struct Databases {
    postgres: Option<Postgres>,
}

impl Databases {
    /// Starts those that are available and that the environment does not name. The tests name those that are missing as skipped.
    pub(super) fn start() -> Self {
        let is_named = std::env::var_os(postgres::URL).is_some();
        let postgres = (!is_named).then(|| {
            let started = Postgres::start();
            started.inspect_err(|error| println!("    no PostgreSQL: {error:#}"))
        });
        Self {
            postgres: postgres.and_then(Result::ok),
        }
    }

    fn tell(&self, command: &mut Command) {
        if let Some(postgres) = &self.postgres {
            command.env(postgres::URL, postgres.url());
        }
    }
}

/// A test program of a crate, as a queued step; `databases` are for those of handlers.
pub(super) fn waiting<'a>(
    program: &'a Program,
    artefacts: &'a Artefacts,
    databases: Option<&'a Databases>,
) -> Waiting<'a> {
    let load = match MOSTLY_WAIT.contains(&program.name.as_str()) {
        true => Load::Light,
        false => Load::Full,
    };
    Waiting {
        name: program.name.clone(),
        load,
        run: Box::new(move || {
            let mut command = artefacts.command(program);
            if let Some(databases) = databases.filter(|_| program.is_of_handler()) {
                databases.tell(&mut command);
            }
            step::run_concurrently(&program.name, &mut command, LIMIT)
        }),
    }
}

/// Seeds of the long simulation: ten million steps, about 210 per seed.
const LONG_SEEDS: &str = "48000";
/// Ten million steps take about two minutes.
const SIMULATION_LIMIT: Duration = Duration::from_hours(2);

/// The simulator of the engine, ten million steps long.
pub(super) fn simulation() -> Result<Report> {
    let mut command = cargo();
    command
        .args(["test", "--release", "--package", "sluicegate-engine"])
        .args(["--test", "simulation", "every_guarantee"])
        .env("SLUICEGATE_SIM_SEEDS", LONG_SEEDS);
    step::run("simulation", &mut command, SIMULATION_LIMIT)
}

pub(super) fn doctest() -> Result<Report> {
    let mut command = programs::cargo();
    command.args(["test", "--workspace", "--doc"]);
    step::run_concurrently("doctest", &mut command, LIMIT)
}

/// Models of state shared between threads, under every interleaving: the tests behind `--cfg loom`.
pub(super) fn loom() -> Result<Report> {
    let mut names = String::new();
    let mut find = Command::new("git");
    find.current_dir(workspace()).args([
        "grep",
        "-l",
        "--untracked",
        "cfg(all(loom, test))",
        "--",
        "*.rs",
    ]);
    if let Ok(found) = launcher::run(&mut find) {
        names = found;
    }
    let mut packages = packages_of(&names)?;
    packages.retain(|package| package != "xtask");
    if packages.is_empty() {
        return Ok(Report::skipped(
            "loom",
            "no crate has tests behind --cfg loom",
        ));
    }
    let mut command = cargo();
    // A target folder of its own: the other flags would otherwise invalidate the build that the other steps share.
    command
        .args(["test", "--lib", "--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom");
    for package in &packages {
        command.args(["--package", package]);
    }
    command.arg("loom");
    step::run_in_background("loom", &mut command, LIMIT)
}

/// Code that accesses memory owned by others, under Miri: the ABI crate's unit tests, and a pump that ends during a hanging
/// call. Leaks are not errors here: panic payloads are leaked on purpose, because dropping one can panic again, and so
/// are records that a call still reads.
pub(super) fn miri() -> Result<Report> {
    let nightly = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(arguments);
        launcher::works(&mut command)
    };
    if !nightly(&["run", "nightly", "rustc", "--version"]) {
        return Ok(Report::skipped("miri", "no nightly toolchain is installed"));
    }
    let has_miri = || nightly(&["run", "nightly", "cargo", "miri", "--version"]);
    if !has_miri()
        && !nightly(&[
            "component",
            "add",
            "--toolchain",
            "nightly",
            "miri",
            "rust-src",
        ])
    {
        return Ok(Report::skipped(
            "miri",
            "the nightly toolchain has no miri, and rustup could not add it",
        ));
    }
    let mut report = under_miri(&["--package", "sluicegate-abi", "--lib"])?;
    let calls = [
        "--package",
        "sluicegate-pool",
        "--lib",
        "--",
        "tests::ending",
    ];
    let calls = under_miri(&calls)?;
    report.took += calls.took;
    report.passed += calls.passed;
    report.failed.extend(calls.failed);
    report.skipped.extend(calls.skipped);
    Ok(report)
}

/// Known vulnerabilities of the dependencies, by `cargo deny` and its database, which has to be fetched.
pub(super) fn advisories() -> Result<Report> {
    let deny = |arguments: &[&str]| {
        let mut command = cargo();
        command.current_dir(workspace()).arg("deny").args(arguments);
        command
    };
    let skipped = |why| Ok(Report::skipped("advisories", why));
    if !launcher::works(&mut deny(&["--version"])) {
        return skipped("`cargo deny` is not installed");
    }
    if !launcher::works(&mut deny(&["fetch", "db"])) {
        return skipped("the advisory database cannot be fetched");
    }
    let mut check = deny(&["check", "--disable-fetch", "advisories"]);
    step::run_in_background("advisories", &mut check, LIMIT)
}

/// The C libraries that the service links, by their `links` keys. Miri cannot run C code.
const C_LIBRARIES: [&str; 5] = ["rdkafka", "openssl", "curl", "z", "zstd"];

fn under_miri(tests: &[&str]) -> Result<Report> {
    let host = launcher::run(Command::new("rustc").arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV names no host")?;
    // Replaces their build scripts, which would compile them again.
    let without_c = C_LIBRARIES.iter().flat_map(|library| {
        [
            "--config".to_owned(),
            format!("target.{host}.{library}.rustc-link-lib=[]"),
        ]
    });
    let mut command = Command::new("rustup");
    command
        .current_dir(workspace())
        .args(["run", "nightly", "cargo", "miri", "test"])
        .args(["--target-dir", "target/miri"])
        .args(without_c)
        .args(tests)
        .env("MIRIFLAGS", "-Zmiri-ignore-leaks -Zmiri-disable-isolation")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    step::run_in_background("miri", &mut command, LIMIT)
}

/// The packages that contain the files of `paths` (one per line, relative to the workspace).
fn packages_of(paths: &str) -> Result<Vec<String>> {
    let metadata = metadata()?;
    let root = workspace();
    let mut names = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = text(&package["manifest_path"]);
        let folder = std::path::Path::new(&manifest)
            .parent()
            .and_then(|folder| folder.strip_prefix(&root).ok());
        let Some(folder) = folder else { continue };
        if paths
            .lines()
            .any(|path| std::path::Path::new(path).starts_with(folder.join("src")))
        {
            names.push(text(&package["name"]));
        }
    }
    Ok(names)
}

fn metadata() -> Result<Value> {
    let printed = launcher::run(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    Ok(serde_json::from_str(&printed)?)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
