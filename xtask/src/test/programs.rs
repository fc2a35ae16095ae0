//! Builds everything in one cargo invocation, and runs the resulting test programs.
//!
//! One invocation with one set of features compiles each crate once for all steps. The programs are then run directly, so
//! that no step waits for cargo to check the whole workspace again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use e2e::artefacts::{self, BINARY, Built, PLUGINS};
use serde_json::Value;

use crate::step::Report;

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) package: String,
    /// `package` for the tests in its modules, `package::target` for those in `tests/`.
    pub(super) name: String,
    executable: PathBuf,
    /// The package's folder, the working directory of its tests.
    folder: PathBuf,
}

impl Program {
    /// Whether its tests are those of a shipped handler.
    pub(super) fn is_of_handler(&self) -> bool {
        self.folder.parent() == Some(&artefacts::workspace().join("handlers"))
    }
}

/// The build results.
pub(super) struct Artefacts {
    pub(super) programs: Vec<Program>,
    built: Built,
}

/// The test program of the scenarios.
const SCENARIOS: &str = "e2e::scenarios";

impl Artefacts {
    /// Every program except the scenarios.
    pub(super) fn own(&self) -> impl Iterator<Item = &Program> {
        let is_own = |program: &&Program| program.name != SCENARIOS;
        self.programs.iter().filter(is_own)
    }

    pub(super) fn scenarios(&self) -> Result<&Program> {
        let found = self.programs.iter().find(|one| one.name == SCENARIOS);
        found.context("the scenarios were not built")
    }

    /// A command that runs a program as cargo does, with the build results in its environment.
    pub(super) fn command(&self, program: &Program) -> Command {
        let mut command = Command::new(&program.executable);
        artefacts::forget_caller(&mut command);
        command
            .current_dir(&program.folder)
            .stdin(Stdio::null())
            .env("CARGO_MANIFEST_DIR", &program.folder)
            .env("CARGO_PKG_NAME", &program.package)
            .env(BINARY, &self.built.binary)
            .env(PLUGINS, &self.built.plugins);
        command
    }
}

/// A cargo command in the workspace. In a fresh clone, incremental compilation is off: it costs a tenth of the build time,
/// and a fresh clone is usually compiled once.
pub(super) fn cargo() -> Command {
    static IS_COLD: LazyLock<bool> = LazyLock::new(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = target.map_or_else(|| artefacts::workspace().join("target"), PathBuf::from);
        let kept = std::fs::read_dir(target.join("debug/incremental"));
        !kept.is_ok_and(|mut kept| {
            kept.any(|entry| {
                entry.is_ok_and(|it| it.file_name().to_string_lossy().starts_with("sluicegate"))
            })
        })
    });
    let mut command = artefacts::cargo();
    if *IS_COLD && std::env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Compiles the workspace with its tests. On failure the report says so and artefacts are missing.
pub(super) fn build() -> Result<(Report, Option<Artefacts>)> {
    println!("\n==> build: the service, its plugins and every test");
    let start = Instant::now();
    let mut report = Report::new("build");
    let mut command = cargo();
    command.args([
        "build",
        "--workspace",
        "--all-targets",
        "--message-format=json-render-diagnostics",
    ]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    report.took = start.elapsed();
    if !output.status.success() {
        report
            .failed
            .push(format!("build (cargo build failed: {})", output.status));
        return Ok((report, None));
    }
    let artefacts = read(&String::from_utf8_lossy(&output.stdout))?;
    Ok((report, Some(artefacts)))
}

/// Parses the messages of a cargo build.
fn read(messages: &str) -> Result<Artefacts> {
    let mut programs = Vec::new();
    let mut binary = None;
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else {
            continue;
        };
        let target = &message["target"];
        let (name, kind) = (text(&target["name"]), text(&target["kind"][0]));
        if message["profile"]["test"] == true {
            // Benches measure; they are not tests.
            if target["test"] == false || kind == "bench" {
                continue;
            }
            programs.push(program(&message, name, kind, executable)?);
        } else if (name, kind) == ("sluicegate", "bin") {
            binary = Some(executable);
        }
    }
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    let Some(binary) = binary else {
        bail!("cargo built no sluicegate binary");
    };
    let plugins = binary.parent().context("the binary has no folder")?;
    let plugins = plugins.to_owned();
    Ok(Artefacts {
        programs,
        built: Built { binary, plugins },
    })
}

fn program(message: &Value, name: &str, kind: &str, executable: PathBuf) -> Result<Program> {
    let folder = Path::new(text(&message["manifest_path"])).parent();
    let folder = folder.context("a package without a folder")?.to_owned();
    let package = package_of(text(&message["package_id"]));
    let name = match kind {
        "test" => format!("{package}::{name}"),
        "bin" => format!("{package} (bin {name})"),
        _ => package.clone(),
    };
    Ok(Program {
        package,
        name,
        executable,
        folder,
    })
}

/// The name in a package id: `path+file:///folder#name@version`, or `…/name#version` where the folder has the name.
fn package_of(id: &str) -> String {
    let (url, fragment) = id.split_once('#').unwrap_or((id, ""));
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    };
    name.to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_by_package_and_target() {
        let message = |id: &str, name: &str, kind: &str, test: bool, executable: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "package_id": id, "manifest_path": "/w/config/Cargo.toml",
                "target": { "name": name, "kind": [kind] }, "profile": { "test": test }, "executable": executable,
            })
            .to_string()
        };
        let named = "path+file:///w/config#sluicegate-config@0.1.0";
        let messages = [
            message(
                named,
                "sluicegate_config",
                "lib",
                true,
                "/w/target/debug/deps/config-1",
            ),
            message(
                named,
                "documents",
                "test",
                true,
                "/w/target/debug/deps/documents-1",
            ),
            message(
                "path+file:///w/xtask#0.1.0",
                "xtask",
                "bin",
                true,
                "/w/target/debug/deps/xtask-1",
            ),
            message(
                "path+file:///w/consumer#sluicegate@0.1.0",
                "sluicegate",
                "bin",
                false,
                "/w/target/debug/sluicegate",
            ),
        ];
        let artefacts = read(&messages.join("\n")).expect("the binary is listed");
        let names: Vec<&str> = artefacts
            .programs
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "sluicegate-config",
                "sluicegate-config::documents",
                "xtask (bin xtask)"
            ]
        );
        assert_eq!(artefacts.built.plugins, Path::new("/w/target/debug"));
        assert!(read(&messages[0]).is_err());
    }
}
