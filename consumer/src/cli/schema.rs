//! `sluicegate schema config|handler`.

use clap::ValueEnum;
use sluicegate_config::schema::{config_schema, handler_schema};

use super::failure::Failure;
use super::output;

/// Arguments of `schema`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Document to describe
    #[arg(value_enum)]
    document: Document,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    /// The service config
    Config,
    /// A handler's spec
    Handler,
}

/// Prints the schema.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let schema = match arguments.document {
        Document::Config => config_schema(),
        Document::Handler => handler_schema(),
    };
    let text = serde_json::to_string_pretty(&schema);
    output::print(
        &text.map_err(|error| {
            Failure::other(format!("cannot encode the schema as JSON: {error}"))
        })?,
    )
}
