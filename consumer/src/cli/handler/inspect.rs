//! `sluicegate handler inspect FILE`: a plugin's identity, read without running its code.

use std::path::PathBuf;

use serde::Serialize;
use sluicegate_native::NativeRuntime;
use sluicegate_runtime::HandlerRuntime;

use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Arguments of `handler inspect`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The plugin's file
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Identity {
    kind: &'static str,
    name: String,
    version: String,
    handlers: Vec<String>,
    abi: String,
    toolchain: String,
    sha256: String,
}

/// Reads the identity and prints it.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = NativeRuntime;
    let identity = runtime.inspect(&arguments.file).map_err(Failure::other)?;
    let identity = Identity {
        kind: runtime.kind(),
        name: identity.name,
        version: identity.version,
        handlers: identity.handlers,
        abi: identity.abi,
        toolchain: identity.toolchain,
        sha256: identity.sha256,
    };
    arguments.output.print(&identity, |identity| {
        format!(
            "name       {}\nversion    {}\nkind       {}\nhandlers   {}\nabi        {}\ntoolchain  {}\nsha256     {}",
            identity.name,
            identity.version,
            identity.kind,
            identity.handlers.join(", "),
            identity.abi,
            identity.toolchain,
            identity.sha256
        )
    })
}
