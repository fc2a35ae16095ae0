//! Captures log output in tests.

use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};

/// A shared buffer: clones write to the same one.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Everything written so far.
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps log lines enabled in all threads of a test process. Otherwise a thread without a subscriber that is the first to reach
/// a line can disable it for all, at the moment at which another thread begins to capture.
fn keep_lines_enabled() {
    static DONE: Once = Once::new();
    // A test may have set a subscriber of its own.
    DONE.call_once(|| {
        drop(tracing::subscriber::set_global_default(
            tracing_subscriber::registry(),
        ))
    });
}

/// Runs `work` and returns what this thread logged during it.
pub fn captured(work: impl FnOnce()) -> String {
    keep_lines_enabled();
    let lines = Lines::default();
    let sink = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || sink.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    lines.text()
}
