//! `sluicegate run -c FILE`: the service, until a signal ends it.
//!
//! SIGTERM and SIGINT drain and stop, a second one stops at once; SIGHUP reads the sources of specs again.

use std::time::Duration;

use sluicegate_config::{Environment, ServiceConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use super::validate::ConfigFile;
use crate::runtime::{Service, StartError};

/// Arguments of `run`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
}

/// Between two looks at whether the service still runs.
const LOOK: Duration = Duration::from_millis(200);

/// Runs the service to its end.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.load().map_err(Failure::bad_input)?;
    crate::logging::start(&config.logging, None).map_err(Failure::bad_input)?;
    let waiting = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot wait for signals: {error}")))?;
    let mut signals = waiting
        .block_on(async { Signals::new() })
        .map_err(|error| Failure::other(format!("cannot wait for signals: {error}")))?;
    let service = start(&config)?;
    tracing::info!(
        admin = %service.admin_address(),
        group = config.kafka.group_id,
        version = env!("CARGO_PKG_VERSION"),
        "service started"
    );
    let failed = waiting.block_on(signals.until_stop(&service));
    tracing::info!("stopping: what was begun is finished and committed");
    let impatient = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        waiting.block_on(signals.stop());
        eprintln!("error: stopped at once by a second signal; the next owner repeats what was not committed");
        std::process::exit(1);
    });
    if let Err(error) = impatient {
        tracing::warn!(%error, "a second signal cannot be waited for");
    }
    match service.stop() {
        Ok(()) if failed => Err(Failure::other(
            "a pump ended without being asked to; see the log",
        )),
        Ok(()) => {
            tracing::info!("stopped");
            Ok(())
        }
        Err(error) => Err(Failure::other(error)),
    }
}

fn start(config: &ServiceConfig) -> Result<Service, Failure> {
    Service::start(config, &Environment::of_process()).map_err(|error| match error {
        StartError::Specs(_) | StartError::Handlers(_) => Failure::bad_input(error),
        StartError::Part { .. } => Failure::other(error),
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// `true`: the service has ended by itself.
    async fn until_stop(&mut self, service: &Service) -> bool {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return false,
                _ = self.interrupt.recv() => return false,
                _ = self.hang_up.recv() => service.reread(),
                () = tokio::time::sleep(LOOK) => {
                    if service.has_failed() {
                        return true;
                    }
                }
            }
        }
    }
}
