//! `sluicegate validate -c FILE`: the config and every spec it reaches, all mistakes at once.

use std::path::PathBuf;

use serde::Serialize;
use sluicegate_config::{
    Environment, Problems, ServiceConfig, load_service_config, validate_everything,
};

use super::failure::Failure;
use super::output::Output;

/// The arguments that name a config.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ConfigFile {
    /// The service config
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = "sluicegate.yaml"
    )]
    file: PathBuf,
    /// Overrides one key, such as kafka.group_id=x; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl ConfigFile {
    /// The config.
    pub(super) fn load(&self) -> Result<ServiceConfig, Problems> {
        load_service_config(&self.file, &Environment::of_process(), &self.sets)
    }
}

/// Arguments of `validate`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

/// What was found.
#[derive(Serialize)]
struct Verdict {
    valid: bool,
    problems: Problems,
}

/// Reads everything and prints what is wrong.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let problems = validate_everything(
        &arguments.config.file,
        &Environment::of_process(),
        &arguments.config.sets,
    );
    let verdict = Verdict {
        valid: problems.is_empty(),
        problems,
    };
    if verdict.valid {
        return arguments.output.print(&verdict, |_| "valid".to_owned());
    }
    // People read the lines on stderr; programs get the same as data.
    if arguments.output.is_json() {
        arguments.output.print(&verdict, |_| String::new())?;
    }
    Err(Failure::problems(verdict.problems))
}
