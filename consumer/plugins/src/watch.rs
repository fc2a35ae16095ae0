//! Watches a folder for changes: by file system events, plus a periodic poll for events that never arrive.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};

/// A burst of events, such as one file copy, ends after this long without another event.
const SETTLE_WINDOW: Duration = Duration::from_millis(400);
/// Maximum duration of a burst, after which the folder is scanned even if events continue.
const MAX_BURST_DURATION: Duration = Duration::from_secs(5);
/// Poll interval of a folder that cannot be watched.
const FALLBACK_POLL_INTERVAL: Duration = Duration::from_secs(2);

enum Notice {
    Changed,
    Stop,
}

/// Watches a folder until it is dropped.
pub struct FolderWatch {
    notices: Sender<Notice>,
    thread: Option<JoinHandle<()>>,
}

impl FolderWatch {
    /// Calls `on_change` on its own thread after each burst of changes in `folder`, and at least every `at_least` (network file
    /// systems send no events). A folder that cannot be watched, for example because it does not exist yet, is polled every
    /// two seconds.
    ///
    /// # Errors
    /// The operating system's error if the thread cannot be started.
    pub fn start(
        folder: &Path,
        at_least: Duration,
        mut on_change: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (notices, inbox) = channel();
        let event_sender = notices.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reads_only = event.is_ok_and(|event| event.kind.is_access());
            if !reads_only {
                // Fails only while the watch is being dropped.
                let _ = event_sender.send(Notice::Changed);
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let folder = folder.to_owned();
        let every = match &watcher {
            Ok(_) => at_least,
            Err(error) => {
                let shown = folder.display();
                tracing::warn!(folder = %shown, %error, "cannot watch the folder for changes; polling it every {FALLBACK_POLL_INTERVAL:?}");
                FALLBACK_POLL_INTERVAL.min(at_least)
            }
        };
        let thread = std::thread::Builder::new()
            .name("plugins/watch".to_owned())
            .spawn(move || {
                let mut watcher = watcher;
                loop {
                    if let Ok(watcher) = &mut watcher {
                        watch_packages(watcher, &folder);
                    }
                    match inbox.recv_timeout(every) {
                        Ok(Notice::Changed) => {
                            if !await_quiet(&inbox, SETTLE_WINDOW, MAX_BURST_DURATION) {
                                return;
                            }
                        }
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    }
                    on_change();
                }
            })?;
        Ok(Self {
            notices,
            thread: Some(thread),
        })
    }
}

/// Waits for the end of a burst, for `longest` at most; `false` if the watch must stop.
fn await_quiet(inbox: &Receiver<Notice>, quiet: Duration, longest: Duration) -> bool {
    let end = Instant::now() + longest;
    while Instant::now() < end {
        match inbox.recv_timeout(quiet) {
            Ok(Notice::Changed) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// Also watches the packages in the folder; watching one again has no effect.
fn watch_packages(watcher: &mut impl Watcher, folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for package in entries.map(|entry| entry.path()) {
        if package.join("plugin.yaml").is_file() {
            // A package that cannot be watched is covered by the periodic poll.
            let _ = watcher.watch(&package, RecursiveMode::NonRecursive);
        }
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        // Fails only if the thread has already ended.
        let _ = self.notices.send(Notice::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_changes_continuously_is_still_scanned() {
        let (notices, inbox) = channel();
        let (quiet, longest) = (Duration::from_millis(200), Duration::from_millis(600));
        let writer = std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(30);
            while Instant::now() < end && notices.send(Notice::Changed).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let started = Instant::now();
        assert!(await_quiet(&inbox, quiet, longest));
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            started.elapsed()
        );
        drop(inbox);
        writer.join().expect("it ends with its receiver");
    }
}
