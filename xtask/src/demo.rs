//! `cargo xtask demo`: builds the service, its handlers and the misbehaving test handler, and runs `sluicegate demo`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use e2e::artefacts;

/// The plugins that the demo runs. Compiling the others, above all the one with SQL, would only cost time.
const PLUGINS: [&str; 4] = [
    "sluicegate-handler-relay",
    "sluicegate-handler-flight-delays",
    "sluicegate-handler-fraud-detector",
    "misbehave",
];

/// Arguments of `sluicegate demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on, for example `--for 30s` or `--rate 2000`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds, then replaces this process with `sluicegate demo`, so that it owns signals and the terminal.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    eprintln!("Building the service and its handlers (the first time this takes some minutes) …");
    let built = artefacts::build(&PLUGINS.map(str::to_owned))?;
    let error = Command::new(&built.binary)
        .arg("demo")
        .args(&arguments.rest)
        .env("SLUICEGATE_DEMO_PLUGINS", &built.plugins)
        .env("SLUICEGATE_DEMO_DATA", e2e::flights::file())
        .exec();
    Err(error).with_context(|| format!("cannot start {}", built.binary.display()))
}
