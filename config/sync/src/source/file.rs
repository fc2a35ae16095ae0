//! Spec source for a folder: watched, and re-read periodically, so that missed events are picked up.
//!
//! ```text
//!  file events ──┐ debounce
//!  rescan timer ─┼──────────► Folder::scan ─► changed? ─► Update to the sink
//!  reread() ─────┘
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sluicegate_config::Environment;
use sluicegate_config::document::read_text;
use sluicegate_config::problem::Problems;
use sluicegate_config::snapshot::Snapshot;

use super::folder::{Folder, spec_files};
use super::gate_edit::RefusedText;
use super::{GateWriter, SnapshotError, SourceError, SpecSource, Update, UpdateSink, WatchHandle};
use crate::fleet::SpecBackend;

/// A scan starts after this long without events, since writers need more than one step.
const SETTLE_WINDOW: Duration = Duration::from_millis(50);
/// Maximum delay of a scan while events keep arriving.
const MAX_SETTLE_DELAY: Duration = Duration::from_millis(500);

/// A folder of `*.yaml`, `*.yml` and `*.json` files, one spec per file.
///
/// An invalid file keeps the last good version of its handler active, and so do conflicting files (a duplicate name, a pool with
/// two limits) for the handlers that they name; of a rejected file only `enabled: false` is applied. Both are reported as
/// rejections, which end when the files are corrected.
pub struct FileSource {
    folder: Folder,
    rescan: Duration,
    /// The revision last returned by [`SpecSource::snapshot`].
    given: u64,
}

impl FileSource {
    /// A source for `folder`, re-read at least every `rescan`; references are resolved in `environment`.
    pub fn new(folder: impl Into<PathBuf>, rescan: Duration, environment: Environment) -> Self {
        Self {
            folder: Folder::new(folder.into(), environment),
            rescan,
            given: 0,
        }
    }
}

impl SpecSource for FileSource {
    fn describe(&self) -> String {
        format!("folder {}", self.folder.path().display())
    }

    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError> {
        let scanned = self
            .folder
            .scan()
            .map_err(|error| Problems::of_file(None, error))?;
        let problems = self.folder.problems();
        if !problems.is_empty() {
            return Err(problems.into());
        }
        let snapshot = scanned.map_or_else(|| self.folder.last(), |new| Snapshot::clone(&new));
        self.given = snapshot.revision;
        Ok(snapshot)
    }

    fn watch(self: Box<Self>, sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError> {
        let what = self.describe();
        let (commands, inbox) = channel();
        let watch = Watch {
            watcher: None,
            events: commands.clone(),
            folder: self.folder,
            rescan: self.rescan,
            given: self.given,
            reachable: true,
            sink,
        };
        let thread = std::thread::Builder::new()
            .name("spec-folder".to_owned())
            .spawn(move || watch.run(&inbox))
            .map_err(|error| SourceError::Thread { what, error })?;
        Ok(Box::new(FileWatch {
            commands: Mutex::new(commands),
            thread: Some(thread),
        }))
    }

    fn gates(&self) -> Arc<dyn GateWriter> {
        Arc::new(SpecBackend::in_folder(self.folder.path()))
    }
}

enum Command {
    /// The folder changed, or a re-read was requested.
    Reread,
    Stop,
}

struct FileWatch {
    commands: Mutex<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl FileWatch {
    fn send(&self, command: Command) {
        let commands = self
            .commands
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // The thread may have ended; then there is nothing to do.
        let _ = commands.send(command);
    }
}

impl WatchHandle for FileWatch {
    fn reread(&self) {
        self.send(Command::Reread);
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the sink was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Watch {
    watcher: Option<RecommendedWatcher>,
    events: Sender<Command>,
    folder: Folder,
    rescan: Duration,
    given: u64,
    reachable: bool,
    sink: UpdateSink,
}

impl Watch {
    fn run(mut self, inbox: &Receiver<Command>) {
        let first = self.folder.last();
        if first.revision > self.given {
            (self.sink)(Update::Snapshot(Arc::new(first)));
        }
        loop {
            if self.watcher.is_none() {
                self.watcher = self.start_watcher();
            }
            self.scan();
            match inbox.recv_timeout(self.rescan) {
                Ok(Command::Reread) => {
                    if !settle(inbox) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// `None` if the folder does not exist or inotify handles are exhausted; then only re-reads find changes.
    fn start_watcher(&self) -> Option<RecommendedWatcher> {
        let events = self.events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                // The thread can end before the watcher does.
                let _ = events.send(Command::Reread);
            }
        })
        .ok()?;
        watcher
            .watch(self.folder.path(), RecursiveMode::NonRecursive)
            .ok()?;
        Some(watcher)
    }

    fn scan(&mut self) {
        match self.folder.scan() {
            Ok(changed) => {
                if !self.reachable {
                    self.reachable = true;
                    (self.sink)(Update::Reachable);
                }
                if let Some(snapshot) = changed {
                    (self.sink)(Update::Snapshot(snapshot));
                }
            }
            Err(error) => {
                // A re-created folder is a new inode, for which the old watch receives no events.
                self.watcher = None;
                if self.reachable {
                    self.reachable = false;
                    let reason = error.to_string();
                    (self.sink)(Update::Unreachable { reason });
                }
            }
        }
    }
}

/// Whether an event may be a change; reading a file is an event, too.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Waits for the end of a burst; `false` when the watch must stop.
fn settle(inbox: &Receiver<Command>) -> bool {
    let longest = Instant::now() + MAX_SETTLE_DELAY;
    while Instant::now() < longest {
        match inbox.recv_timeout(SETTLE_WINDOW) {
            Ok(Command::Reread) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// The files of a folder by spec name; unreadable files are left out.
#[must_use]
pub fn spec_files_by_name(folder: &Path) -> BTreeMap<String, PathBuf> {
    let files = spec_files(folder).unwrap_or_default().into_iter();
    let named = files.filter_map(|file| {
        let name = RefusedText::read(&read_text(&file).ok()?).name?;
        Some((name, file))
    });
    named.collect()
}
