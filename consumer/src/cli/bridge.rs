//! `sluicegate bridge -c FILE [--dry-run]` and `sluicegate bridge status`.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use sluicegate_admin::logging;
use sluicegate_bridge::{BridgeReport, BridgeSettings, BridgeStores, DryRun, DryRunStep, dry_run};
use sluicegate_config::Environment;
use sluicegate_config::control::{Pair, Side};
use sluicegate_config::escape::escape;
use sluicegate_config::service::{BridgeConfig, load_bridge_config};
use sluicegate_service::bridge::{BridgeError, RunningBridge};

use super::admin_client::Admin;
use super::failure::Failure;
use super::output::Output;
use super::signals::{self, Signal};
use super::table::Table;

/// How often the bridge is checked for failure.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `bridge`.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The bridge's config
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = "bridge.yaml"
    )]
    file: PathBuf,
    /// Print what the bridge would write, without writing anything
    #[arg(long)]
    dry_run: bool,
    /// Replicate deletes however many keys are missing
    #[arg(long, conflicts_with = "dry_run")]
    allow_mass_delete: bool,
    /// Accept this side after it was emptied, restored or replaced: the other side's keys are copied to it, and keys that
    /// it lacks are not deleted from the other side
    #[arg(long, value_name = "SIDE")]
    accept_store: Vec<AcceptedSide>,
    #[command(flatten)]
    output: Output,
}

/// A value of `--accept-store`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptedSide {
    /// The etcd prefix
    Etcd,
    /// The ZooKeeper tree
    Zookeeper,
}

impl From<AcceptedSide> for Side {
    fn from(side: AcceptedSide) -> Self {
        match side {
            AcceptedSide::Etcd => Self::Etcd,
            AcceptedSide::Zookeeper => Self::ZooKeeper,
        }
    }
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show the state of the running bridge
    Status(Status),
}

#[derive(clap::Args, Debug)]
struct Status {
    /// Address of the running bridge's admin HTTP API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9601")]
    admin: String,
    #[command(flatten)]
    output: Output,
}

/// Runs a bridge until a signal stops it, does a dry run, or queries a running bridge.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(Command::Status(status)) = &arguments.command {
        let admin = Admin::at(&status.admin, "sluicegate bridge");
        let report: BridgeReport = admin.get("/api/v1/bridge")?;
        return status.output.print(&report, show);
    }
    let environment = Environment::of_process();
    let (config, log) =
        load_bridge_config(&arguments.file, &environment).map_err(Failure::problems)?;
    let accepted = |side: Side| (arguments.accept_store.iter()).any(|one| Side::from(*one) == side);
    let accept = Pair::from_fn(accepted);
    if arguments.dry_run {
        return print_dry_run(&config, accept, arguments.output);
    }
    let signals = signals::listen()?;
    logging::start(&log, None).map_err(Failure::bad_input)?;
    if arguments.allow_mass_delete {
        tracing::warn!("deletes are replicated however many keys are missing");
    }
    let settings = BridgeSettings {
        allow_mass_delete: arguments.allow_mass_delete,
        accept,
        ..BridgeSettings::new(&config)
    };
    let bridge = RunningBridge::start(&config, settings).map_err(|error| match error {
        BridgeError::Store(error) => Failure::bad_input(error),
        error => Failure::other(error),
    })?;
    tracing::info!(
        admin = %bridge.admin_address(),
        preferred_side = %config.preferred_side,
        version = env!("CARGO_PKG_VERSION"),
        "bridge started"
    );
    let failure = wait_for_end(&signals, &bridge);
    drop(bridge);
    tracing::info!("bridge stopped");
    failure.map_or(Ok(()), |why| Err(Failure::other(why)))
}

