//! Destination of log lines: a bounded buffer written out by one thread, so that logging never blocks on the reader.
//!
//! ```text
//!  pump, workers, admin ── lines ──► buffer (bounded) ──► thread `log` ──► stderr or a file
//!                             └─ full: dropped, counted             └─ failed or closed: lost, counted
//! ```
//!
//! A blocked reader (a stopped process on a pipe, a stuck log driver) blocks this thread and nothing else. Losses are counted
//! as they happen, and logged once lines can be written again.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Maximum bytes of buffered lines. The thread can hold as many again while it writes them.
pub(super) const CAPACITY: usize = 1 << 20;
/// Retry delay for a descriptor that another process has set to non-blocking.
const BUSY_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Accepts lines; clones share one buffer.
#[derive(Clone)]
pub(super) struct Sink(Arc<Shared>);

struct Shared {
    capacity: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Lines dropped or not written.
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken lines that it has not written yet.
    writing: bool,
}

impl Sink {
    /// Starts the thread that writes to `end`. After a loss it calls `report` with the number of lost lines, once lines can be
    /// written again.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub(super) fn start(
        end: impl Write + Send + 'static,
        capacity: usize,
        report: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let sink = Self(Arc::new(Shared {
            capacity,
            state: Mutex::default(),
            changed: Condvar::new(),
            lost: AtomicU64::new(0),
        }));
        let shared = Arc::clone(&sink.0);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_out(end, report))?;
        Ok(sink)
    }

    /// Buffers one line, with its newline, or drops it if the buffer is full. Never blocks on the reader.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.0.state();
        if state.waiting.len() + line.len() > self.0.capacity {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, for at most `deadline`.
    pub(super) fn flush(&self, deadline: Duration) {
        let state = self.0.state();
        let pending = |state: &mut State| state.writing || !state.waiting.is_empty();
        // An incomplete flush cannot be reported anywhere.
        let _ = self.0.changed.wait_timeout_while(state, deadline, pending);
    }

    /// Lines that were dropped or could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut end: impl Write, mut report: impl FnMut(u64)) {
        let mut lines = Vec::new();
        let mut reported = 0;
        // The last line was written in part: start the next one on a new line.
        let mut torn = false;
        loop {
            self.take(&mut lines);
            let begun = match torn {
                true => write_all(&mut end, b"\n").is_ok(),
                false => true,
            };
            let written = match begun {
                true => {
                    write_all(&mut end, &lines).map_or_else(|written| written, |()| lines.len())
                }
                false => 0,
            };
            if written > 0 {
                torn = lines[written - 1] != b'\n';
            }
            let refused = lines[written..]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count() as u64;
            lines.clear();
            let lost = self.lost.fetch_add(refused, Ordering::Relaxed) + refused;
            if refused == 0 && lost > reported {
                report(lost - reported);
                reported = lost;
            }
            self.state().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for lines and swaps them for the empty buffer.
    fn take(&self, lines: &mut Vec<u8>) {
        let state = self.state();
        let waiting = self
            .changed
            .wait_while(state, |state| state.waiting.is_empty());
        let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, lines);
        state.writing = true;
    }
}

/// Writes everything; on an error, returns the number of bytes written before it.
fn write_all(end: &mut impl Write, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match end.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(BUSY_RETRY_DELAY);
            }
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

/// Writer of one line to the sink: `tracing` writes each line in one call.
pub(super) struct Line<'s>(&'s Sink);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'s> MakeWriter<'s> for Sink {
    type Writer = Line<'s>;

    fn make_writer(&'s self) -> Line<'s> {
        Line(self)
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
