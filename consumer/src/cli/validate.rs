//! `sluicegate validate -c FILE`: the config and every spec it reaches, all mistakes at once.

use std::path::PathBuf;

use serde::Serialize;
use sluicegate_config::{Environment, Problem, Problems, ServiceConfig, load_service_config};

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
    handlers: Vec<String>,
    problems: Vec<Problem>,
}

/// Reads everything and prints what is wrong.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let verdict = match arguments.config.load() {
        Err(problems) => Verdict::bad(&problems),
        Ok(_) => Verdict {
            valid: true,
            handlers: Vec::new(),
            problems: Vec::new(),
        },
    };
    if verdict.valid {
        return arguments
            .output
            .print(&verdict, |verdict| match verdict.handlers.len() {
                0 => "valid, without any handler".to_owned(),
                count => format!("valid: {count} handlers ({})", verdict.handlers.join(", ")),
            });
    }
    let lines: Vec<String> = verdict.problems.iter().map(Problem::to_string).collect();
    Err(Failure::bad_input(lines.join("\nerror: ")))
}

impl Verdict {
    fn bad(problems: &Problems) -> Self {
        Self {
            valid: false,
            handlers: Vec::new(),
            problems: problems.iter().cloned().collect(),
        }
    }
}
