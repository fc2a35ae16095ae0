//! Writes flights to the demo's cluster, over and over, at a steady pace.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::produce::rows::{Fields, Row};
use crate::produce::sender::Sender;
use crate::produce::{self, ProduceError, input};

/// The key's field.
const KEY: &str = "tailnum";
/// The headers' fields.
const HEADERS: [&str; 3] = ["carrier", "origin", "dest"];
/// How far the feed may fall behind its pace and still catch up.
const MAX_BEHIND: Duration = Duration::from_millis(500);
/// How often a feed that waits looks again.
const HELD: Duration = Duration::from_millis(50);

/// What the feed and the demo tell each other.
#[derive(Default)]
struct Signals {
    written: AtomicU64,
    held: AtomicBool,
    stopped: AtomicBool,
}

/// The running feed.
pub(super) struct Feed {
    signals: Arc<Signals>,
    thread: JoinHandle<Result<(), ProduceError>>,
}

impl Feed {
    /// Starts writing `file` to `topic` at `rate` records a second.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(
        file: PathBuf,
        brokers: String,
        topic: &'static str,
        rate: f64,
    ) -> std::io::Result<Self> {
        let signals = Arc::new(Signals::default());
        let its_signals = Arc::clone(&signals);
        let thread = std::thread::Builder::new()
            .name("feed".to_owned())
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

    /// Makes the feed wait, or go on.
    pub(super) fn hold(&self, held: bool) {
        self.signals.held.store(held, Ordering::Relaxed);
    }

    /// Whether it waits.
    pub(super) fn is_held(&self) -> bool {
        self.signals.held.load(Ordering::Relaxed)
    }

    /// Whether it has ended by itself, which only a failure does.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it once everything is acknowledged, and gives the number of records.
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
        let mut rows = produce::open_rows(&mut input, fields)?;
        let mut row = Row::default();
        while !signals.stopped.load(Ordering::Relaxed) {
            if signals.held.load(Ordering::Relaxed) {
                std::thread::sleep(HELD);
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

/// A steady pace that does not make up for long waits.
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