/// Waits for a stop signal (`None`) or for the bridge to fail (the reason).
fn wait_for_end(signals: &Receiver<Signal>, bridge: &RunningBridge) -> Option<String> {
    loop {
        match signals.recv_timeout(POLL_INTERVAL) {
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            // The config is read only once; the stores are watched.
            Ok(Signal::Reread) => {
                tracing::info!("SIGHUP ignored: a bridge has no files to re-read")
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let failure = bridge.failure();
        if failure.is_some() {
            return failure;
        }
    }
}

fn print_dry_run(config: &BridgeConfig, accept: Pair<bool>, output: Output) -> Result<(), Failure> {
    let stores = BridgeStores::open(config).map_err(Failure::bad_input)?;
    let result = dry_run(&stores, config.preferred_side, accept).map_err(Failure::other)?;
    if let Some(halt) = &result.halt {
        use std::io::Write;
        // A closed stderr is not an error.
        let _ = writeln!(std::io::stderr(), "the bridge would halt: {halt}");
    }
    output.print(&result.steps, |steps| match steps.is_empty() {
        true if result.halt.is_some() => "nothing: the bridge would halt".to_owned(),
        _ => plan(steps),
    })
}

fn plan(steps: &[DryRun]) -> String {
    if steps.is_empty() {
        return "nothing to do: both sides are equal".to_owned();
    }
    let mut table = Table::new(&["STEP", "SIDE", "PLACE", "WHY"]);
    for step in steps {
        let from = step.side.other();
        let (word, why) = match step.step {
            DryRunStep::Write if step.conflict => {
                ("write", format!("both differ; the value of {from} wins"))
            }
            DryRunStep::Write => ("write", format!("present in {from}")),
            DryRunStep::Delete if step.conflict => {
                ("delete", format!("both changed; the change in {from} wins"))
            }
            DryRunStep::Delete => ("delete", format!("deleted in {from}")),
            DryRunStep::Refuse => ("refuse", step.problems.join("; ")),
        };
        table.row([
            word.to_owned(),
            step.side.to_string(),
            step.place.clone(),
            why,
        ]);
    }
    table.render()
}

fn show(report: &BridgeReport) -> String {
    let mut text = format!(
        "bridge {}, preferred side {}\n",
        report.id, report.preferred_side
    );
    show_stores(report, &mut text);
    if let Some(failed) = &report.failed {
        text.push_str(&format!("FAILED at {}: {}\n", failed.since, failed.reason));
    }
    if let Some(halted) = &report.halted {
        text.push_str(&format!(
            "HALTED since {}: {}\n",
            halted.since, halted.reason
        ));
    }
    text.push_str(&match report.unsettled {
        0 => format!("{} keys, all in sync\n", report.keys),
        waiting => format!(
            "{} keys, {waiting} pending, the oldest for {:.1} s\n",
            report.keys, report.lag_seconds
        ),
    });
    let counts = &report.counts;
    for side in Side::BOTH {
        text.push_str(&format!(
            "to {side:<10} {} written, {} deleted, {} conflicts lost, {} repairs\n",
            counts.writes.of(side),
            counts.deletes.of(side),
            counts.conflicts.of(side),
            counts.repairs.of(side),
        ));
    }
    for refused in &report.refused {
        let problems = escape(&refused.problems.join("; ")).into_owned();
        text.push_str(&format!(
            "refused    {}: {problems}\n",
            escape(&refused.place)
        ));
    }
    for conflict in &report.conflicts {
        text.push_str(&format!(
            "conflict   {} {}: {} won over revision {} of {}\n",
            conflict.at,
            escape(&conflict.key),
            conflict.winner,
            conflict.overruled_revision,
            conflict.winner.other(),
        ));
    }
    text
}

/// One line per store, and one more if it holds something else than control keys.
fn show_stores(report: &BridgeReport, text: &mut String) {
    let stores = [
        ("etcd", &report.sides.etcd),
        ("zookeeper", &report.sides.zookeeper),
        ("sync_state", &report.sync_state),
    ];
    for (name, store) in stores {
        let state = match &store.reason {
            None => "reachable".to_owned(),
            Some(reason) => format!("unreachable: {}", escape(reason)),
        };
        text.push_str(&format!(
            "{name:<10} {}: {state}, {} keys at revision {}\n",
            store.store, store.keys, store.revision
        ));
        if store.unrecognized_keys > 0 {
            text.push_str(&format!(
                "           {} paths are not control keys and are left alone\n",
                store.unrecognized_keys
            ));
        }
    }
}
