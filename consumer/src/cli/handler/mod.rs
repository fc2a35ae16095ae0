//! `sluicegate handler new|build|test|inspect`: an author's whole loop.

mod build;
mod crate_folder;
mod inspect;
mod new;
mod test;

use super::failure::Failure;

/// What to do with a handler's crate or file.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make a crate for a new handler; it builds, passes its tests and runs as it is
    New(new::Arguments),
    /// Build the plugin, and put it into a folder of plugins if asked
    Build(build::Arguments),
    /// Run the crate's tests, then the plugin contract on the built file
    Test(test::Arguments),
    /// Say who a plugin file is without running any of its code
    Inspect(inspect::Arguments),
}

/// Does it.
pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::New(arguments) => new::run(arguments),
        Command::Build(arguments) => build::run(arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    }
}
