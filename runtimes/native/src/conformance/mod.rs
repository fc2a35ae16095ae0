//! The plugin contract, run on any built plugin file: what an author checks before shipping.
//!
//! Each check is one sentence of the contract. Handlers are checked on threads of their own with a time limit, so that
//! one that hangs is reported like any other failure. A handler that needs more config than its schema reveals is given
//! one through [`Options::configs`], else what needs an instance is skipped and says so.

mod handler;
mod records;
mod sample;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sluicegate_runtime::{HandlerRuntime, HostServices, LoadedPlugin, LogLevel, MetricKind};

use crate::NativeRuntime;

/// How to run the suite.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configs (JSON text) by handler name; others are made from the config's schema.
    pub configs: BTreeMap<String, String>,
    /// How long one handler's checks may take.
    pub patience: Duration,
    /// Where private copies go.
    pub cache: PathBuf,
}

impl Options {
    /// Configs from schemas, a minute a handler, and copies under `cache`.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self {
            configs: BTreeMap::new(),
            patience: Duration::from_secs(60),
            cache,
        }
    }
}

/// What the suite found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they ran.
    pub checks: Vec<Check>,
}

/// One sentence of the contract, for one handler or for the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The handler; `None` is the library itself.
    pub handler: Option<String>,
    /// The sentence.
    pub name: &'static str,
    /// Whether it holds.
    pub result: CheckResult,
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// It holds.
    Passed,
    /// It does not, and why.
    Failed(String),
    /// It could not be asked, and what to do about it.
    Skipped(String),
}

impl Report {
    /// Nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks
            .iter()
            .all(|check| !matches!(check.result, CheckResult::Failed(_)))
    }

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

/// Runs the contract on the plugin at `path`.
#[must_use]
pub fn run(path: &Path, options: &Options) -> Report {
    let mut report = Report::default();
    let plugin = match NativeRuntime.load(path, &options.cache, 1) {
        Ok(plugin) => plugin,
        Err(error) => {
            report.add(None, "passes the gates", Err(error.to_string()));
            return report;
        }
    };
    report.add(None, "passes the gates", Ok(()));
    report.add(None, "describes its handlers", described(plugin.as_ref()));
    report.add(
        None,
        "refuses a handler that it does not have",
        unknown_is_refused(plugin.as_ref()),
    );
    report.add(
        None,
        "loads a second time beside itself",
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
            .extend(within(options.patience, &info.name, move |done| {
                subject.check(done)
            }));
    }
    plugin.shutdown(1000);
    report
}

fn described(plugin: &dyn LoadedPlugin) -> Result<(), String> {
    for info in plugin.handlers() {
        let schema: serde_json::Value = serde_json::from_str(&info.config_schema)
            .map_err(|error| format!("the config schema of `{}` is no JSON: {error}", info.name))?;
        if !schema.is_object() && !schema.is_boolean() {
            return Err(format!(
                "the config schema of `{}` is no JSON Schema",
                info.name
            ));
        }
    }
    Ok(())
}

fn unknown_is_refused(plugin: &dyn LoadedPlugin) -> Result<(), String> {
    match plugin.create("no-such-handler", "conformance", "{}", Arc::new(Quiet)) {
        Err(sluicegate_runtime::CreateError::Unknown { .. }) => Ok(()),
        Err(other) => Err(format!("it says something else: {other}")),
        Ok(_) => Err("it builds one".into()),
    }
}

fn second_generation(path: &Path, options: &Options) -> Result<(), String> {
    let second = NativeRuntime
        .load(path, &options.cache, 2)
        .map_err(|error| error.to_string())?;
    second.shutdown(1000);
    Ok(())
}

/// Runs `work` on a thread; what it has not sent in time is one failure more.
fn within(
    patience: Duration,
    handler: &str,
    work: impl FnOnce(&mut dyn FnMut(Check)) + Send + 'static,
) -> Vec<Check> {
    let (sender, checks) = mpsc::channel();
    let name = handler.to_string();
    let started = std::thread::Builder::new()
        .name(format!("{handler}-conformance"))
        .spawn(move || {
            // The receiver is gone once patience has run out.
            work(&mut |check| drop(sender.send(check)));
        });
    let failed = |why: String| Check {
        handler: Some(name.clone()),
        name: "comes back from every call",
        result: CheckResult::Failed(why),
    };
    if let Err(error) = started {
        return vec![failed(format!("no thread for it: {error}"))];
    }
    let end = std::time::Instant::now() + patience;
    let mut found = Vec::new();
    loop {
        match checks.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(check) => found.push(check),
            Err(mpsc::RecvTimeoutError::Disconnected) => return found,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let last = found.last().map_or("the first check", |check| check.name);
                found.push(failed(format!(
                    "after `{last}` nothing came for {} s in all",
                    patience.as_secs()
                )));
                return found;
            }
        }
    }
}

/// Hears nothing: logs and metrics are the handler's own affair.
struct Quiet;

impl HostServices for Quiet {
    fn log(&self, _: LogLevel, _: &str) {}

    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
}
