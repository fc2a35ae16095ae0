//! The running `sluicegate` binary: its HTTP API, signals, log and exit status.

use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::artefacts;
use crate::metrics::Metrics;
use crate::ports::free_port;
use crate::process::{Guarded, Signal};
use crate::wait::wait_for;
use crate::workdir::Workdir;

const READY_DEADLINE: Duration = Duration::from_secs(60);
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// `sluicegate run` in a folder; killed when the value is dropped.
pub struct Service {
    process: Guarded,
    admin: String,
    agent: ureq::Agent,
}

impl Service {
    /// Starts the service in `workdir` on a free admin port; `arguments` follow `run -c sluicegate.yaml`.
    ///
    /// # Panics
    /// If the binary cannot be built or started.
    #[must_use]
    pub fn start(workdir: &Workdir, arguments: &[&str]) -> Self {
        Self::start_as(workdir, arguments, &[], None)
    }

    /// As [`Service::start`], with its log going to `stderr` instead of a file, if given.
    ///
    /// # Panics
    /// As [`Service::start`].
    #[must_use]
    pub fn start_with_stderr(workdir: &Workdir, arguments: &[&str], stderr: Option<Stdio>) -> Self {
        Self::start_as(workdir, arguments, &[], stderr)
    }

    /// As [`Service::start`], with further environment variables.
    ///
    /// # Panics
    /// As [`Service::start`].
    #[must_use]
    pub fn start_with(workdir: &Workdir, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start_as(workdir, arguments, variables, None)
    }

    fn start_as(
        workdir: &Workdir,
        arguments: &[&str],
        variables: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Self {
        let port = free_port();
        let mut command = command();
        command
            .envs(variables.iter().copied())
            .current_dir(workdir.path())
            .args(["run", "-c", "sluicegate.yaml"]);
        command
            .args(["--set", &format!("admin.listen=127.0.0.1:{port}")])
            .args(arguments);
        let log = workdir.path().join(format!("service-{port}.log"));
        let process =
            Guarded::start_with_stderr("sluicegate run", &mut command, &log, None, stderr)
                .unwrap_or_else(|error| panic!("{error:#}"));
        // An idle connection may be closed at any time, so each request uses a new one, as probes do.
        let config = ureq::Agent::config_builder()
            .max_idle_connections(0)
            .timeout_global(Some(HTTP_TIMEOUT))
            .http_status_as_error(false)
            .build();
        Self {
            process,
            admin: format!("http://127.0.0.1:{port}"),
            agent: config.into(),
        }
    }

    /// Starts the service and waits until `/readyz` reports it as ready.
    ///
    /// # Panics
    /// If it is not ready within a minute.
    #[must_use]
    pub fn ready(workdir: &Workdir, arguments: &[&str]) -> Self {
        let mut service = Self::start(workdir, arguments);
        service.wait_ready();
        service
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// If it does not within a minute, or the process ends.
    pub fn wait_ready(&mut self) {
        wait_for("the service to be ready", READY_DEADLINE, || {
            if let Some(status) = self.process.exited() {
                panic!(
                    "the service exited with {status}; its log ends:\n{}",
                    self.process.log_tail()
                );
            }
            match self.get("/readyz")? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("/readyz answered {status}: {body}")),
            }
        });
    }

