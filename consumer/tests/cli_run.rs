//! `sluicegate run` and its signals, on an in-process cluster: readiness, SIGHUP, graceful shutdown, and no broker.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kit::wait::wait_until;

const DEADLINE: Duration = Duration::from_secs(30);

/// A running service; killed when the test fails before its end.
struct Run {
    child: Child,
    admin: String,
    log: Arc<Mutex<String>>,
    /// Reads the log until the process closes it.
    reader: Option<JoinHandle<()>>,
}

impl Run {
    fn start(folder: &Path, brokers: &str) -> Self {
        Self::start_with(folder, brokers, "")
    }

    fn start_with(folder: &Path, brokers: &str, more: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "kafka: {{ bootstrap_servers: \"{brokers}\", group_id: g }}\n\
             admin: {{ listen: \"127.0.0.1:{port}\" }}\nlogging: {{ format: json }}\n{more}"
        );
        std::fs::create_dir_all(folder.join("handlers.d")).unwrap();
        std::fs::write(folder.join("sluicegate.yaml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .arg("run")
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, sink) = (child.stderr.take().unwrap(), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            child,
            admin: format!("http://127.0.0.1:{port}"),
            log,
            reader: Some(reader),
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn wait_for(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let log = Arc::clone(&self.log);
        wait_until(
            DEADLINE,
            || {
                if done(self) {
                    return true;
                }
                let ended = self.child.try_wait().unwrap();
                assert_eq!(ended, None, "ended before {what}:\n{}", self.log());
                false
            },
            || format!("no {what}:\n{}", log.lock().unwrap()),
        );
    }

    fn status_of(&self, path: &str) -> Option<u16> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None);
        let agent: ureq::Agent = config.build().into();
        let answer = agent.get(format!("{}{path}", self.admin)).call().ok()?;
        Some(answer.status().as_u16())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(
            DEADLINE,
            || {
                status = self.child.try_wait().unwrap();
                status.is_some()
            },
            || format!("it does not end:\n{}", self.log.lock().unwrap()),
        );
        // Its last lines may still be in the pipe.
        self.reader.take().map(JoinHandle::join);
        status.unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_service_is_live_rereads_specs_and_stops_gracefully() {
    let cluster = MockKafka::start(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), &cluster.bootstrap_servers());
    run.wait_for("answer of /livez", |run| {
        run.status_of("/livez") == Some(200)
    });
    run.signal(Signal::HUP);
    run.wait_for("re-read", |run| run.log().contains("re-reading specs"));
    assert_eq!(run.status_of("/api/v1/status"), Some(200));
    run.signal(Signal::TERM);
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
    run.log().lines().for_each(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string(), "{line}");
    });
    assert!(
        run.log()
            .contains("\"message\":\"service stopped\",\"graceful\":true"),
        "{}",
        run.log()
    );
}

#[test]
fn an_interrupt_stops_a_service_without_a_broker() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), "127.0.0.1:1");
    run.wait_for("answer of /readyz", |run| {
        run.status_of("/readyz").is_some()
    });
    assert_eq!(run.status_of("/livez"), Some(200));
    run.signal(Signal::INT);
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
}

/// The most likely first mistake: each client tries every address, and librdkafka reports it several times.
#[test]
fn an_address_that_refuses_connections_is_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), "127.0.0.1:1");
    run.wait_for("line about the address", |run| {
        run.log().contains("kafka client error")
    });
    run.signal(Signal::TERM);
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
    let about = |line: &&str| line.contains("127.0.0.1:1/") || line.contains("brokers are down");
    let log = run.log();
    assert_eq!(log.lines().filter(about).count(), 1, "{log}");
    assert!(log.contains("check that the broker runs"), "{log}");
}

/// A shell and a parent process may both forward a signal.
#[test]
fn repeated_signals_at_once_are_one_request() {
    let cluster = MockKafka::start(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), &cluster.bootstrap_servers());
    run.wait_for("end of the start", |run| {
        run.log().contains("service started")
    });
    run.signal(Signal::INT);
    run.signal(Signal::INT);
    run.signal(Signal::TERM);
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
    assert!(run.log().contains("\"graceful\":true"), "{}", run.log());
}

/// The store of its specs is unreachable, so startup waits for it.
#[test]
fn a_signal_ends_a_waiting_startup() {
    let folder = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let handlers =
        format!("handlers: {{ etcd: {{ endpoints: [\"http://{address}\"] }}, cache: none-yet }}\n");
    let mut run = Run::start_with(folder.path(), "127.0.0.1:1", &handlers);
    // The store accepts the connection but never answers.
    silent.set_nonblocking(true).unwrap();
    let mut accepted = Vec::new();
    run.wait_for("connection to the store", |_| {
        accepted.extend(silent.accept());
        !accepted.is_empty()
    });
    let signalled = Instant::now();
    run.signal(Signal::TERM);
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
    assert!(
        signalled.elapsed() < Duration::from_secs(2),
        "{}",
        run.log()
    );
    assert!(
        run.log().contains("stopped during startup"),
        "{}",
        run.log()
    );
}

#[test]
fn a_used_admin_address_is_an_error_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    std::fs::create_dir(folder.path().join("handlers.d")).unwrap();
    let config = format!(
        "kafka: {{ bootstrap_servers: \"127.0.0.1:1\", group_id: g }}\nadmin: {{ listen: \"{listen}\" }}\n"
    );
    std::fs::write(folder.path().join("sluicegate.yaml"), config).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["run", "--set", "logging.level=off"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(
        message.contains(&format!("cannot listen on {listen} for admin HTTP")),
        "{message}"
    );
    assert!(
        message.ends_with("set `admin.listen` to a free address\n"),
        "{message}"
    );
}
