//! One run of each contender.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::kafka::Kafka;
use e2e::launcher::run;
use e2e::metrics::Metrics;
use e2e::ports::free_port;
use e2e::process::{Guarded, Signal};
use e2e::workdir::Workdir;

use super::{Case, Programs, Workload};

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    records: u64,
    seconds: f64,
    cpu_seconds: f64,
    peak_kib: u64,
}

impl Measured {
    pub(crate) fn records_per_second(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub(crate) fn cpu_seconds_per_million(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.records as f64
    }

    pub(crate) fn peak_mib(&self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{:.2} M/s, {:.3} CPU-s/M, {:.0} MiB",
            self.records_per_second() / 1e6,
            self.cpu_seconds_per_million(),
            self.peak_mib()
        )
    }
}

/// The service's fetch properties, for the bare loop. The prefetch queue is an eighth of the service's byte budget.
const FETCH_KEYS: [&str; 8] = [
    "check.crcs=true",
    "fetch.max.bytes=4194304",
    "fetch.queue.backoff.ms=2",
    "queued.min.messages=83886",
    "queued.max.messages.kbytes=32768",
    "isolation.level=read_committed",
    "enable.auto.offset.store=false",
    "socket.keepalive.enable=true",
];
/// Time between two samples of the service.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Time limit of a run.
const LIMIT: Duration = Duration::from_secs(300);

/// Reads the topic with the bare loop.
pub(crate) fn bare_loop(
    programs: &Programs,
    bootstrap: &str,
    topic: &str,
    case: &Case,
) -> Result<Measured> {
    let output = run(Command::new(&programs.bare_loop)
        .args(["read", bootstrap, topic])
        .args([case.partitions.to_string(), case.records.to_string()])
        .args(FETCH_KEYS))?;
    let said: serde_json::Value = serde_json::from_str(&output)?;
    let number = |name: &str| {
        said[name]
            .as_f64()
            .with_context(|| format!("the bare loop does not report {name}"))
    };
    Ok(Measured {
        records: number("records")? as u64,
        seconds: number("seconds")?,
        cpu_seconds: number("cpu_seconds")?,
        peak_kib: number("peak_kib")? as u64,
    })
}

/// Reads the topic of a workload with a build of the service.
pub(crate) fn service(
    service: &Path,
    programs: &Programs,
    kafka: &Kafka,
    workload: &Workload,
    case: &Case,
) -> Result<Measured> {
    // Every run starts with a new group.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let workdir = Workdir::new(kafka.bootstrap(), &format!("bench-{run}"), "");
    workdir.plugin_file(&programs.noop, &e2e::artefacts::library_name("noop"));
    for (name, when) in &workload.handlers {
        let route = format!("route: {{ topics: [{}]", workload.topic);
        let route = match when.is_empty() {
            true => format!("{route} }}"),
            false => format!("{route}, {when} }}"),
        };
        let spec = format!("plugin: noop\nversion: \"*\"\n{route}\norder: key\nworkers: 1\n");
        workdir.spec(name, &spec);
    }
    let port = free_port();
    let mut command = Command::new(service);
    command
        .current_dir(workdir.path())
        .args(["run", "-c", "sluicegate.yaml"])
        .args(["--set", &format!("admin.listen=127.0.0.1:{port}")]);
    let log = workdir.path().join("service.log");
    let mut process = Guarded::start("sluicegate run", &mut command, &log, None)?;
    let measured = watch(&mut process, port, case.records, workload.acks)?;
    process.signal(Signal::TERM);
    let status = process.wait(Duration::from_secs(60))?;
    if !status.success() {
        bail!("the service exited with {status}: {}", process.log_tail());
    }
    Ok(measured)
}

/// A sample of the running service.
struct Sample {
    at: Instant,
    cpu_seconds: f64,
    acked: u64,
}

/// Measures until `acks` handlers have acknowledged each of `records` records.
fn watch(process: &mut Guarded, port: u16, records: u64, acks: u64) -> Result<Measured> {
    let expected = records * acks;
    let deadline = Instant::now() + LIMIT;
    let mut first: Option<Sample> = None;
    loop {
        if let Some(status) = process.exited() {
            bail!("the service exited with {status}: {}", process.log_tail());
        }
        if Instant::now() > deadline {
            bail!("the service did not finish in time: {}", process.log_tail());
        }
        std::thread::sleep(POLL_INTERVAL);
        let Some(acked) = acked(port) else {
            continue;
        };
        if acked == 0 {
            continue;
        }
        let sample = Sample {
            at: Instant::now(),
            cpu_seconds: cpu_seconds(process.pid())?,
            acked,
        };
        if acked > expected {
            bail!("the service acknowledged {acked} of {expected} records");
        }
        let first = first.get_or_insert(Sample { ..sample });
        if acked == expected {
            return Ok(Measured {
                records: (acked - first.acked) / acks,
                seconds: (sample.at - first.at).as_secs_f64(),
                cpu_seconds: sample.cpu_seconds - first.cpu_seconds,
                peak_kib: peak_kib(process.pid())?,
            });
        }
    }
}

/// Records that the handlers have acknowledged, over all of them; `None` while the service does not answer.
fn acked(port: u16) -> Option<u64> {
    let mut response = ureq::get(format!("http://127.0.0.1:{port}/metrics"))
        .call()
        .ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    let labels = [("outcome", "ack")];
    let metrics = Metrics::parse(&text);
    Some(metrics.sum("sluicegate_handler_outcomes_total", &labels) as u64)
}

/// CPU seconds of a process: all threads, user and kernel mode.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may contain spaces.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: f64 = [11, 12]
        .iter()
        .filter_map(|&place| fields.get(place)?.parse::<f64>().ok())
        .sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

fn peak_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/PID/status says VmHWM")
}
