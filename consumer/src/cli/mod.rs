//! The command line: one file a subcommand.

mod admin_client;
mod bridge;
mod completions;
mod control_plane;
mod demo;
mod explain;
mod failure;
mod fleet;
mod handler;
mod handlers;
mod output;
mod produce;
mod run;
mod schema;
mod signals;
pub(crate) mod table;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::logging;
use failure::Failure;

/// A Kafka consumer service whose handlers are plugins.
#[derive(Parser, Debug)]
#[command(name = "sluicegate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the service until a signal ends it: SIGTERM and SIGINT drain and stop, SIGHUP reads specs again. Exit code 0: it
    /// stopped and left nothing behind; 2: bad arguments, config or specs; 1: anything else, such as a stop that left
    /// records to be handled again
    Run(run::Arguments),
    /// Run the service on a Kafka inside the process, with real flights flowing
    Demo(demo::Arguments),
    /// Check a service config and every spec it reaches; what a handler says of its own `config` is known once it runs
    Validate(validate::Arguments),
    /// Write the rows of a file (CSV, NDJSON; also in zip or gzip) to a topic
    Produce(produce::Arguments),
    /// Handlers of the running service: list, show, switch on and off
    #[command(subcommand)]
    Handlers(handlers::Command),
    /// What holds a partition's frontier, or where a record stands
    Explain(explain::Arguments),
    /// Keep an etcd prefix and a ZooKeeper tree equal, or ask a running bridge
    Bridge(bridge::Arguments),
    /// The control plane of the running service, such as after its store was restored
    #[command(subcommand)]
    ControlPlane(control_plane::Command),
    /// A handler's crate: make, build, test, inspect
    #[command(subcommand)]
    Handler(handler::Command),
    /// JSON Schema of the service config or of a handler's spec
    Schema(schema::Arguments),
    /// Completions for a shell
    Completions(completions::Arguments),
}

/// Runs the command line `arguments` (the program's name first) and gives the process's exit code: 0 when it stopped
/// gracefully or nothing is wrong, 2 for bad arguments, config or specs, 1 for anything else.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are "errors" too, for which this prints to stdout; nobody is left to tell if it fails.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let code = match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    logging::finish();
    code
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Produce(arguments) => produce::run(&arguments),
        Command::Handlers(command) => handlers::run(&command),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Bridge(arguments) => bridge::run(&arguments),
        Command::ControlPlane(command) => control_plane::run(&command),
        Command::Handler(command) => handler::run(&command),
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}
