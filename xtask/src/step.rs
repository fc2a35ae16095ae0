//! Runs one step of the test suite: shows its output, as it comes or in one piece, counts its test results, and measures its
//! time.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::process::Watchdog;
use rustix::process::{Pid, Signal, kill_process_group};

/// The result of a step.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) passed: u64,
    /// Tests by name; a step that fails without a failed test is listed as itself.
    pub(crate) failed: Vec<String>,
    /// Tests and steps that did not run, each with the reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// A note for the summary table.
    pub(crate) note: String,
}

impl Report {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// A step that did not run at all.
    pub(crate) fn skipped(name: &str, reason: &str) -> Self {
        Self {
            skipped: vec![(name.to_owned(), reason.to_owned())],
            ..Self::new(name)
        }
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match (self.failed.is_empty(), self.passed, self.skipped.is_empty()) {
            (false, _, _) => "FAILED",
            (true, 0, false) => "skipped",
            (true, _, _) => "ok",
        }
    }

    /// Parses one output line of a test program.
    fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count_before(counts, " passed");
        } else if let Some(rest) = line.strip_prefix("skipped: ") {
            // Printed by a test that cannot run here.
            let (test, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
            self.skipped.push((test.to_owned(), reason.to_owned()));
        } else if let Some(rest) = line.strip_prefix("test ") {
            let Some((test, verdict)) = rest.rsplit_once(" ... ") else {
                return;
            };
            if verdict.starts_with("FAILED") {
                self.failed.push(test.to_owned());
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() {
                    "ignored without a reason"
                } else {
                    reason
                };
                self.skipped.push((test.to_owned(), reason.to_owned()));
            }
        }
    }
}

fn count_before(text: &str, word: &str) -> u64 {
    let head = text.split(word).next().unwrap_or_default();
    head.rsplit(|character: char| !character.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// When the output of a step is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    AsItComes,
    /// In one piece, because other steps run concurrently.
    AtItsEnd,
}

/// Runs `command` to its end, or kills it after `limit`, and reports it under `name`.
pub(crate) fn run(name: &str, command: &mut Command, limit: Duration) -> Result<Report> {
    println!("\n==> {name}: {}", shown(command));
    follow(name, command, limit, Show::AsItComes)
}

/// As [`run`], concurrently with other steps.
pub(crate) fn run_concurrently(
    name: &str,
    command: &mut Command,
    limit: Duration,
) -> Result<Report> {
    println!("\n==> {name} started: {}", shown(command));
    follow(name, command, limit, Show::AtItsEnd)
}

/// How a step is run: [`run`], [`run_concurrently`] or [`run_in_background`].
pub(crate) type Run = fn(&str, &mut Command, Duration) -> Result<Report>;

/// As [`run_concurrently`], at low priority and with twice the time limit.
pub(crate) fn run_in_background(
    name: &str,
    command: &mut Command,
    limit: Duration,
) -> Result<Report> {
    let mut background = Command::new("nice");
    background.args(["-n", "10"]).arg(command.get_program());
    background.args(command.get_args());
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => background.env(variable, value),
            None => background.env_remove(variable),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        background.current_dir(folder);
    }
    run_concurrently(name, &mut background, 2 * limit)
}

fn follow(name: &str, command: &mut Command, limit: Duration, show: Show) -> Result<Report> {
    let mut report = Report::new(name);
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let watchdog = Watchdog::start(child.id(), None)?;
    let output = child.stdout.take().context("the step's output is piped")?;
    let (finished, wait) = mpsc::channel::<()>();
    let too_long = Arc::new(AtomicBool::new(false));
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let timer = {
        let too_long = Arc::clone(&too_long);
        std::thread::spawn(move || {
            if wait.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                too_long.store(true, Ordering::Relaxed);
                let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            }
        })
    };
    let mut kept = String::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        report.read(&line);
        match show {
            Show::AsItComes => println!("{line}"),
            Show::AtItsEnd => kept.extend([line.as_str(), "\n"]),
        }
    }
    let status = child.wait()?;
    drop(finished);
    let _ = timer.join();
    drop(watchdog);
    if too_long.load(Ordering::Relaxed) {
        report
            .failed
            .push(format!("{name} (stopped after {} s)", limit.as_secs()));
    } else if !status.success() && report.failed.is_empty() {
        report.failed.push(format!("{name} ({status})"));
    }
    report.took = start.elapsed();
    if show == Show::AtItsEnd {
        println!("\n==> {name}: {}\n{kept}", report.verdict());
    }
    Ok(report)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    if let Some(rest) = text
        .split_once("/bin/cargo ")
        .map(|(_, rest)| rest.to_owned())
    {
        text = format!("cargo {rest}");
    }
    const SHOWN: usize = 160;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_test_programs_is_parsed() {
        let mut report = Report::new("unit");
        for line in [
            "running 4 tests",
            "test ledger::tests::gap ... ok",
            "test ledger::tests::lost ... FAILED",
            "test slow ... ignored, needs a day",
            "test result: FAILED. 12 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ] {
            report.read(line);
        }
        assert_eq!(report.passed, 15);
        assert_eq!(report.failed, ["ledger::tests::lost"]);
        assert_eq!(
            report.skipped,
            [("slow".to_owned(), "needs a day".to_owned())]
        );
        assert_eq!(report.verdict(), "FAILED");
    }

    #[test]
    fn a_failed_step_without_tests_is_listed_and_a_hanging_one_is_killed() {
        let failed = run("false", &mut Command::new("false"), Duration::from_secs(30))
            .expect("false starts");
        assert_eq!(failed.failed.len(), 1);
        assert!(failed.failed[0].starts_with("false ("));
        let hung = run(
            "hang",
            Command::new("sleep").arg("60"),
            Duration::from_millis(200),
        )
        .expect("sleep starts");
        assert_eq!(hung.failed, ["hang (stopped after 0 s)"]);
        assert!(hung.took < Duration::from_secs(30));
    }
}
