//! `sluicegate handlers list | show NAME | on NAME | off NAME | restart NAME`, which query the running service. `fleet` has the other
//! subcommands, and `on` and `off` with a config.

use std::path::PathBuf;

use sluicegate_admin::http::{GateBody, GateChange, HandlerRestart};
use sluicegate_config::escape::escape;
use sluicegate_engine::status::{DurationCounts, HandlerReport};
use sluicegate_pool::clock::now_ms;

use super::admin_client::{Admin, segment};
use super::failure::Failure;
use super::fleet;
use super::output::Output;
use super::table::Table;
use super::validate::ConfigFile;

/// Subcommands of `handlers`.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// List all handlers
    List(ListArgs),
    /// Show one handler
    Show(NamedArgs),
    /// Open a handler's gate
    On(Gate),
    /// Close a handler's gate: its records are skipped and counted as skipped
    Off(Gate),
    /// Rebuild a handler's instances, for example after it has failed; affects only the service that is queried
    Restart(NamedArgs),
    /// Write a handler's spec to the control plane, for all members or in waves
    Apply(fleet::Apply),
    /// Delete a handler's keys, or its file
    Delete(fleet::Delete),
    /// Show earlier values of a handler's key
    History(fleet::History),
    /// Resume or abort a rollout in waves
    Rollout(fleet::Rollout),
}

/// Arguments of `on` and `off`.
#[derive(clap::Args, Debug)]
pub(super) struct Gate {
    #[command(flatten)]
    one: NamedArgs,
    /// Write it to the control plane of this service config instead of calling the running service
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    waiting: fleet::Waiting,
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    output: Output,
}

/// Arguments of the subcommands that name a handler.
#[derive(clap::Args, Debug)]
pub(super) struct NamedArgs {
    /// The handler's name
    name: String,
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    output: Output,
}

/// Queries the service and prints its answer.
pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(all) => {
            let handlers: Vec<HandlerReport> = all.admin.get("/api/v1/handlers")?;
            all.output.print(&handlers, |handlers| list(handlers))
        }
        Command::Show(one) => {
            let path = format!("/api/v1/handlers/{}", segment(&one.name));
            let handler: HandlerReport = one.admin.get(&path)?;
            one.output
                .print(&handler, |handler| show(handler, now_ms()))
        }
        Command::On(gate) => set_gate(gate, true),
        Command::Off(gate) => set_gate(gate, false),
        Command::Restart(one) => restart(one),
        Command::Apply(apply) => fleet::apply(apply),
        Command::Delete(delete) => fleet::delete(delete),
        Command::History(history) => fleet::history(history),
        Command::Rollout(rollout) => fleet::rollout(rollout),
    }
}

fn set_gate(gate: &Gate, open: bool) -> Result<(), Failure> {
    let one = &gate.one;
    if gate.config.is_some() || gate.waiting.is_wanted() {
        let file = gate.config.clone();
        let file = ConfigFile::at(file.unwrap_or_else(|| "sluicegate.yaml".into()));
        return fleet::gate(&one.name, open, &file, &gate.waiting, one.output);
    }

    let path = format!("/api/v1/handlers/{}/gate", segment(&one.name));
    let change: GateChange = one.admin.put(&path, &GateBody { open })?;
    one.output.print(&change, |change| {
        format!("gate of `{}` is {}", change.name, change.gate)
    })
}

fn restart(one: &NamedArgs) -> Result<(), Failure> {
    let path = format!("/api/v1/handlers/{}/restart", segment(&one.name));
    let restart: HandlerRestart = one.admin.post(&path)?;
    one.output.print(&restart, |restart| match restart.rebuilt {
        true => format!(
            "`{}` is restarted: generation {} is running",
            restart.name, restart.generation
        ),
        false => format!(
            "`{}` runs again from the loaded plugin, generation {}: no plugin in the plugins folder matches its spec any more; \
             restore it before the service restarts",
            restart.name, restart.generation
        ),
    })
}

fn list(handlers: &[HandlerReport]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "VERSION",
        "GENERATION",
        "STATE",
        "GATE",
        "IN FLIGHT",
        "PARKED",
        "ACK",
        "RETRY",
        "DEAD LETTER",
        "DROP",
        "SKIPPED",
        "PANICS",
    ]);
    for handler in handlers {
        let outcomes = handler
            .outcomes
            .by_name()
            .map(|(_, count)| count.to_string());
        let [ack, retry, dead_letter, drop, skipped] = outcomes;
        table.row([
            handler.name.clone(),
            handler.version.clone(),
            handler.generation.to_string(),
            match handler.refused_spec {
                Some(_) => format!("{}, newer spec refused", handler.state),
                None => handler.state.to_string(),
            },
            handler.gate.to_string(),
            handler.in_flight.to_string(),
            handler.parked.to_string(),
            ack,
            retry,
            dead_letter,
            drop,
            skipped,
            handler.panics.to_string(),
        ]);
    }
    table.render()
}