    /// The address for `--admin`.
    #[must_use]
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Status and body of a GET on the admin address.
    ///
    /// # Errors
    /// If the service does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        let mut response = self
            .agent
            .get(format!("{}{path}", self.admin))
            .call()
            .map_err(|error| format!("GET {path}: {error}"))?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .read_to_string()
            .map_err(|error| format!("GET {path}: {error}"))?;
        Ok((status, body))
    }

    /// The current metrics.
    ///
    /// # Errors
    /// If the service does not answer.
    pub fn metrics(&self) -> Result<Metrics, String> {
        self.get("/metrics").map(|(_, body)| Metrics::parse(&body))
    }

    /// The JSON of `/api/v1/{path}`.
    ///
    /// # Errors
    /// If the service does not answer with 200 and JSON.
    pub fn api(&self, path: &str) -> Result<Value, String> {
        match self.get(&format!("/api/v1/{path}"))? {
            (200, body) => serde_json::from_str(&body)
                .map_err(|error| format!("/api/v1/{path} is not JSON: {error}")),
            (status, body) => Err(format!("/api/v1/{path} answered {status}: {body}")),
        }
    }

    /// The number of `handler`'s records with `outcome`.
    ///
    /// # Errors
    /// If the service does not answer.
    pub fn outcomes(&self, handler: &str, outcome: &str) -> Result<u64, String> {
        let labels = [("handler", handler), ("outcome", outcome)];
        Ok(self
            .metrics()?
            .sum("sluicegate_handler_outcomes_total", &labels) as u64)
    }

    /// The number of records consumed from Kafka.
    ///
    /// # Errors
    /// If the service does not answer.
    pub fn consumed(&self) -> Result<u64, String> {
        Ok(self
            .metrics()?
            .sum("sluicegate_records_consumed_total", &[]) as u64)
    }

    /// Waits until `handler` has at least `count` records with `outcome`.
    ///
    /// # Panics
    /// If it does not by `deadline`.
    pub fn wait_outcomes(&self, handler: &str, outcome: &str, count: u64, deadline: Duration) {
        wait_for(
            &format!("{count} {outcome} of {handler}"),
            deadline,
            || match self.outcomes(handler, outcome)? {
                seen if seen >= count => Ok(()),
                seen => Err(format!("{seen}")),
            },
        );
    }

    /// The assigned partitions, from `/api/v1/partitions`; at least one.
    ///
    /// # Errors
    /// If the service does not answer, or has no assignment.
    pub fn partitions(&self) -> Result<Vec<Value>, String> {
        let partitions = self.api("partitions")?;
        let list = partitions
            .as_array()
            .or_else(|| partitions["partitions"].as_array());
        match list {
            None => Err("no list of partitions".to_owned()),
            Some(list) if list.is_empty() => Err("no partition assigned".to_owned()),
            Some(list) => Ok(list.clone()),
        }
    }

    /// Waits until no partition has lag or records in flight.
    ///
    /// # Panics
    /// If it has not caught up by `deadline`.
    pub fn wait_caught_up(&self, deadline: Duration) {
        wait_for("every partition to be caught up", deadline, || {
            let list = self.partitions()?;
            let open = |row: &&Value| {
                row["lag"].as_i64() != Some(0) || row["in_flight"].as_u64() != Some(0)
            };
            list.iter()
                .find(open)
                .map_or(Ok(()), |row| Err(row.to_string()))
        });
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Guarded {
        &mut self.process
    }

    /// Stops gracefully with SIGTERM and returns the exit status.
    ///
    /// # Panics
    /// If it is still running after `deadline`.
    pub fn stop(&mut self, deadline: Duration) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process
            .wait(deadline)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// Runs another command of the binary to its end: `sluicegate validate …`.
///
/// # Panics
/// If the binary cannot be built or started.
#[must_use]
pub fn run_binary(folder: &std::path::Path, arguments: &[&str]) -> Output {
    run_binary_with(folder, arguments, &[])
}

/// [`run_binary`] with further environment variables.
///
/// # Panics
/// If the binary cannot be built or started.
#[must_use]
pub fn run_binary_with(
    folder: &std::path::Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Output {
    let mut command = command();
    command
        .envs(variables.iter().copied())
        .current_dir(folder)
        .args(arguments)
        .stdin(Stdio::null());
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run sluicegate: {error}"))
}

fn command() -> Command {
    let mut command = Command::new(artefacts::binary());
    // The caller's own settings must not leak into the service under test.
    for (key, _) in
        std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SLUICEGATE__"))
    {
        command.env_remove(key);
    }
    command
}
