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
use sluicegate_config::document::{did_you_mean, read_text};
use sluicegate_config::problem::Problems;
use sluicegate_config::snapshot::Snapshot;

use super::folder::{Folder, spec_files};
use super::gate_edit::{RefusedText, compare_and_write, with_gate};
use super::{
    GateError, GateWrite, GateWriter, SnapshotError, SourceError, SpecSource, Update, UpdateSink,
    WatchHandle,
};

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
            .map_err(|reason| Problems::of_file(None, reason))?;
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
            .map_err(|error| SourceError {
                what,
                reason: format!("cannot start a thread: {error}"),
            })?;
        Ok(Box::new(FileWatch {
            commands: Mutex::new(commands),
            thread: Some(thread),
        }))
    }

    fn gates(&self) -> Arc<dyn GateWriter> {
        Arc::new(FileGates {
            folder: self.folder.path().to_path_buf(),
            writing: Mutex::new(()),
        })
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
            Err(reason) => {
                // A re-created folder is a new inode, for which the old watch receives no events.
                self.watcher = None;
                if self.reachable {
                    self.reachable = false;
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

/// Writes gates to the files of a folder.
struct FileGates {
    folder: PathBuf,
    /// Serialises writers in this process; writers in other processes are detected by comparing the text.
    writing: Mutex<()>,
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

impl FileGates {
    /// The files whose spec has this name, valid or not, with their texts.
    fn find(&self, handler: &str) -> Result<Vec<(PathBuf, String)>, GateError> {
        let unlisted = |reason| GateError::NotWritable {
            origin: self.folder.display().to_string(),
            reason,
        };
        let mut found = Vec::new();
        let mut names = Vec::new();
        for file in spec_files(&self.folder).map_err(unlisted)? {
            let Ok(text) = read_text(&file) else { continue };
            let Some(name) = RefusedText::read(&text).name else {
                continue;
            };
            if name == handler {
                found.push((file, text));
            } else {
                names.push(name);
            }
        }
        if found.is_empty() {
            return Err(GateError::UnknownHandler {
                name: handler.to_owned(),
                hint: did_you_mean(handler, names.iter().map(String::as_str)),
            });
        }
        Ok(found)
    }
}

fn listed(files: &[(PathBuf, String)]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|(file, _)| file.display().to_string())
        .collect();
    names.join(" and ")
}

impl GateWriter for FileGates {
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError> {
        let _writing = self
            .writing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let files = self.find(handler)?;
        if open && files.len() > 1 {
            return Err(GateError::NotWritable {
                origin: listed(&files),
                reason: format!("both declare `{handler}`; keep one"),
            });
        }
        // Write all files that declare it: whichever file remains must not open the gate again.
        let mut done = Vec::new();
        let mut changed = false;
        let mut failed = None;
        for (file, text) in files {
            match set_gate_in(&file, &text, open) {
                Ok(written) => {
                    changed |= written;
                    done.push((file, text));
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if done.is_empty() => Err(error),
            _ => Ok(GateWrite {
                origin: listed(&done),
                changed,
                revision: None,
            }),
        }
    }
}

/// Returns whether the file changed.
fn set_gate_in(file: &Path, text: &str, open: bool) -> Result<bool, GateError> {
    let origin = file.display().to_string();
    let refused = |reason| GateError::NotWritable {
        origin: origin.clone(),
        reason,
    };
    let Some(edited) = with_gate(text, open).map_err(refused)? else {
        return Ok(false);
    };
    match compare_and_write(file, text, &edited) {
        Ok(true) => Ok(true),
        Ok(false) => Err(GateError::Conflict { origin }),
        Err(error) => Err(refused(error.to_string())),
    }
}
