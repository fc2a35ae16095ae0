//! `sluicegate run -c FILE`: the service until a signal ends it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use sluicegate_config::Environment;

use super::failure::Failure;
use super::signals::{self, Signal};
use super::validate::{ConfigFile, refused_by_client};
use crate::bridge::RunningBridge;
use crate::logging;
use crate::runtime::{Service, StartError};

/// How often a service that ended by itself is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    let bridge = config.bridge.as_ref().map(RunningBridge::start);
    let bridge = bridge.transpose().map_err(Failure::other)?;
    let service =
        Service::start(&config, &Environment::of_process()).map_err(|error| match error {
            StartError::Specs(problems) => Failure::problems(problems),
            error @ StartError::Handlers(_) => Failure::bad_input(error),
            error @ StartError::Part { .. } => Failure::other(error),
        })?;
    tracing::info!(
        admin = %service.admin_address(),
        group = config.kafka.group_id,
        version = env!("CARGO_PKG_VERSION"),
        "service started"
    );
    let failed = wait_for_end(&signals, &service);
    let ended = service.stop();
    drop(bridge);
    tracing::info!(graceful = ended.is_ok() && !failed, "service stopped");
    match ended {
        Ok(()) if failed => Err(Failure::other(
            "a pump ended without being asked to; the log says why",
        )),
        ended => ended.map_err(Failure::other),
    }
}

/// `true`: the service has ended by itself.
fn wait_for_end(signals: &Receiver<Signal>, service: &Service) -> bool {
    while !service.has_failed() {
        match signals.recv_timeout(LOOK_EVERY) {
            Ok(Signal::Reread) => {
                tracing::info!("reading specs again");
                service.reread();
            }
            Ok(Signal::Stop) => {
                tracing::info!("stopping: what was begun is finished and committed");
                return false;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
    true
}
