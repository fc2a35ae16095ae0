//! Watches a folder for changes: by file system events, plus a periodic poll for events that never arrive.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// A burst of events, such as one file copy, ends after this long without another event.
const SETTLE_WINDOW: Duration = Duration::from_millis(400);
/// Maximum duration of a burst, after which the folder is scanned even if events continue.
const MAX_BURST_DURATION: Duration = Duration::from_secs(5);
/// Poll interval of a folder that cannot be watched.
const FALLBACK_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Interval at which the folder is compared with the one that is watched: a file system reports no event when another folder takes its place.
const SWAP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Calls `on_change` on its own thread after each burst of changes in `folder`, within seconds once another folder is in its place (by
    /// renaming, by another target of a link, by a mount), and at least every `at_least` (network file systems send no events). A
    /// folder that cannot be watched, for example because it does not exist yet, is polled every two seconds.
    ///
    /// # Errors
    /// The operating system's error if the thread cannot be started.
    pub fn start(
        folder: &Path,
        at_least: Duration,
        mut on_change: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (notices, inbox) = channel();
        let mut watched = Watched::new(folder, notices.clone());
        let thread = std::thread::Builder::new()
            .name("plugins/watch".to_owned())
            .spawn(move || {
                while watched.wait(&inbox, at_least) {
                    on_change();
                }
            })?;
        Ok(Self {
            notices,
            thread: Some(thread),
        })
    }
}

/// The folder that is watched.
struct Watched {
    folder: PathBuf,
    notices: Sender<Notice>,
    /// Which folder it is; `None` if there is none.
    identity: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
    /// It cannot be watched, and that was logged.
    told: bool,
}

impl Watched {
    fn new(folder: &Path, notices: Sender<Notice>) -> Self {
        let mut watched = Self {
            folder: folder.to_owned(),
            notices,
            identity: None,
            watcher: None,
            told: false,
        };
        watched.arm();
        watched
    }

    /// Watches the folder that is there now.
    fn arm(&mut self) {
        // Before it is watched: what takes its place afterwards is noticed by the next check.
        self.identity = identity(&self.folder);
        let events = self.notices.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reads_only = event.is_ok_and(|event| event.kind.is_access());
            if !reads_only {
                // Fails only while the watch is being dropped.
                let _ = events.send(Notice::Changed);
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher
            && !self.told
        {
            let shown = self.folder.display();
            tracing::warn!(folder = %shown, %error, "cannot watch the folder for changes; polling it every {FALLBACK_POLL_INTERVAL:?}");
        }
        self.told = watcher.is_err();
        self.watcher = watcher.ok();
    }

    /// Waits until the folder has to be read: after changes, or after `at_least`. `false` if the watch must stop.
    fn wait(&mut self, inbox: &Receiver<Notice>, at_least: Duration) -> bool {
        if let Some(watcher) = &mut self.watcher {
            watch_packages(watcher, &self.folder);
        }
        let every = match self.watcher {
            Some(_) => at_least,
            None => FALLBACK_POLL_INTERVAL.min(at_least),
        };
        let end = Instant::now() + every;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let notice = inbox.recv_timeout(left.min(SWAP_CHECK_INTERVAL));
            match notice {
                Ok(Notice::Changed) if !await_quiet(inbox, SETTLE_WINDOW, MAX_BURST_DURATION) => {
                    return false;
                }
                Ok(Notice::Changed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            }
            let swapped = identity(&self.folder) != self.identity;
            if swapped {
                self.arm();
            }
            if swapped || notice.is_ok() || Instant::now() >= end {
                return true;
            }
        }
    }
}

/// Device and number of the folder, also behind a link.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino()))
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
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_folder_that_changes_continuously_is_still_scanned() {
        // Each change waits until the one before is received: there is always another one.
        let (notices, inbox) = sync_channel(0);
        let (quiet, longest) = (Duration::from_millis(200), Duration::from_millis(600));
        let writer = std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(30);
            while Instant::now() < end && notices.send(Notice::Changed).is_ok() {}
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
