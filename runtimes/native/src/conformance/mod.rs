//! The plugin conformance suite, run on any built plugin file: what an author checks before shipping.
//!
//! Each check tests one rule of the contract. Handlers are checked on separate threads with a timeout, so that a hanging
//! handler is reported like any other failure. A handler whose config cannot be derived from its schema needs one in
//! [`Options::configs`]; otherwise the checks that need an instance are reported as skipped.

mod handler;
mod records;
mod sample;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sluicegate_runtime::{
    CreateRequest, HandlerRuntime, HostServices, LoadError, LoadedPlugin, LogLine, MetricKind,
    VerifiedArtefact,
};

use crate::NativeRuntime;

/// How to run the suite.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configs (JSON text) by handler name; other configs are derived from the schema.
    pub configs: BTreeMap<String, String>,
    /// Timeout for all checks of one handler.
    pub timeout: Duration,
    /// Folder for private copies.
    pub cache: PathBuf,
}

impl Options {
    /// Configs from schemas, a timeout of one minute per handler, and private copies under `cache`.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self {
            configs: BTreeMap::new(),
            timeout: Duration::from_secs(60),
            cache,
        }
    }
}

/// Result of the suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In execution order.
    pub checks: Vec<Check>,
}

/// One rule of the contract, checked on one handler or on the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The handler; `None` is the library itself.
    pub handler: Option<String>,
    /// The rule.
    pub name: &'static str,
    /// The result.
    pub result: CheckResult,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// The rule holds.
    Passed,
    /// The rule is violated, with the reason.
    Failed(String),
    /// The check could not run, with a remedy.
    Skipped(String),
}

impl Report {
    /// Whether no check failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks
            .iter()
            .all(|check| !matches!(check.result, CheckResult::Failed(_)))
    }

    /// Adds a result, whose error is the text that the report shows.
    fn add(&mut self, handler: Option<&str>, name: &'static str, result: Result<(), String>) {
        let result = result.map_or_else(CheckResult::Failed, |()| CheckResult::Passed);
        self.checks.push(Check {
            handler: handler.map(str::to_string),
            name,
            result,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let handler = check
                .handler
                .as_deref()
                .map(|name| format!("{name}: "))
                .unwrap_or_default();
            match &check.result {
                CheckResult::Passed => writeln!(f, "ok       {handler}{}", check.name)?,
                CheckResult::Failed(why) => writeln!(f, "FAILED   {handler}{}: {why}", check.name)?,
                CheckResult::Skipped(why) => {
                    writeln!(f, "skipped  {handler}{}: {why}", check.name)?
                }
            }
        }
        Ok(())
    }
}

/// Runs the suite on the plugin at `path`.
#[must_use]
pub fn run(path: &Path, options: &Options) -> Report {
    let mut report = Report::default();
    let plugin = match load(path, options, 1) {
        Ok(plugin) => plugin,
        Err(error) => {
            report.add(None, "passes the load checks", Err(error.to_string()));
            return report;
        }
    };
    report.add(None, "passes the load checks", Ok(()));
    report.add(None, "describes its handlers", described(plugin.as_ref()));
    report.add(
        None,
        "rejects an unknown handler name",
        unknown_is_refused(plugin.as_ref()),
    );
    report.add(
        None,
        "loads twice in one process",
        second_generation(path, options),
    );
    for info in plugin.handlers() {
        let given = options.configs.get(&info.name).cloned();
        let config = given
            .clone()
            .unwrap_or_else(|| sample::config(&info.config_schema));
        let subject = handler::Subject {
            plugin: Arc::clone(&plugin),
            info: info.clone(),
            config,
            given: given.is_some(),
        };
        report
            .checks
            .extend(within(options.timeout, &info.name, move |done| {
                subject.check(done)
            }));
    }
    plugin.shutdown(1000);
    report
}

/// Loads the file as it is.
fn load(
    path: &Path,
    options: &Options,
    generation: u64,
) -> Result<Arc<dyn LoadedPlugin>, LoadError> {
    let identity = NativeRuntime.inspect(path)?;
    let artefact = VerifiedArtefact::new(path, &identity);
    NativeRuntime.load(&artefact, &options.cache, generation)
}

fn described(plugin: &dyn LoadedPlugin) -> Result<(), String> {
    for info in plugin.handlers() {
        let schema: serde_json::Value =
            serde_json::from_str(&info.config_schema).map_err(|error| {
                format!("the config schema of `{}` is not JSON: {error}", info.name)
            })?;
        if !schema.is_object() && !schema.is_boolean() {
            return Err(format!(
                "the config schema of `{}` is not a JSON Schema",
                info.name
            ));
        }
    }
    Ok(())
}

fn unknown_is_refused(plugin: &dyn LoadedPlugin) -> Result<(), String> {
    let services = Arc::new(NullServices);
    let request = CreateRequest::new("no-such-handler", "conformance", "{}", services);
    match plugin.create(request) {
        Err(sluicegate_runtime::CreateError::Unknown { .. }) => Ok(()),
        Err(other) => Err(format!("it returns another error: {other}")),
        Ok(_) => Err("it builds an instance".into()),
    }
}

fn second_generation(path: &Path, options: &Options) -> Result<(), String> {
    let second = load(path, options, 2).map_err(|error| error.to_string())?;
    second.shutdown(1000);
    Ok(())
}

/// Runs `work` on a thread; if it does not finish in time, a failed check is added.
fn within(
    timeout: Duration,
    handler: &str,
    work: impl FnOnce(&mut dyn FnMut(Check)) + Send + 'static,
) -> Vec<Check> {
    let (sender, checks) = mpsc::channel();
    let name = handler.to_string();
    let started = std::thread::Builder::new()
        .name(format!("{handler}-conformance"))
        .spawn(move || {
            // Fails once the timeout has elapsed and the receiver is gone.
            work(&mut |check| drop(sender.send(check)));
        });
    let failed = |why: String| Check {
        handler: Some(name.clone()),
        name: "returns from every call",
        result: CheckResult::Failed(why),
    };
    if let Err(error) = started {
        return vec![failed(format!("cannot start a thread: {error}"))];
    }
    let end = std::time::Instant::now() + timeout;
    let mut found = Vec::new();
    loop {
        match checks.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(check) => found.push(check),
            Err(mpsc::RecvTimeoutError::Disconnected) => return found,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let last = found.last().map_or("the first check", |check| check.name);
                found.push(failed(format!(
                    "timed out after `{last}`: its checks took longer than {} s in total",
                    timeout.as_secs()
                )));
                return found;
            }
        }
    }
}

/// Discards logs and metrics.
struct NullServices;

impl HostServices for NullServices {
    fn log(&self, _line: &LogLine<'_>) {}

    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
}
