//! `cargo xtask demo`: builds the service, its handlers and the one that misbehaves, and runs `sluicegate demo`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use e2e::artefacts;

/// The plugins that the demo runs. The others would be compiled for nothing, the one with SQL above all.
const PLUGINS: [&str; 4] = [
    "sluicegate-handler-relay",
    "sluicegate-handler-flight-delays",
    "sluicegate-handler-fraud-detector",
    "misbehave",
];

/// What `sluicegate demo` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Passed on, for example `--for 30s` or `--rate 2000`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds, then becomes `sluicegate demo`, so that signals and the terminal are its own.
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
