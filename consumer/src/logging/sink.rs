//! Where log lines go: a bounded buffer that one thread writes out, so that nobody who logs ever waits for the other end.
//!
//! ```text
//!  pump, workers, admin ── lines ──► buffer (bounded) ──► thread `log` ──► stderr or a file
//!                             └─ no room: dropped, counted          └─ refused or closed: lost, counted
//! ```
//!
//! An end that is not read (a stopped reader of a pipe, a stuck log driver) holds up the thread and nothing else. What was
//! lost is told by a line once lines are written again, and counted all along.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written. As many can be on their way out.
pub(super) const CAPACITY: usize = 1 << 20;
/// Wait before an end that others have set to non-blocking is tried again.
const BUSY_RETRY: Duration = Duration::from_millis(10);

/// Takes lines; its clones are the same one.
#[derive(Clone)]
pub(super) struct Sink(Arc<Shared>);

struct Shared {
    capacity: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Lines that nobody will see.
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken lines that are not written yet.
    writing: bool,
}

impl Sink {
    /// Starts the thread that writes to `end`. After a loss it calls `tell` with the number of lines, once lines are written
    /// again.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub(super) fn start(
        end: impl Write + Send + 'static,
        capacity: usize,
        tell: impl FnMut(u64) + Send + 'static,
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
            .spawn(move || shared.write_out(end, tell))?;
        Ok(sink)
    }

    /// Takes one line, its end included, or drops it when there is no room. Never waits for the other end.
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

    /// Waits until everything is written, at most so long.
    pub(super) fn flush(&self, deadline: Duration) {
        let state = self.0.state();
        let pending = |state: &mut State| state.writing || !state.waiting.is_empty();
        // A flush that is cut short has nobody to tell.
        let _ = self.0.changed.wait_timeout_while(state, deadline, pending);
    }

    /// Lines that were dropped, or that the other end has refused.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut end: impl Write, mut tell: impl FnMut(u64)) {
        let mut lines = Vec::new();
        let mut told = 0;
        // The last line ended in the middle: what comes next begins a new one.
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
            if refused == 0 && lost > told {
                tell(lost - told);
                told = lost;
            }
            self.state().writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for lines and exchanges them for the empty buffer.
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

/// Writes everything; on a refusal, gives how many bytes were written before it.
fn write_all(end: &mut impl Write, bytes: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < bytes.len() {
        match end.write(&bytes[written..]) {
            Ok(0) => return Err(written),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(BUSY_RETRY);
            }
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

/// One line on its way into the sink: `tracing` writes each in one call.
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
