//! The process's signals: SIGTERM and SIGINT ask to stop, a second one a second or more later stops at once; SIGHUP asks to
//! read specs again.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use crate::logging;

/// Requests to stop that come this soon after the first are the same one: a shell and a parent may both pass it on.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// Said before a second signal ends the process.
const AT_ONCE: &str = "error: stopped at once by a second signal, without leaving the group: the partitions of a service rest \
     until its session has ended (session.timeout.ms, 45 s unless set), then what was in flight is read again";

/// What a signal asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Drain and stop.
    Stop,
    /// Read file sources again.
    Reread,
}

/// What a request to stop means, after those before it.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    First,
    Same,
    AtOnce,
}

/// The requests to stop so far.
#[derive(Debug, Default)]
struct Stops {
    first: Option<Instant>,
}

impl Stops {
    fn asked(&mut self, now: Instant) -> Request {
        match self.first {
            None => {
                self.first = Some(now);
                Request::First
            }
            Some(first) if now.saturating_duration_since(first) < SAME_REQUEST => Request::Same,
            Some(_) => Request::AtOnce,
        }
    }
}

/// Listens from now on, on a thread of its own: a second request to stop must work whatever the rest is busy with.
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
                let asked = tokio::select! {
                    _ = terminate.recv() => Signal::Stop,
                    _ = interrupt.recv() => Signal::Stop,
                    _ = hang_up.recv() => Signal::Reread,
                };
                if asked == Signal::Stop {
                    match stops.asked(Instant::now()) {
                        Request::First => {}
                        Request::Same => continue,
                        Request::AtOnce => {
                            logging::say(AT_ONCE);
                            logging::finish();
                            std::process::exit(1);
                        }
                    }
                }
                // Nobody reads any more when the process is about to end by itself.
                let _ = sender.send(asked);
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
    fn a_signal_that_comes_twice_is_one_request_and_a_later_one_stops_at_once() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut stops = Stops::default();
        assert_eq!(stops.asked(start), Request::First);
        assert_eq!(stops.asked(start), Request::Same);
        assert_eq!(stops.asked(after(999)), Request::Same);
        assert_eq!(stops.asked(after(1_000)), Request::AtOnce);
    }
}
