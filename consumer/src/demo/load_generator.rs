//! Writes flights to the demo's cluster, over and over, at a constant rate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::load;
use crate::load::rows::{Fields, Row};
use crate::load::sender::Sender;
use crate::load::{ProduceError, input};

/// The field used as the key.
const KEY: &str = "tailnum";
/// The fields used as headers.
const HEADERS: [&str; 3] = ["carrier", "origin", "dest"];
/// How far the generator may fall behind its rate and still catch up.
const MAX_BEHIND: Duration = Duration::from_millis(500);
/// Poll interval of a paused generator.
const HELD_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Shared state of the generator's thread and the demo.
#[derive(Default)]
struct Signals {
    written: AtomicU64,
    held: AtomicBool,
    stopped: AtomicBool,
}

/// The running load generator.
pub(super) struct LoadGenerator {
    signals: Arc<Signals>,
    thread: JoinHandle<Result<(), ProduceError>>,
}

impl LoadGenerator {
    /// Starts writing `file` to `topic` at `rate` records per second.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(
        file: PathBuf,
        brokers: String,
        topic: &'static str,
        rate: f64,
    ) -> std::io::Result<Self> {
        let signals = Arc::new(Signals::default());
        let its_signals = Arc::clone(&signals);
        let thread = std::thread::Builder::new()
            .name("load-generator".to_owned())
            .spawn(move || {
                let sender =
                    Sender::connect(&brokers, topic, None, |text| tracing::warn!("{text}"))?;
                let mut pace = Rate::new(rate);
                while !its_signals.stopped.load(Ordering::Relaxed) {
                    write_once(&file, &sender, &mut pace, &its_signals)?;
                }
                Ok(sender.finish()?)
            })?;
        Ok(Self { signals, thread })
    }

    /// Records written so far.
    pub(super) fn written(&self) -> u64 {
        self.signals.written.load(Ordering::Relaxed)
    }

    /// Pauses or resumes the generator.
    pub(super) fn hold(&self, held: bool) {
        self.signals.held.store(held, Ordering::Relaxed);
    }

    /// Whether it is paused.
    pub(super) fn is_held(&self) -> bool {
        self.signals.held.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended without being stopped, which only an error causes.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it once everything is acknowledged; returns the number of records written.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) fn stop(self) -> Result<u64, ProduceError> {
        self.signals.stopped.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result.map(|()| self.signals.written.load(Ordering::Relaxed)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn write_once(
    file: &Path,
    sender: &Sender,
    pace: &mut Rate,
    signals: &Signals,
) -> Result<(), ProduceError> {
    let headers = HEADERS.map(str::to_owned);
    let fields = Fields {
        key: Some(KEY.to_owned()),
        headers: headers.to_vec(),
        ..Fields::default()
    };
    input::open(file, None, |mut input| {
        let mut rows = load::open_rows(&mut input, fields)?;
        let mut row = Row::default();
        while !signals.stopped.load(Ordering::Relaxed) {
            if signals.held.load(Ordering::Relaxed) {
                std::thread::sleep(HELD_POLL_INTERVAL);
                continue;
            }
            match rows.next(&mut row) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let written = signals.written.load(Ordering::Relaxed);
                    return Err(ProduceError::bad_row(
                        file.display().to_string(),
                        error,
                        written,
                    ));
                }
            }
            pace.wait();
            sender.send(row.key(), row.headers(&headers), &row.value, rows.line())?;
            signals.written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?
}

/// A constant rate that does not make up for long waits.
struct Rate {
    step: Duration,
    due: Instant,
}

impl Rate {
    fn new(rate: f64) -> Self {
        Self {
            step: Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX),
            due: Instant::now(),
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.due) > MAX_BEHIND {
            self.due = now;
        }
        let early = self.due.saturating_duration_since(now);
        if early > Duration::from_millis(1) {
            std::thread::sleep(early);
        }
        self.due += self.step;
    }
}
