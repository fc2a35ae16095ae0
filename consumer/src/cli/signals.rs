//! The process's signals: SIGTERM and SIGINT ask to stop, a second one stops at once; SIGHUP asks to read specs again.

use std::sync::mpsc::{self, Receiver};

use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;

/// What a signal asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Drain and stop.
    Stop,
    /// Read file sources again.
    Reread,
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
            let mut stops = 0;
            loop {
                let asked = tokio::select! {
                    _ = terminate.recv() => Signal::Stop,
                    _ = interrupt.recv() => Signal::Stop,
                    _ = hang_up.recv() => Signal::Reread,
                };
                stops += usize::from(asked == Signal::Stop);
                if stops > 1 {
                    eprintln!("error: stopped at once by a second signal; what was in flight is read again");
                    std::process::exit(1);
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