fn show(handler: &HandlerReport, now_ms: i64) -> String {
    let none = || "none".to_owned();
    let mut lines = vec![
        ("name", handler.name.clone()),
        ("plugin", handler.plugin.clone()),
        ("version", handler.version.clone()),
        ("generation", handler.generation.to_string()),
        ("file", handler.path.clone().unwrap_or_else(none)),
        ("sha256", handler.sha256.clone().unwrap_or_else(none)),
        ("state", handler.state.to_string()),
        ("gate", gate_of(handler)),
        (
            "workers",
            format!(
                "{} ({} busy, {} quarantined)",
                handler.workers, handler.busy, handler.quarantined
            ),
        ),
        ("in flight", handler.in_flight.to_string()),
        ("parked", handler.parked.to_string()),
    ];
    let outcomes = handler
        .outcomes
        .by_name()
        .map(|(name, count)| format!("{name} {count}"));
    lines.push(("outcomes", outcomes.join(", ")));
    lines.push(("panics", handler.panics.to_string()));
    lines.push(("restarts", handler.restarts.to_string()));
    lines.push(("record time", record_time(&handler.durations)));
    let emitted: Vec<String> = handler
        .emitted
        .iter()
        .map(|(topic, n)| format!("{topic} {n}"))
        .collect();
    lines.push((
        "emitted",
        if emitted.is_empty() {
            "-".to_owned()
        } else {
            emitted.join(", ")
        },
    ));
    if let Some(reason) = &handler.reason {
        lines.push(("reason", reason.clone()));
    }
    lines.push(("last error", last_error(handler, now_ms)));
    for problem in &handler.problems {
        lines.push(("problem", problem.sentence(now_ms)));
    }
    if let Some(why) = &handler.refused_spec {
        let text = format!("{why}; the previous spec stays active");
        lines.push(("refused spec", text));
    }
    lines.push(("route", handler.route.to_string()));
    let lines = lines
        .into_iter()
        .map(|(name, value)| format!("{name:<14} {}\n", escape(&value)));
    lines.collect()
}

/// The gate's state, and the records left while a closed or deleted handler drains.
fn gate_of(handler: &HandlerReport) -> String {
    let gate = match handler.removed {
        true => "deleted".to_owned(),
        false => handler.gate.to_string(),
    };
    match handler.held_since_ms {
        None => gate,
        Some(since_ms) => format!(
            "{gate}; {} records left, none settled for {} s",
            handler.in_flight,
            now_ms().saturating_sub(since_ms).max(0) / 1_000
        ),
    }
}

/// The last error, with its age.
fn last_error(handler: &HandlerReport, now_ms: i64) -> String {
    match (&handler.last_error, handler.last_error_ms) {
        (None, _) => "-".to_owned(),
        (Some(error), None) => error.clone(),
        (Some(error), Some(at_ms)) => {
            let seconds = now_ms.saturating_sub(at_ms).max(0) / 1_000;
            format!("{seconds} s ago: {error}")
        }
    }
}

fn record_time(durations: &DurationCounts) -> String {
    let bound = |share| match durations.quantile_us(share) {
        Some(bound) => format!("within {bound} µs"),
        None => "over 30 s".to_owned(),
    };
    match durations.count() {
        0 => "-".to_owned(),
        _ => format!("50 % {}, 99 % {}", bound(0.5), bound(0.99)),
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::status::{HandlerState, OutcomeCounts, ProblemKind, ServiceProblem};

    use super::*;

    #[test]
    fn the_table_shows_state_gate_and_outcomes() {
        let handler = HandlerReport {
            name: "relay".into(),
            version: "1.2.0".into(),
            path: Some("plugins/librelay.so".into()),
            sha256: Some("9f86d081".into()),
            state: HandlerState::Active,
            panics: 3,
            outcomes: OutcomeCounts {
                ack: 41,
                skipped: 2,
                ..OutcomeCounts::default()
            },
            last_error: Some("the sea\nis rough\u{1b}".into()),
            last_error_ms: Some(2_000),
            reason: Some("too many panics".into()),
            problems: vec![ServiceProblem {
                kind: ProblemKind::EmitsRefused,
                what: "cannot emit".into(),
                since_ms: 4_000,
                count: 1,
                cause: "no topic".into(),
                remedy: "create it".into(),
            }],
            refused_spec: Some("handlers.d/relay.yaml: no route".into()),
            ..HandlerReport::default()
        };
        let text = list(std::slice::from_ref(&handler));
        let row: Vec<&str> = text
            .lines()
            .nth(1)
            .expect("a row")
            .split_whitespace()
            .collect();
        assert_eq!(
            row,
            [
                "relay", "1.2.0", "0", "ACTIVE,", "newer", "spec", "refused", "open", "0", "0",
                "41", "0", "0", "0", "2", "3"
            ]
        );
        let text = show(&handler, 9_500);
        let code = "file           plugins/librelay.so\nsha256         9f86d081\n";
        assert!(text.contains(code), "{text}");
        assert!(
            text.contains("outcomes       ack 41, retry 0, dead_letter 0, drop 0, skipped 2\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "refused spec   handlers.d/relay.yaml: no route; the previous spec stays active\n"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "reason         too many panics\n\
                 last error     7 s ago: the sea\\nis rough\\u{1b}\n\
                 problem        cannot emit, for 5 s: no topic; create it\n"
            ),
            "{text}"
        );
    }
}
