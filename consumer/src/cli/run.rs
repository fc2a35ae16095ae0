//! `sluicegate run -c FILE`: the service until a signal ends it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use sluicegate_config::{Environment, ServiceConfig};

use super::failure::Failure;
use super::signals::{self, Signal};
use super::validate::{ConfigFile, refused_by_client};
use crate::bridge::RunningBridge;
use crate::logging;
use crate::pump::{JoinGate, StopReport};
use crate::runtime::{STOP_GRACE, Service, StartError};

/// How often a service that ended by itself is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a signal is looked for while the service starts.
const START_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `run`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs until a signal, or until the service cannot go on.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let signals = signals::listen()?;
    let config = arguments.config.load().map_err(Failure::problems)?;
    let refused = refused_by_client(&config, Some(arguments.config.file()));
    if !refused.is_empty() {
        return Err(Failure::problems(refused));
    }
    logging::start(&config.logging, None).map_err(Failure::bad_input)?;
    let bridge = config.bridge.as_ref();
    let bridge = bridge.map(|config| RunningBridge::start(config, config.settings()));
    let bridge = bridge.transpose().map_err(Failure::other)?;
    let config = Arc::new(config);
    let Some(Started { service, stop }) = start(&config, &signals)? else {
        tracing::info!("stopped during the start, before the group was joined");
        return Ok(());
    };
    tracing::info!(
        admin = %service.admin_address(),
        group = config.kafka.group_id,
        version = env!("CARGO_PKG_VERSION"),
        "service started"
    );
    let failed = !stop && wait_for_end(&signals, &service);
    if !failed {
        tracing::info!("stopping: what was begun is finished and committed");
    }
    let ended = service.stop();
    drop(bridge);
    let why = match ended {
        Ok(left) if !failed => return tell_end(left),
        Ok(_) => "a pump ended without being asked to; the log says why".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::info!(graceful = false, "service stopped");
    Err(Failure::other(why))
}

/// The last line of a stop that was asked for. Whoever stops one member after the other must notice that one has left
/// something behind: it ends as a failure then.
fn tell_end(left: StopReport) -> Result<(), Failure> {
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
    let reason = "the stop was not graceful; the log says what it has left";
    Err(Failure::other(reason))
}

/// A service that has started, and whether it was told to stop meanwhile.
struct Started {
    service: Service,
    stop: bool,
}

/// Starts the service on a thread of its own, so that a signal is heard while stores, plugins or the cluster let it wait.
/// `None`: it was told to stop before it had joined the group, so that there is nothing to give back.
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
            // Nobody listens any more when a signal has ended the start.
            let _ = sender.send(service);
        })
        .map_err(|error| Failure::other(format!("start thread: {error}")))?;
    let mut reread = false;
    let mut stop_by = None;
    loop {
        match signals.try_recv() {
            Ok(Signal::Stop) if join_gate.shut() => return Ok(None),
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
                    tracing::info!("reading specs again");
                    service.reread();
                }
                let stop = stop_by.is_some();
                return Ok(Some(Started { service, stop }));
            }
            Err(RecvTimeoutError::Timeout) => {
                if stop_by.is_some_and(|by| Instant::now() >= by) {
                    return Err(Failure::other(
                        "told to stop while it started, and the start did not end in time; the group waits for this \
                         member until its session ends",
                    ));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::other("the start panicked; the log says why"));
            }
        }
    }
}

fn start_failed(error: StartError) -> Failure {
    match error {
        StartError::Specs(problems) => Failure::problems(problems),
        error @ StartError::Handlers(_) => Failure::bad_input(error),
        error @ StartError::Part { .. } => Failure::other(error),
    }
}

/// `true`: the service has ended by itself.
fn wait_for_end(signals: &Receiver<Signal>, service: &Service) -> bool {
    while !service.has_failed() {
        match signals.recv_timeout(POLL_INTERVAL) {
            Ok(Signal::Reread) => {
                tracing::info!("reading specs again");
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
    fn a_stop_that_leaves_anything_fails_and_says_what() {
        assert!(tell_end(StopReport::default()).is_ok());
        let some = |unfinished, uncommitted, members| StopReport {
            unfinished,
            uncommitted,
            members,
        };
        for (left, words) in [
            (some(3, 0, 0), "records begun and not finished: 3,"),
            (some(0, 2, 0), "last commit was not accepted: 2;"),
            (
                some(0, 0, 1),
                "members that the group has not heard leave: 1;",
            ),
            (some(3, 2, 1), "read these records again; members"),
        ] {
            assert!(left.to_string().contains(words), "{left}");
            let failure = tell_end(left).expect_err("not graceful");
            assert_eq!(failure.report(), std::process::ExitCode::from(1));
        }
    }
}
