//! `sluicegate handler test`: the crate's own tests, then the plugin contract checks on the built file.

use sluicegate_admin::logging;
use sluicegate_native::NativeRuntime;
use sluicegate_native::conformance::{self, Options};
use sluicegate_runtime::HandlerRuntime;

use super::crate_folder::CrateFolder;
use crate::cli::failure::Failure;
use crate::cli::output;

/// Arguments of `handler test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    crate_folder: CrateFolder,
    /// Handler config for the contract checks, where the schema does not imply a valid one
    #[arg(long, value_name = "HANDLER=JSON")]
    config: Vec<String>,
}

/// Runs the tests and checks, and prints the result.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.crate_folder.test()?;
    let built = arguments.crate_folder.build()?;
    let identity = NativeRuntime.inspect(&built).map_err(Failure::other)?;
    let mut options = Options::new(built.with_extension("conformance"));
    for config in &arguments.config {
        let (handler, json) = config.split_once('=').ok_or_else(|| {
            Failure::bad_input(format!(
                "--config `{config}` needs the form HANDLER=JSON, such as relay={{\"topic\":\"x\"}}"
            ))
        })?;
        options.configs.insert(handler.into(), json.into());
    }
    logging::say("checking the plugin contract on the built file");
    let report = conformance::run(&built, &options);
    output::show(report.to_string().trim_end())?;
    if !report.passed() {
        return Err(Failure::other(
            "the plugin breaks its contract; see the lines marked FAILED",
        ));
    }
    output::show(&format!(
        "`{}` {} passes its tests and is a plugin for this service\n{}",
        identity.name,
        identity.version,
        built.display()
    ))
}
