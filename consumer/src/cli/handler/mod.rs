//! `sluicegate handler new|build|test|inspect`: the handler author's workflow.

mod build;
mod crate_folder;
mod inspect;
mod new;
mod test;

use super::failure::Failure;

/// Subcommands of `handler`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Create a crate for a new handler; it builds, passes its tests and runs unchanged
    New(new::Arguments),
    /// Build the plugin, and optionally copy it to a plugin folder
    Build(build::Arguments),
    /// Run the crate's tests, then the plugin contract checks on the built file
    Test(test::Arguments),
    /// Show a plugin file's identity without running its code
    Inspect(inspect::Arguments),
}

/// Runs the subcommand.
pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::New(arguments) => new::run(arguments),
        Command::Build(arguments) => build::run(arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    }
}
