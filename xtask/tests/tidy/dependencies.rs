//! The allowed dependencies between crates, as listed in ARCHITECTURE.md.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::sources::{assert_none, root, rust};

struct Package {
    name: String,
    folder: String,
    /// Workspace crates that it depends on in a build; development dependencies are not restricted.
    ours: Vec<String>,
    all: Vec<String>,
}

/// The output of `cargo metadata` with these options.
pub(crate) fn metadata(options: &[&str]) -> Value {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["metadata", "--format-version", "1"])
        .args(options);
    let output = cargo.output().expect("cargo metadata runs");
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn packages() -> Vec<Package> {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages.iter().map(package).collect()
}

fn package(package: &Value) -> Package {
    let manifest = package["manifest_path"].as_str().expect("a path");
    let folder = Path::new(manifest)
        .parent()
        .expect("a folder")
        .strip_prefix(root())
        .expect("in the workspace");
    let dependencies = package["dependencies"].as_array().expect("a list");
    let built = dependencies
        .iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"));
    let name = |dependency: &Value| dependency["name"].as_str().expect("a name").to_owned();
    Package {
        name: package["name"].as_str().expect("a name").to_owned(),
        folder: folder.to_string_lossy().into_owned(),
        ours: built
            .clone()
            .filter(|dependency| !dependency["path"].is_null())
            .map(name)
            .collect(),
        all: built.map(name).collect(),
    }
}

/// The workspace crates that a package in `folder` may depend on; `None` means any.
fn allowed(folder: &str) -> Option<&'static [&'static str]> {
    Some(match folder {
        "handler-sdk/abi" | "config" => &[],
        "config/store" => &["sluicegate-config"],
        "config/sync" | "config/bridge" => &["sluicegate-config", "sluicegate-store"],
        "handler-sdk" => &["sluicegate-abi"],
        "runtimes/api" => &["sluicegate-abi"],
        "xtask" => &["e2e"],
        "consumer/engine" => &["sluicegate-abi", "sluicegate-config", "sluicegate-runtime"],
        "consumer/kafka" | "consumer/pool" => &[
            "sluicegate-abi",
            "sluicegate-config",
            "sluicegate-engine",
            "sluicegate-runtime",
        ],
        "consumer/plugins" => &[
            "sluicegate-abi",
            "sluicegate-config",
            "sluicegate-engine",
            "sluicegate-pool",
            "sluicegate-runtime",
        ],
        "consumer/admin" => &[
            "sluicegate-bridge",
            "sluicegate-config",
            "sluicegate-engine",
            "sluicegate-pool",
            "sluicegate-sdk",
        ],
        "consumer/service" => &[
            "sluicegate-admin",
            "sluicegate-bridge",
            "sluicegate-config",
            "sluicegate-engine",
            "sluicegate-kafka",
            "sluicegate-native",
            "sluicegate-plugins",
            "sluicegate-pool",
            "sluicegate-runtime",
            "sluicegate-store",
            "sluicegate-sync",
        ],
        "tests" | "tests/kit" | "consumer" => return None,
        _ if folder.starts_with("handlers/") || folder.starts_with("tests/") => &["sluicegate-sdk"],
        _ if folder.starts_with("runtimes/") => &["sluicegate-abi", "sluicegate-runtime"],
        _ => return None,
    })
}

#[test]
fn no_crate_has_a_dependency_that_architecture_forbids() {
    let mut broken = Vec::new();
    for package in packages() {
        let Some(allowed) = allowed(&package.folder) else {
            continue;
        };
        for other in package
            .ours
            .iter()
            .filter(|other| !allowed.contains(&other.as_str()))
        {
            broken.push(format!(
                "{} depends on {other}; allowed: {allowed:?}",
                package.name
            ));
        }
    }
    assert_none("see the allowed dependencies in ARCHITECTURE.md:", &broken);
}

#[test]
fn the_engine_has_no_kafka_client_no_async_runtime_no_server_and_no_clock() {
    let packages = packages();
    let engine = packages
        .iter()
        .find(|package| package.folder == "consumer/engine");
    let engine = engine.expect("the engine is a package");
    let mut broken: Vec<String> = ["rdkafka", "rdkafka-sys", "tokio", "axum"]
        .iter()
        .filter(|other| engine.all.iter().any(|name| name == *other))
        .map(|other| format!("sluicegate-engine depends on {other}"))
        .collect();
    let clocks = [
        "Instant::now",
        "SystemTime::now",
        "thread::sleep",
        "thread::spawn",
    ];
    for source in rust() {
        if !source.path.starts_with("consumer/engine/src/") || source.is_test() {
            continue;
        }
        let production = source.text.split("\n#[cfg(test)]\nmod ").next();
        let lines = production.unwrap_or_default().lines();
        for clock in clocks {
            let used = lines.clone().any(|line| line.contains(clock));
            if used {
                broken.push(format!("{} uses {clock}", source.path));
            }
        }
    }
    assert_none(
        "what the engine decides depends on its arguments alone, so that the simulator reproduces it:",
        &broken,
    );
}

#[test]
fn plugins_and_their_sdk_depend_neither_on_kafka_nor_on_the_services_runtime() {
    let mut broken = Vec::new();
    for package in packages() {
        let of_an_author =
            package.folder.starts_with("handler-sdk") || package.folder.starts_with("handlers/");
        let is_api = package.folder == "runtimes/api";
        for other in ["rdkafka", "rdkafka-sys", "axum"]
            .iter()
            .filter(|other| package.all.iter().any(|name| name == *other))
        {
            if of_an_author || is_api {
                broken.push(format!("{} depends on {other}", package.name));
            }
        }
        // The SDK of an async handler may bring its own runtime; crates linked into every plugin must not.
        if (package.folder == "handler-sdk/abi" || is_api)
            && package.all.iter().any(|name| name == "tokio")
        {
            broken.push(format!("{} depends on tokio", package.name));
        }
    }
    assert_none("a plugin must not depend on the service:", &broken);
}

#[test]
fn abi_stable_stays_behind_the_boundary() {
    let allowed = ["handler-sdk/abi", "runtimes/native", "handler-sdk"];
    let broken: Vec<String> = packages()
        .iter()
        .filter(|package| {
            package.all.iter().any(|name| name == "abi_stable")
                && !allowed.contains(&package.folder.as_str())
        })
        .map(|package| format!("{} depends on abi_stable", package.name))
        .collect();
    assert_none(
        "abi_stable is frozen upstream: its names stay in handler-sdk and runtimes/native (docs/adr):",
        &broken,
    );
}
