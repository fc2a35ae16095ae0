//! `sluicegate completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Failure;
use super::output;

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Shell to generate completions for
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completion script.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "sluicegate", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
