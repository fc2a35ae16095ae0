//! Tells when a folder may have changed: by the system's notices, and now and then for those that never come.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};

/// A copy of a file makes many notices; they are over when it has been quiet for this long.
const QUIET: Duration = Duration::from_millis(400);
/// However busy the folder is, it is looked at after this long.
const LONGEST_BURST: Duration = Duration::from_secs(5);
/// How often a folder whose notices cannot be had is looked at.
const WITHOUT_NOTICES: Duration = Duration::from_secs(2);

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
    /// Calls `on_change` on a thread of its own after each burst of changes in `folder`, and every `at_least` anyway
    /// (network file systems give no notices). A folder that does not exist yet is looked at every two seconds.
    ///
    /// # Errors
    /// The system's, when it has no thread to give.
    pub fn start(
        folder: &Path,
        at_least: Duration,
        mut on_change: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (notices, inbox) = channel();
        let theirs = notices.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reads_only = event.is_ok_and(|event| event.kind.is_access());
            if !reads_only {
                // The watch is being dropped when nobody listens.
                let _ = theirs.send(Notice::Changed);
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
                tracing::warn!(folder = %shown, %error, "no notices of changes; the folder is looked at every {WITHOUT_NOTICES:?}");
                WITHOUT_NOTICES.min(at_least)
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
                            if !await_quiet(&inbox, QUIET, LONGEST_BURST) {
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

/// Waits for the end of a burst, but not for ever; `false` when the watch is to stop.
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

/// Watches the packages in the folder as well; watching one again changes nothing.
fn watch_packages(watcher: &mut impl Watcher, folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for package in entries.map(|entry| entry.path()) {
        if package.join("plugin.yaml").is_file() {
            // Without notices of it there is the look now and then.
            let _ = watcher.watch(&package, RecursiveMode::NonRecursive);
        }
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        // A thread that has ended needs no telling.
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
    fn a_folder_that_changes_all_the_time_is_looked_at_all_the_same() {
        let (notices, inbox) = channel();
        let (quiet, longest) = (Duration::from_millis(200), Duration::from_millis(600));
        let writer = std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(30);
            while Instant::now() < end && notices.send(Notice::Changed).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let begun = Instant::now();
        assert!(await_quiet(&inbox, quiet, longest));
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            begun.elapsed()
        );
        drop(inbox);
        writer.join().expect("it ends with its receiver");
    }
}
