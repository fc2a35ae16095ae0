//! Developer tasks of this repository: `cargo xtask help` lists them.
//!
//! One file a command; what several need (running a program and reading its test results) is in `step.rs`.

mod bench;
mod demo;
mod instructions;
mod mutants;
mod services;
mod step;
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
    /// Everything that must hold: form, rules, unit tests, and scenarios on real servers
    Test(test::Arguments),
    /// The rules of the repository alone
    Tidy,
    /// The service on an in-process Kafka with real flights flowing; arguments go to `sluicegate demo`
    Demo(demo::Arguments),
    /// The service against a bare librdkafka loop on the same broker; writes `docs/benchmarks.md`
    Bench(bench::Arguments),
    /// What a record costs in instructions, step by step, against `benches/instructions.json`
    Instructions(instructions::Arguments),
    /// Runs mutants (bugs made on purpose) one by one and shows which suite catches each
    Mutants(mutants::Arguments),
    /// Servers for a developer
    #[command(subcommand)]
    Services(services::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => test::tidy(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
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
