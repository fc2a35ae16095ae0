//! The tests that a change affects: those of the changed crates and their dependents, and a few scenarios.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use e2e::artefacts::{cargo, workspace};
use e2e::launcher;
use serde_json::Value;

/// Scenarios run for any change of shipped code: the record path, a misbehaving handler, a bridge. Each takes seconds.
const SMOKE: [&str; 3] = ["first_record", "misbehaving", "bridge_command"];
/// The package of the scenarios. It tests its dependencies, so a change of these runs only `SMOKE` of it.
const E2E: &str = "e2e";

/// The affected packages and scenarios.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Concerned {
    pub(super) packages: BTreeSet<String>,
    pub(super) scenarios: BTreeSet<String>,
}

struct Package {
    name: String,
    folder: String,
    /// Workspace packages that it depends on, in builds and tests.
    depends: Vec<String>,
}

/// What the difference between `revision` and the working tree affects.
pub(super) fn since(revision: &str) -> Result<Concerned> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(workspace()).args(arguments);
        launcher::run(&mut command)
    };
    let differs = git(&["diff", "--name-only", revision])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"])?;
    let files: Vec<&str> = differs.lines().chain(new.lines()).collect();
    Ok(of(&files, &packages()?))
}

fn of(files: &[&str], packages: &[Package]) -> Concerned {
    let mut concerned = Concerned::default();
    for file in files {
        let owner = packages
            .iter()
            .filter(|package| Path::new(file).starts_with(&package.folder))
            .max_by_key(|package| package.folder.len());
        match owner {
            Some(package) => {
                concerned.packages.insert(package.name.clone());
            }
            // Tests compare these pages with the tables they are generated from.
            None if file.starts_with("docs/") => {
                let compare = ["sluicegate-config", "sluicegate-admin"];
                concerned.packages.extend(compare.map(str::to_owned));
            }
            // Versions, lints and profiles apply to every crate.
            None if file.starts_with("Cargo.") || file.starts_with(".cargo/") => {
                let all = packages.iter().map(|package| package.name.clone());
                concerned.packages.extend(all);
            }
            None => {}
        }
        let scenario = file.strip_prefix("tests/tests/scenarios/");
        if let Some(name) = scenario.and_then(|file| file.strip_suffix(".rs"))
            && !name.contains('/')
            && name != "main"
        {
            concerned.scenarios.insert(name.to_owned());
        }
    }
    let touched = concerned.packages.clone();
    loop {
        let depends_on_affected = |package: &&Package| {
            package.name != E2E
                && !concerned.packages.contains(&package.name)
                && package
                    .depends
                    .iter()
                    .any(|name| concerned.packages.contains(name))
        };
        let more: Vec<String> = packages
            .iter()
            .filter(depends_on_affected)
            .map(|package| package.name.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        concerned.packages.extend(more);
    }
    let runs = |name: &String| name != E2E && name != "xtask";
    if touched.iter().any(runs) {
        concerned.scenarios.extend(SMOKE.map(str::to_owned));
    }
    concerned
}

fn packages() -> Result<Vec<Package>> {
    let printed = launcher::run(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&printed)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    packages.iter().map(package).collect()
}

fn package(package: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let manifest = text(&package["manifest_path"]);
    let folder = Path::new(&manifest)
        .parent()
        .and_then(|folder| folder.strip_prefix(workspace()).ok())
        .context("a package outside the workspace")?;
    let depends = package["dependencies"].as_array().into_iter().flatten();
    Ok(Package {
        name: text(&package["name"]),
        folder: folder.to_string_lossy().into_owned(),
        depends: depends
            .filter(|one| !one["path"].is_null())
            .map(|one| text(&one["name"]))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Vec<Package> {
        let package = |name: &str, folder: &str, depends: &[&str]| Package {
            name: name.to_owned(),
            folder: folder.to_owned(),
            depends: depends.iter().map(|&name| name.to_owned()).collect(),
        };
        vec![
            package("abi", "handler-sdk/abi", &[]),
            package("sdk", "handler-sdk", &["abi"]),
            package("relay", "handlers/relay", &["sdk"]),
            package("sluicegate-config", "config", &[]),
            package("sluicegate", "consumer", &["sluicegate-config", "abi"]),
            package("e2e", "tests", &["sluicegate-config"]),
            package("xtask", "xtask", &["e2e"]),
        ]
    }

    fn names(files: &[&str]) -> (Vec<String>, Vec<String>) {
        let Concerned {
            packages,
            scenarios,
        } = of(files, &tree());
        (
            packages.into_iter().collect(),
            scenarios.into_iter().collect(),
        )
    }

    #[test]
    fn a_change_affects_its_crate_and_its_dependents() {
        let (packages, scenarios) = names(&["handler-sdk/src/lib.rs"]);
        assert_eq!(packages, ["relay", "sdk"]);
        assert_eq!(scenarios, ["bridge_command", "first_record", "misbehaving"]);
        let (packages, _) = names(&["handler-sdk/abi/src/lib.rs", "docs/guarantees.md"]);
        assert_eq!(
            packages,
            [
                "abi",
                "relay",
                "sdk",
                "sluicegate",
                "sluicegate-admin",
                "sluicegate-config"
            ]
        );
        assert_eq!(names(&["Cargo.lock"]).0.len(), 7);
    }

    #[test]
    fn a_changed_scenario_runs_alone() {
        let (packages, scenarios) = names(&[
            "tests/tests/scenarios/stopping.rs",
            "tests/tests/scenarios/stores/put.rs",
            "README.md",
        ]);
        assert_eq!(packages, ["e2e", "xtask"]);
        assert_eq!(scenarios, ["stopping"]);
    }
}
