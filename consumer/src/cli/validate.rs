//! `sluicegate validate -c FILE`: the config, every spec it reaches and whether plugins serve them, all mistakes at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sluicegate_config::service::{HandlersFrom, place_in};
use sluicegate_config::source::spec_files_by_name;
use sluicegate_config::{
    Environment, Problem, Problems, ServiceConfig, load_service_config, validate_everything,
};
use sluicegate_native::NativeRuntime;

use super::failure::Failure;
use super::output::Output;
use crate::handlers::Catalogue;
use crate::source::{ClientSettings, ConfigRefusal};

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
    /// The config in `file`, without overrides.
    pub(super) fn at(file: PathBuf) -> Self {
        let sets = Vec::new();
        Self { file, sets }
    }

    /// Where the config is.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

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

/// What people read of a config without mistakes. A plugin's own code is run by nobody who only checks.
const VALID: &str = "valid; whether a handler takes its own `config` is known once `run` makes it";

/// What was found.
#[derive(Serialize)]
struct Verdict {
    valid: bool,
    problems: Problems,
}

/// Reads everything and prints what is wrong.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut problems = validate_everything(
        &arguments.config.file,
        &Environment::of_process(),
        &arguments.config.sets,
    );
    if problems.is_empty() {
        let config = arguments.config.load().map_err(Failure::problems)?;
        problems = refused_by_client(&config, Some(&arguments.config.file));
        problems.merge(unserved(&config));
    }
    let verdict = Verdict {
        valid: problems.is_empty(),
        problems,
    };
    if verdict.valid {
        return arguments.output.print(&verdict, |_| VALID.to_owned());
    }
    // People read the lines on stderr; programs get the same as data.
    if arguments.output.is_json() {
        arguments.output.print(&verdict, |_| String::new())?;
    }
    Err(Failure::problems(verdict.problems))
}

/// What librdkafka has against the config of its clients.
pub(super) fn refused_by_client(config: &ServiceConfig, file: Option<&Path>) -> Problems {
    let mut problems = Problems::new();
    for refusal in ClientSettings::new(&config.kafka, config.processing.memory).refusals() {
        let (path, (line, column)) = locate(&refusal, file);
        problems.push(Problem {
            file: file.map(Path::to_path_buf),
            line,
            column,
            path,
            message: refusal.reason,
        });
    }
    problems
}

/// Path and place of what librdkafka refuses. What stands in `kafka.client` goes for producers too.
fn locate(refusal: &ConfigRefusal, file: Option<&Path>) -> (String, (u32, u32)) {
    let place = |map: &str, key: &str| place_in(file?, &["kafka", map, key]);
    if let Some(key) = &refusal.key {
        for map in ["producer", "client"] {
            let path = format!("kafka.{map}");
            if (map == "client" || path == refusal.path)
                && let Some(place) = place(map, key)
            {
                return (path, place);
            }
        }
    }
    let map: Vec<&str> = refusal.path.split('.').collect();
    let place = file.and_then(|file| place_in(file, &map));
    (refusal.path.to_owned(), place.unwrap_or_default())
}

/// Longest wait for plugin files that are just being written.
const SETTLE: Duration = Duration::from_secs(3);

/// Specs that no plugin of the folder serves. Nothing of a plugin is run. A folder that is not there is no mistake: a
/// config can be checked where its plugins are not.
fn unserved(config: &ServiceConfig) -> Problems {
    let mut problems = Problems::new();
    if !config.plugins.folder.is_dir() {
        return problems;
    }
    let source = config.handlers.open_to_look(&Environment::of_process());
    let mut source = match source {
        Ok(source) => source,
        Err(error) => return Problems::of_file(None, error.to_string()),
    };
    let snapshot = match source.snapshot() {
        Ok(snapshot) => snapshot,
        Err(found) => return found.into_problems(),
    };
    let plugins = &config.plugins;
    let catalogue = Catalogue::new(
        plugins.folder.clone(),
        plugins.allow_unsigned,
        vec![Arc::new(NativeRuntime)],
    );
    catalogue.scan_settled(SETTLE, |_| false);
    let files = match &config.handlers.from {
        HandlersFrom::File { folder, .. } => spec_files_by_name(folder),
        _ => BTreeMap::new(),
    };
    for spec in snapshot.handlers.values() {
        if let Err(error) = catalogue.find(&spec.plugin, &spec.version) {
            let file = files.get(&spec.name);
            let place = file.and_then(|file| place_in(file, &["plugin"]));
            let (line, column) = place.unwrap_or_default();
            problems.push(Problem {
                file: file.cloned(),
                line,
                column,
                path: format!("handler `{}`", spec.name),
                message: error.to_string(),
            });
        }
    }
    problems
}
