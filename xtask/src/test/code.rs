//! The steps that need no server: form, rules, unit tests, models, Miri.
//!
//! All of them select the whole workspace, so that one set of features is compiled once and shared.

use std::process::Command;

use anyhow::{Context, Result};
use e2e::artefacts::{self, cargo, workspace};
use e2e::launcher;
use serde_json::Value;

use super::LIMIT;
use crate::step::{self, Report};

pub(super) fn clippy() -> Result<Report> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    step::run("clippy", cargo().args(arguments), LIMIT)
}

pub(super) fn docs() -> Result<Report> {
    let mut command = cargo();
    command
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run("docs", &mut command, LIMIT)
}

pub(super) fn tidy() -> Result<Report> {
    step::run(
        "tidy",
        cargo().args(["test", "--package", "xtask", "--test", "tidy"]),
        LIMIT,
    )
}

/// Unit, model and property tests of every crate, and the integration tests of every crate but the scenarios'.
pub(super) fn unit() -> Result<Report> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]);
    // Its only binary is a measuring loop without tests, which `--bins` would run all the same.
    command.args(["--exclude", "benches"]);
    for (package, test) in test_targets()? {
        if package != "e2e" && package != "xtask" {
            command.args(["--test", &test]);
        }
    }
    // Built with the features of the whole workspace, which the scenarios share; a failure shows in the tests that need one.
    if let Ok(built) = artefacts::build(&["--workspace"]) {
        command.env(artefacts::PLUGINS, built.plugins);
    }
    step::run("unit", &mut command, LIMIT)
}

/// What threads share, under every interleaving: the tests that stand behind `--cfg loom`.
pub(super) fn loom(run: step::Run) -> Result<Report> {
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
    // A folder of its own: other flags for every crate would else throw away what the other steps share.
    command
        .args(["test", "--lib", "--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom");
    for package in &packages {
        command.args(["--package", package]);
    }
    command.arg("loom");
    run("loom", &mut command, LIMIT)
}

/// What touches memory that others own, under Miri: the ABI crate's unit tests, and a pump that ends under a call which
/// hangs. Leaks are no fault here: what a panic throws is given up on purpose, since dropping it can panic again, and so
/// is a record that a call still reads.
pub(super) fn miri(run: step::Run) -> Result<Report> {
    let nightly = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(arguments);
        launcher::works(&mut command)
    };
    if !nightly(&["run", "nightly", "rustc", "--version"]) {
        return Ok(Report::skipped("miri", "no nightly toolchain is installed"));
    }
    let there = || nightly(&["run", "nightly", "cargo", "miri", "--version"]);
    if !there()
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
    let mut report = under_miri(&["--package", "sluicegate-abi", "--lib"], run)?;
    let calls = [
        "--package",
        "sluicegate",
        "--lib",
        "--",
        "handlers::tests::ending",
    ];
    let calls = under_miri(&calls, run)?;
    report.took += calls.took;
    report.passed += calls.passed;
    report.failed.extend(calls.failed);
    report.skipped.extend(calls.skipped);
    Ok(report)
}

/// The C libraries that the service is linked with, by their `links` keys. Miri runs no C.
const C_LIBRARIES: [&str; 5] = ["rdkafka", "openssl", "curl", "z", "zstd"];

fn under_miri(tests: &[&str], run: step::Run) -> Result<Report> {
    let host = launcher::run(Command::new("rustc").arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV names no host")?;
    // Instead of their build scripts, which would compile them once more.
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
    run("miri", &mut command, LIMIT)
}

/// Every integration test of the workspace as (package, test).
pub(super) fn test_targets() -> Result<Vec<(String, String)>> {
    let metadata = metadata()?;
    let mut found = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"][0] == "test" {
                found.push((text(&package["name"]), text(&target["name"])));
            }
        }
    }
    Ok(found)
}

/// The packages that the files of `paths` (one a line, relative to the workspace) belong to.
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
