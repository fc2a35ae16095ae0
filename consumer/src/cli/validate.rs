//! `sluicegate validate -c FILE`: checks the config, every spec it references and the plugins they name; reports all problems at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sluicegate_config::service::{HandlersFrom, place_in};
use sluicegate_config::{Environment, Problem, Problems, ServiceConfig, load_service_config};
use sluicegate_kafka::{ClientSettings, ConfigRefusal};
use sluicegate_native::NativeRuntime;
use sluicegate_plugins::Catalogue;
use sluicegate_sync::source::{open_source_read_only, spec_files_by_name};
use sluicegate_sync::validate_everything;

use super::failure::Failure;
use super::output::Output;

/// The arguments that select a service config.
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

    /// The config's path.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Loads the config, with its overrides.
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

/// Result for a valid config. Validation never runs a plugin's code, so a handler's own `config` is not checked.
const VALID: &str = "valid; a handler checks its own `config` only when `run` creates it";
/// Addition for a host without the plugins.
const NO_PLUGINS: &str = "; plugins were not checked: `plugins.folder` is not a readable folder here, and `run` needs it";

/// Result of a validation.
#[derive(Serialize)]
struct ValidationResult {
    valid: bool,
    /// Whether the plugins that the specs name were searched for: not on a host without the folder, and not if earlier problems
    /// prevent it.
    plugins_checked: bool,
    problems: Problems,
}

/// Validates everything and prints the problems.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut problems = validate_everything(
        &arguments.config.file,
        &Environment::of_process(),
        &arguments.config.sets,
    );
    let mut plugins_checked = false;
    if problems.is_empty() {
        let config = arguments.config.load().map_err(Failure::problems)?;
        problems = refused_by_client(&config, Some(&arguments.config.file));
        // A missing folder is not an error: a config can be checked on a host without its plugins.
        plugins_checked = config.plugins.folder.is_dir();
        if plugins_checked {
            problems.merge(specs_without_plugin(&config));
        }
    }
    let result = ValidationResult {
        valid: problems.is_empty(),
        plugins_checked,
        problems,
    };
    if result.valid {
        return arguments.output.print(&result, |result| {
            let unchecked = if result.plugins_checked {
                ""
            } else {
                NO_PLUGINS
            };
            format!("{VALID}{unchecked}")
        });
    }
    // People read the lines on stderr; programs read the same problems as JSON.
    if arguments.output.is_json() {
        arguments.output.print(&result, |_| String::new())?;
    }
    Err(Failure::problems(result.problems))
}

/// Problems that librdkafka reports in the config of its clients.
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

/// Path and position of a setting that librdkafka rejects. Settings in `kafka.client` also apply to producers.
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

/// Maximum wait for plugin files that are still being written.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Specs without a matching plugin in the folder. No plugin code runs.
fn specs_without_plugin(config: &ServiceConfig) -> Problems {
    let mut problems = Problems::new();
    let source = open_source_read_only(&config.handlers, &Environment::of_process());
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
    catalogue.scan_settled(SETTLE_TIMEOUT, |_| false);
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
