//! The command line: one file per subcommand.

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
mod try_plugin;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluicegate_admin::logging;

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
    /// Run the service until a signal stops it: SIGTERM and SIGINT drain and stop, SIGHUP re-reads specs. Exit code 0:
    /// graceful shutdown; 2: invalid arguments, config or specs; 1: anything else, such as a shutdown that leaves records
    /// to be reprocessed
    Run(run::Arguments),
    /// Run the service against an in-process Kafka with real flight data
    Demo(demo::Arguments),
    /// Check a service config and every spec it references; a handler checks its own `config` only when `run` creates it
    Validate(validate::Arguments),
    /// Write the rows of a file (CSV, NDJSON; also in zip or gzip) to a topic
    Produce(produce::Arguments),
    /// List, show, switch, deploy and restart handlers
    #[command(subcommand)]
    Handlers(handlers::Command),
    /// Show what blocks a partition's progress, or the state of one record
    Explain(explain::Arguments),
    /// Keep an etcd prefix and a ZooKeeper tree in sync, or query a running bridge
    Bridge(bridge::Arguments),
    /// Manage the running service's control plane, for example after its store was restored
    #[command(subcommand)]
    ControlPlane(control_plane::Command),
    /// Create, build, test or inspect a handler's crate
    #[command(subcommand)]
    Handler(handler::Command),
    /// Print the JSON Schema of the service config or of a handler spec
    Schema(schema::Arguments),
    /// Print shell completions
    Completions(completions::Arguments),
    /// Try a plugin for a service that is about to load it; started by that service
    #[command(hide = true)]
    TryPlugin,
}

/// Runs the command line `arguments` (the program's name first) and returns the process's exit code: 0 after success or a
/// graceful shutdown, 2 for invalid arguments, config or specs, 1 for anything else.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are "errors" too, printed to stdout. A failed write cannot be reported anywhere.
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
        Command::TryPlugin => try_plugin::run(),
    }
}
