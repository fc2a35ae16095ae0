//! Situation: the demo runs, with a handler that panics on purpose; a user switches a handler off, and breaks another.
//! Property: records flow and panics are contained; a switch takes effect while records flow; the demo ends by itself
//! with a summary and exit code 0; while a handler hangs, the first signal waits for it and the next one ends the demo at once.
//! Needs: nothing.
//! Mostly waits: for its end.
//! Command: `cargo xtask test --scenario demo`

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::artefacts;
use e2e::process::{Guarded, Signal};
use e2e::service::run_binary;
use e2e::wait::wait_for;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

struct Demo {
    process: Guarded,
    folder: tempfile::TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let binary = artefacts::binary();
        let relay = artefacts::plugin("relay");
        let plugins = relay.parent().expect("a library has a folder");
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(binary);
        command.arg("demo").args(arguments);
        command.arg("--plugins").arg(plugins);
        command.arg("--data").arg(e2e::flights::file());
        let log = folder.path().join("output");
        let process = Guarded::start("sluicegate demo", &mut command, &log, None)
            .unwrap_or_else(|error| panic!("{error:#}"));
        Self { process, folder }
    }

    /// The text after `label` in the welcome message.
    fn told(&self, label: &str) -> String {
        wait_for(&format!("{label} in the welcome"), DEADLINE, || {
            let output = self.process.log();
            let found = output
                .lines()
                .find_map(|line| line.trim().strip_prefix(label));
            found.map(|rest| rest.trim().to_owned()).ok_or(output)
        })
    }

    fn cli(&self, arguments: &[&str]) -> Value {
        let admin = self.told("admin");
        let done = run_binary(
            self.folder.path(),
            &[arguments, &["--admin", &admin]].concat(),
        );
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {errors}");
        serde_json::from_slice(&done.stdout).expect("JSON away from a terminal")
    }

    /// Waits until `done` holds for the output of `handlers show NAME`.
    fn wait_handler(&self, name: &str, what: &str, done: impl Fn(&Value) -> bool) {
        wait_for(&format!("{name} to have {what}"), DEADLINE, || {
            let handler = self.cli(&["handlers", "show", name]);
            if done(&handler) {
                Ok(())
            } else {
                Err(handler.to_string())
            }
        });
    }
}

fn count(handler: &Value, outcome: &str) -> u64 {
    handler["outcomes"][outcome].as_u64().unwrap_or(0)
}

#[test]
fn records_flow_panics_are_contained_and_it_ends_by_itself() {
    let mut demo = Demo::start(&["--rate", "1000", "--for", "20s"]);
    demo.wait_handler("clumsy", "panicked and continued", |clumsy| {
        clumsy["panics"].as_u64() > Some(0) && count(clumsy, "ack") > 0
    });
    demo.wait_handler("everything", "emitted", |relay| {
        relay["emitted"]["flights-copy"].as_u64() > Some(0)
    });
    let change = demo.cli(&["handlers", "off", "late"]);
    assert_eq!(change["gate"], "closed");
    demo.wait_handler("late", "skipped records", |late| count(late, "skipped") > 0);
    let status = demo
        .process
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let output = demo.process.log();
    assert_eq!(status.code(), Some(0), "{output}");
    let summary = output
        .split("\nIn ")
        .nth(1)
        .unwrap_or_else(|| panic!("no summary in\n{output}"));
    assert!(
        summary.contains("lag 0, the service stayed up."),
        "{summary}"
    );
    let row = |name: &str| -> Vec<String> {
        let line = summary.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{summary}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    // HANDLER STATE GATE IN-FLIGHT ACK RETRY DEAD-LETTER DROP SKIPPED PANICS
    let (clumsy, everything) = (row("clumsy"), row("everything"));
    assert_eq!(
        clumsy[4], everything[4],
        "the clumsy handler has processed everything too:\n{summary}"
    );
    assert_ne!(clumsy[9], "0");
    assert_eq!(everything[5..], ["0", "0", "0", "0", "0"]);
    assert_eq!(row("late")[2], "closed");
}

#[test]
fn another_signal_ends_the_demo_at_once_while_a_handler_hangs() {
    let mut demo = Demo::start(&["--rate", "500"]);
    let clumsy = PathBuf::from(demo.told("specs")).join("clumsy.yaml");
    let spec = std::fs::read_to_string(&clumsy).expect("the demo's spec");
    let hanging = spec.replace("do: panic", "do: hang") + "timeout: 10m\n";
    assert_ne!(hanging, spec);
    std::fs::write(&clumsy, hanging).expect("the folder is writable");
    demo.wait_handler("clumsy", "hung", |clumsy| {
        clumsy["busy"].as_u64() == Some(4)
    });
    demo.process.signal(Signal::INT);
    wait_for("the end of the load", DEADLINE, || {
        let line = demo.process.log();
        if line.contains("\nIn ") {
            Ok(())
        } else {
            Err(line)
        }
    });
    assert!(
        demo.process.exited().is_none(),
        "it waits for the handler:\n{}",
        demo.process.log()
    );
    let asked = Instant::now();
    demo.process.signal(Signal::INT);
    let status = demo
        .process
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(status.code(), Some(1));
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    assert!(
        demo.process
            .log()
            .contains("stopped immediately by another signal")
    );
}
