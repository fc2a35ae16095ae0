//! Test support: built plugins, captured host services, and records.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "tests; each file uses its part"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_abi::view::{BorrowedRecords, RecordParts};
use sluicegate_native::NativeRuntime;
use sluicegate_runtime::{
    CallOutput, CallRequest, CallStatus, CancelFlag, CreateRequest, HandlerInstance,
    HandlerRuntime, HostServices, LoadError, LoadedPlugin, LogLine, MetricKind, RawOutcome,
    VerifiedArtefact,
};

/// The library of a workspace package: from the folder `SLUICEGATE_PLUGINS_DIR`, or else built once per test process.
pub fn built(package: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("SLUICEGATE_PLUGINS_DIR") {
        return Path::new(&folder).join(library(package));
    }
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry(package.to_string())
        .or_insert_with(|| built_with(package, &[]))
        .clone()
}

/// Builds the library of a workspace package with additional cargo arguments.
pub fn built_with(package: &str, arguments: &[&str]) -> PathBuf {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--message-format=json-render-diagnostics",
            "--package",
            package,
        ])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo cannot build {package}");
    let messages = String::from_utf8(out.stdout).expect("cargo writes UTF-8");
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .rfind(|file| {
            file.file_name()
                .is_some_and(|name| *name == *library(package))
        })
        .expect("cargo names the library")
}

/// The file name of a package's library.
fn library(package: &str) -> String {
    let name = package
        .trim_start_matches("sluicegate-handler-")
        .replace('-', "_");
    format!("lib{name}.so")
}

/// Captures log lines and metrics of handlers.
#[derive(Default)]
pub struct CapturedOutput(pub Mutex<Vec<String>>);

impl CapturedOutput {
    /// All captured lines, joined.
    pub fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

impl HostServices for CapturedOutput {
    fn log(&self, line: &LogLine<'_>) {
        let text = format!("{:?}: {} {}", line.level, line.message, line.fields);
        self.0.lock().unwrap().push(text.trim().to_owned());
    }

    fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        self.0
            .lock()
            .unwrap()
            .push(format!("{kind:?} {name} {value}"));
    }
}

/// A loaded plugin with its cache folder and captured output.
pub struct Loaded {
    pub plugin: Arc<dyn LoadedPlugin>,
    pub cache: tempfile::TempDir,
    pub captured: Arc<CapturedOutput>,
}

/// Inspects the file at `path` and loads what was found.
pub fn try_load(
    path: &Path,
    cache: &Path,
    generation: u64,
) -> Result<Arc<dyn LoadedPlugin>, LoadError> {
    let identity = NativeRuntime.inspect(path)?;
    NativeRuntime.load(&VerifiedArtefact::new(path, &identity), cache, generation)
}

/// Loads `path` as generation 1 with its own cache.
pub fn load(path: &Path) -> Loaded {
    let cache = tempfile::tempdir().unwrap();
    let plugin = try_load(path, cache.path(), 1).unwrap_or_else(|error| panic!("{error}"));
    Loaded {
        plugin,
        cache,
        captured: Arc::default(),
    }
}

impl Loaded {
    /// An instance of `handler`.
    pub fn create(&self, handler: &str, config: &str) -> Box<dyn HandlerInstance> {
        self.plugin
            .create(CreateRequest::new(
                handler,
                "test-0",
                config,
                Arc::clone(&self.captured) as _,
            ))
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Records with these values and keys `k0`, `k1`, …, each in its own lane.
pub fn records(values: &[&str]) -> Vec<RecordParts> {
    let one = |(index, value): (usize, &&str)| RecordParts {
        topic: "in".into(),
        offset: index as i64,
        timestamp_ms: 1000,
        key: Some(format!("k{index}").into_bytes()),
        value: Some(value.as_bytes().to_vec()),
        lane: index as u64 + 1,
        epoch: 7,
        attempt: 1,
        ..RecordParts::default()
    };
    values.iter().enumerate().map(one).collect()
}

/// Handles `parts` without a timeout.
pub fn handle(
    instance: &mut dyn HandlerInstance,
    parts: &[RecordParts],
) -> (CallStatus, Vec<RawOutcome>, CallOutput) {
    handle_until(instance, parts, 0, &CancelFlag::default())
}

/// Handles `parts` with a timeout and a cancel flag.
pub fn handle_until(
    instance: &mut dyn HandlerInstance,
    parts: &[RecordParts],
    timeout_ms: u64,
    cancel: &CancelFlag,
) -> (CallStatus, Vec<RawOutcome>, CallOutput) {
    let raw = BorrowedRecords::new(parts);
    let mut outcomes = vec![RawOutcome::default(); raw.len()];
    let mut output = CallOutput::default();
    let call = CallRequest {
        records: &raw,
        timeout_ms,
        record_timeout_ms: 0,
        cancel,
    };
    let status = sluicegate_runtime::call(instance, &call, &mut outcomes, &mut output);
    let status = status.expect("a runtime does not panic");
    (status, outcomes, output)
}

/// Codes of outcomes.
pub fn codes(outcomes: &[RawOutcome]) -> Vec<u16> {
    outcomes.iter().map(|outcome| outcome.code).collect()
}
