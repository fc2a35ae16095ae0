//! The programs under test: the `sluicegate` binary and the plugin libraries, named by the environment or built by cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Variable with the path of the `sluicegate` binary to test.
pub const BINARY: &str = "SLUICEGATE_BIN";
/// Variable with the folder of the built plugin libraries (`librelay.so` …).
pub const PLUGINS: &str = "SLUICEGATE_PLUGINS_DIR";

/// The results of a cargo build.
#[derive(Clone, Debug)]
pub struct Built {
    /// The `sluicegate` binary.
    pub binary: PathBuf,
    /// The folder of the plugin libraries.
    pub plugins: PathBuf,
}

/// The binary under test: the one named in the environment, else one built by cargo.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn binary() -> PathBuf {
    match std::env::var_os(BINARY) {
        Some(path) => PathBuf::from(path),
        None => built().binary.clone(),
    }
}

/// The library of a plugin crate (`relay`, `flight-delays` …).
///
/// # Panics
/// If it cannot be built, or the library does not exist.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    let folder = match std::env::var_os(PLUGINS) {
        Some(path) => PathBuf::from(path),
        None => built().plugins.clone(),
    };
    let path = folder.join(library_name(name));
    assert!(
        path.is_file(),
        "no {} in {}: is there a plugin crate {name}?",
        library_name(name),
        folder.display()
    );
    path
}

/// The file name of a plugin crate's library.
#[must_use]
pub fn library_name(name: &str) -> String {
    format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    )
}

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let packages = plugin_packages();
        let built = packages.and_then(|packages| build(&packages));
        built.unwrap_or_else(|error| panic!("cannot build the programs under test: {error:#}"))
    })
}

/// A cargo command in the workspace, without the environment variables of a surrounding cargo.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_caller(&mut command);
    command.current_dir(workspace()).stdin(Stdio::null());
    command
}

/// Removes the variables of a surrounding `cargo run` or `cargo test` from a command's environment: build scripts that watch
/// them would run again each time.
pub fn forget_caller(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let of_the_caller = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
        ];
        if of_the_caller.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&key);
        }
    }
}

/// Builds the binary and the plugin libraries of the packages `plugins`. Cargo's progress goes to standard error.
///
/// # Errors
/// If cargo fails or builds no `sluicegate` binary.
pub fn build(plugins: &[String]) -> Result<Built> {
    let mut command = cargo();
    command.args(["build", "--message-format=json-render-diagnostics"]);
    command.args(["--package", "sluicegate"]);
    for plugin in plugins {
        command.args(["--package", plugin]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo build failed: {}", output.status);
    }
    let mut binary = None;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let is_service =
            message["target"]["name"] == "sluicegate" && message["target"]["kind"][0] == "bin";
        if let (true, Some(path)) = (is_service, message["executable"].as_str()) {
            binary = Some(PathBuf::from(path));
        }
    }
    let binary = binary.context("cargo built no sluicegate binary")?;
    let plugins = binary
        .parent()
        .context("the binary has no folder")?
        .to_owned();
    Ok(Built { binary, plugins })
}

/// The workspace's packages that build a plugin library.
///
/// # Errors
/// If `cargo metadata` fails.
pub fn plugin_packages() -> Result<Vec<String>> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&crate::launcher::run(&mut command)?)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let is_plugin = |package: &&Value| {
        package["targets"].as_array().is_some_and(|targets| {
            targets.iter().any(|target| {
                target["crate_types"]
                    .as_array()
                    .is_some_and(|types| types.contains(&"cdylib".into()))
            })
        })
    };
    Ok(packages
        .iter()
        .filter(is_plugin)
        .filter_map(|package| package["name"].as_str().map(str::to_owned))
        .collect())
}
