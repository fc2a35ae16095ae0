//! `sluicegate handler test`: the crate's own tests, then the plugin contract on the built file.

use sluicegate_native::NativeRuntime;
use sluicegate_runtime::HandlerRuntime;

use super::crate_folder::CrateFolder;
use crate::cli::failure::Failure;
use crate::cli::output;

/// Arguments of `handler test`.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    crate_folder: CrateFolder,
}

/// Tests and says what passed.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.crate_folder.test()?;
    let built = arguments.crate_folder.build()?;
    let identity = NativeRuntime.inspect(&built).map_err(Failure::other)?;
    output::print(&format!(
        "`{}` {} passes its tests and is a plugin for this service\n{}",
        identity.name,
        identity.version,
        built.display()
    ))
}
