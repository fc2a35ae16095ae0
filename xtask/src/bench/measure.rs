//! One run of each contender.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::artefacts::library_name;
use e2e::launcher::run;
use e2e::metrics::Metrics;
use e2e::ports::free_port;
use e2e::process::{Guarded, Signal};
use e2e::workdir::Workdir;

use super::topics::Output;
use super::workload::{Input, Workload};
use super::{Bench, Program, scaled};

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
        let (divisor, unit, digits) = scaled(self.records_per_second());
        format!(
            "{:.digits$}{unit}/s, {:.3} CPU-s/M, {:.0} MiB",
            self.records_per_second() / divisor,
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
/// The service's producer properties, for the bare loop.
const PRODUCER_KEYS: [&str; 8] = [
    "enable.idempotence=true",
    "acks=all",
    "linger.ms=5",
    "partitioner=murmur2_random",
    "queue.buffering.max.messages=100000",
    "queue.buffering.max.kbytes=98681",
    "message.max.bytes=101048576",
    "topic.metadata.propagation.max.ms=5000",
];
/// Time between two samples of the service.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Time limit of a run.
const LIMIT: Duration = Duration::from_secs(300);

/// One run of a program on a workload; its output is checked.
pub(crate) fn measure(
    bench: &Bench<'_>,
    program: &Program,
    workload: &Workload,
) -> Result<Measured> {
    // Every run starts with a new group and a new output topic.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let input = &workload.input;
    let output = workload.relay;
    let output = output.map(|relay| Output::create(bench, relay, run));
    let output = output.transpose()?;
    let measured = match program {
        Program::BareLoop => bare_loop(bench, input, output.as_ref()),
        Program::Service(binary) => service(bench, binary, workload, output.as_ref(), run),
        Program::Peer(peer) => {
            let output = output.as_ref().context("peers only relay")?;
            let mut command = peer.command();
            command.args([bench.kafka.bootstrap(), input.topic]);
            command.args(relay_arguments(bench, input, output));
            reported(&mut command)
        }
    }?;
    if let Some(output) = output {
        output.finish(bench, input)?;
    }
    Ok(measured)
}

/// Reads or relays the topic with the bare loop.
fn bare_loop(bench: &Bench<'_>, input: &Input, output: Option<&Output>) -> Result<Measured> {
    let Some(output) = output else {
        let partitions = bench.case.partitions.to_string();
        let mut command = bench.bare_loop("read", input.topic);
        command
            .args([partitions, input.records.to_string()])
            .args(FETCH_KEYS);
        return reported(&mut command);
    };
    let mut command = bench.bare_loop("relay", input.topic);
    command
        .args(relay_arguments(bench, input, output))
        .args(FETCH_KEYS)
        .arg("--")
        .args(PRODUCER_KEYS);
    reported(&mut command)
}

/// The arguments of a relay behind the topic that it reads.
fn relay_arguments(bench: &Bench<'_>, input: &Input, output: &Output) -> [String; 5] {
    [
        output.topic.clone(),
        bench.case.partitions.to_string(),
        input.records.to_string(),
        output.relay.copies.to_string(),
        output.relay.drop_percent.to_string(),
    ]
}

/// Runs a program that measures itself; its last line is the result as JSON.
fn reported(command: &mut Command) -> Result<Measured> {
    let program = command.get_program().to_string_lossy().into_owned();
    let printed = run(command)?;
    let line = printed.trim_end().lines().next_back().unwrap_or_default();
    let said: serde_json::Value = serde_json::from_str(line)
        .with_context(|| format!("{program} reports no result: {printed}"))?;
    let number = |name: &str| {
        said[name]
            .as_f64()
            .with_context(|| format!("{program} does not report {name}"))
    };
    Ok(Measured {
        records: number("records")? as u64,
        seconds: number("seconds")?,
        cpu_seconds: number("cpu_seconds")?,
        peak_kib: number("peak_kib")? as u64,
    })
}

/// Handles the topic of a workload with a build of the service.
fn service(
    bench: &Bench<'_>,
    binary: &Path,
    workload: &Workload,
    output: Option<&Output>,
    run: u64,
) -> Result<Measured> {
    let input = &workload.input;
    let workdir = Workdir::new(bench.kafka.bootstrap(), &format!("bench-{run}"), "");
    for handler in &workload.handlers {
        let library = library_name(handler.plugin);
        workdir.plugin_file(&bench.programs.libraries.join(&library), &library);
        let output = output.map(|output| output.topic.as_str());
        workdir.spec(&handler.name, &handler.text(input.topic, output));
    }
    let port = free_port();
    let mut command = Command::new(binary);
    command
        .current_dir(workdir.path())
        .args(["run", "-c", "sluicegate.yaml"])
        .args(["--set", &format!("admin.listen=127.0.0.1:{port}")]);
    let log = workdir.path().join("service.log");
    let mut process = Guarded::start("sluicegate run", &mut command, &log, None)?;
    let measured = watch(&mut process, port, input.records, workload.acks)?;
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
            if first.acked == acked {
                bail!("the first sample is the last one; raise the number of records");
            }
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
