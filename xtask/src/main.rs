//! Developer tasks of this repository: `cargo xtask help` lists them.
//!
//! One file per command; shared code (running a program and parsing its test results) is in `step.rs`.

mod abi_plugins;
mod bench;
mod demo;
mod dist;
mod instructions;
mod mutants;
mod services;
mod step;
mod structure;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of this repository")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the test suite: formatting, lints, repository rules, unit tests, and scenarios on real servers
    Test(test::Arguments),
    /// Check only the repository rules
    Tidy,
    /// Run the service on an in-process Kafka with real flight data; arguments are passed to `sluicegate demo`
    Demo(demo::Arguments),
    /// Build the service and its handlers as they are shipped, with separate debug files
    Dist(dist::Arguments),
    /// Compare the service with a bare librdkafka loop on the same broker; writes `docs/benchmarks.md`, or with `--relay`
    /// `docs/benchmarks-relay.md`
    Bench(bench::Arguments),
    /// Compare instructions per record, step by step, with `benches/instructions.json`
    Instructions(instructions::Arguments),
    /// Apply mutants (deliberate bugs) one by one and show which suite catches each
    Mutants(mutants::Arguments),
    /// Print size, documentation and long functions of every crate, in the working tree or at a revision
    Structure(structure::Arguments),
    /// Build the plugins that must load in this and later versions, for `runtimes/native/tests/binaries`
    AbiPlugins(abi_plugins::Arguments),
    /// Run servers for development
    #[command(subcommand)]
    Services(services::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => test::tidy(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Dist(arguments) => dist::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
        Command::Structure(arguments) => structure::run(&arguments),
        Command::AbiPlugins(arguments) => abi_plugins::run(&arguments),
        Command::Services(command) => services::run(&command),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
