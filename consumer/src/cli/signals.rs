//! The process's signals: SIGTERM and SIGINT request a graceful stop, and exit immediately when repeated after one second or
//! more; SIGHUP requests a re-read of specs.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use sluicegate_admin::logging;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;

/// A stop request within this time of the first is a duplicate: a shell and a parent process may both forward the signal.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// Printed before another signal exits the process.
const IMMEDIATE_EXIT: &str = "error: stopped immediately by another signal, without leaving the group: the partitions of a service \
     stay idle until its session expires (session.timeout.ms, 45 s by default), then its in-flight records are reprocessed";

/// What a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Drain and stop.
    Stop,
    /// Re-read file sources.
    Reread,
}

/// Meaning of a stop request, given the earlier ones.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    First,
    Duplicate,
    Immediate,
}

/// Stop requests so far.
#[derive(Debug, Default)]
struct Stops {
    first: Option<Instant>,
}

impl Stops {
    fn classify(&mut self, now: Instant) -> Request {
        match self.first {
            None => {
                self.first = Some(now);
                Request::First
            }
            Some(first) if now.saturating_duration_since(first) < DUPLICATE_WINDOW => {
                Request::Duplicate
            }
            Some(_) => Request::Immediate,
        }
    }
}

/// Starts listening on a dedicated thread: another stop request must work even if every other thread is blocked.
pub(super) fn listen() -> Result<Receiver<Signal>, Failure> {
    let failed =
        |error: std::io::Error| Failure::other(format!("cannot listen for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let (mut terminate, mut interrupt, mut hang_up) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::interrupt()).map_err(failed)?,
            signal(SignalKind::hangup()).map_err(failed)?,
        )
    };
    let (sender, receiver) = mpsc::channel();
    let serve = move || {
        runtime.block_on(async {
            let mut stops = Stops::default();
            loop {
                let signal = tokio::select! {
                    _ = terminate.recv() => Signal::Stop,
                    _ = interrupt.recv() => Signal::Stop,
                    _ = hang_up.recv() => Signal::Reread,
                };
                if signal == Signal::Stop {
                    match stops.classify(Instant::now()) {
                        Request::First => {}
                        Request::Duplicate => continue,
                        Request::Immediate => {
                            logging::say(IMMEDIATE_EXIT);
                            logging::finish();
                            std::process::exit(1);
                        }
                    }
                }
                // The receiver is gone when the process is already exiting.
                let _ = sender.send(signal);
            }
        });
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(serve)
        .map_err(failed)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_signal_is_one_request_and_a_later_one_exits_immediately() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut stops = Stops::default();
        assert_eq!(stops.classify(start), Request::First);
        assert_eq!(stops.classify(start), Request::Duplicate);
        assert_eq!(stops.classify(after(999)), Request::Duplicate);
        assert_eq!(stops.classify(after(1_000)), Request::Immediate);
    }
}
