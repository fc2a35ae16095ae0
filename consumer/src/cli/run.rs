//! `sluicegate run -c FILE`: runs the service until a signal stops it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use sluicegate_admin::logging;
use sluicegate_bridge::BridgeSettings;
use sluicegate_config::{Environment, ServiceConfig};
use sluicegate_service::bridge::RunningBridge;
use sluicegate_service::pump::{JoinGate, StopReport};
use sluicegate_service::{STOP_GRACE, Service, StartError};

use super::failure::Failure;
use super::signals::{self, Signal};
use super::validate::{ConfigFile, refused_by_client};

/// How often the service is checked for failure.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often signals are polled while the service starts.
const START_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `run`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs until a signal arrives or the service fails.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let signals = signals::listen()?;
    let config = arguments.config.load().map_err(Failure::problems)?;
    let refused = refused_by_client(&config, Some(arguments.config.file()));
    if !refused.is_empty() {
        return Err(Failure::problems(refused));
    }
    logging::start(&config.logging, None).map_err(Failure::bad_input)?;
    let bridge = config.bridge.as_ref();
    let bridge = bridge.map(|config| RunningBridge::start(config, BridgeSettings::new(config)));
    let bridge = bridge.transpose().map_err(Failure::other)?;
    let config = Arc::new(config);
    let Some(Started { service, stop }) = start(&config, &signals)? else {
        tracing::info!("stopped during startup, before joining the group");
        return Ok(());
    };
    if let Some(report) = bridge.as_ref().and_then(RunningBridge::reporter) {
        service.watch_bridge(report);
    }
    tracing::info!(
        admin = %service.admin_address(),
        group = config.kafka.group_id,
        version = env!("CARGO_PKG_VERSION"),
        "service started"
    );
    let failed = !stop && wait_for_end(&signals, &service);
    if !failed {
        tracing::info!("shutting down: draining in-flight records");
    }
    let ended = service.stop();
    drop(bridge);
    let why = match ended {
        Ok(left) if !failed => return report_end(left),
        Ok(_) => "a pump terminated unexpectedly; see the log for the reason".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::info!(graceful = false, "service stopped");
    Err(Failure::other(why))
}

/// Logs the result of a requested shutdown. Unfinished work is a failure (exit code 1), so that a rolling restart notices
/// a member that left records behind.
fn report_end(left: StopReport) -> Result<(), Failure> {
    if left.is_graceful() {
        tracing::info!(graceful = true, "service stopped");
        return Ok(());
    }
    tracing::error!(
        graceful = false,
        unfinished = left.unfinished,
        uncommitted = left.uncommitted,
        members = left.members,
        "service stopped: {left}"
    );
    let reason = "shutdown was not graceful; see the log for what it left behind";
    Err(Failure::other(reason))
}

/// A started service, and whether a stop was requested during its startup.
struct Started {
    service: Service,
    stop: bool,
}

/// Starts the service on a separate thread, so that signals are handled while stores, plugins or the cluster block it.
/// `None`: a stop was requested before any pump joined the group, so there is nothing to release.
fn start(
    config: &Arc<ServiceConfig>,
    signals: &Receiver<Signal>,
) -> Result<Option<Started>, Failure> {
    let join_gate = Arc::new(JoinGate::default());
    let (sender, result) = sync_channel(1);
    let (its_config, its_gate) = (Arc::clone(config), Arc::clone(&join_gate));
    std::thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || {
            let service = Service::start(&its_config, &Environment::of_process(), &its_gate);
            // The receiver is gone when a signal has aborted the startup.
            let _ = sender.send(service);
        })
        .map_err(|error| Failure::other(format!("start thread: {error}")))?;
    let mut reread = false;
    let mut stop_by = None;
    loop {
        match signals.try_recv() {
            Ok(Signal::Stop) if join_gate.close() => return Ok(None),
            Ok(Signal::Stop) => {
                stop_by = Some(Instant::now() + config.processing.drain_timeout + STOP_GRACE);
            }
            Ok(Signal::Reread) => reread = true,
            Err(_) => {}
        }
        match result.recv_timeout(START_POLL_INTERVAL) {
            Ok(service) => {
                let service = service.map_err(start_failed)?;
                if reread {
                    tracing::info!("re-reading specs");
                    service.reread();
                }
                let stop = stop_by.is_some();
                return Ok(Some(Started { service, stop }));
            }
            Err(RecvTimeoutError::Timeout) => {
                if stop_by.is_some_and(|by| Instant::now() >= by) {
                    return Err(Failure::other(
                        "stopped during startup, which did not finish in time; the group waits for this member until its \
                         session expires",
                    ));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::other(
                    "startup panicked; see the log for the reason",
                ));
            }
        }
    }
}

fn start_failed(error: StartError) -> Failure {
    match error {
        StartError::Specs(problems) => Failure::problems(problems),
        error @ StartError::Handlers {
            may_heal: false, ..
        } => Failure::bad_input(error),
        error @ (StartError::Handlers { .. } | StartError::Part { .. }) => Failure::other(error),
    }
}

/// Waits for a stop signal (`false`) or for the service to fail (`true`).
fn wait_for_end(signals: &Receiver<Signal>, service: &Service) -> bool {
    while !service.has_failed() {
        match signals.recv_timeout(POLL_INTERVAL) {
            Ok(Signal::Reread) => {
                tracing::info!("re-reading specs");
                service.reread();
            }
            Ok(Signal::Stop) => return false,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_leaves_work_behind_fails_and_reports_it() {
        assert!(report_end(StopReport::default()).is_ok());
        let some = |unfinished, uncommitted, members| StopReport {
            unfinished,
            uncommitted,
            members,
        };
        for (left, words) in [
            (some(3, 0, 0), "unfinished records: 3,"),
            (some(0, 2, 0), "last commit failed: 2;"),
            (some(0, 0, 1), "members without a confirmed leave: 1;"),
            (some(3, 2, 1), "reprocess these records; members"),
        ] {
            assert!(left.to_string().contains(words), "{left}");
            let failure = report_end(left).expect_err("not graceful");
            assert_eq!(failure.report(), std::process::ExitCode::from(1));
        }
    }
}
