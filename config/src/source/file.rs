//! Specs from a folder: watched, and re-read from time to time, so that a missed event is repaired.
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

use super::folder::{Folder, spec_files};
use super::gate_edit::{RefusedText, compare_and_write, with_gate};
use super::{
    GateError, GateWrite, GateWriter, SnapshotError, SourceError, SpecSource, Update, UpdateSink,
    WatchHandle,
};
use crate::document::{did_you_mean, read_text};
use crate::environment::Environment;
use crate::problem::Problems;
use crate::snapshot::Snapshot;

/// A scan waits until events have been quiet this long: writers need more than one step.
const QUIET: Duration = Duration::from_millis(50);
/// However busy the folder is, a scan comes after this long.
const LONGEST_BURST: Duration = Duration::from_millis(500);

/// A folder of `*.yaml`, `*.yml` and `*.json`, one spec a file.
///
/// A file that turns bad leaves the last good version of its handler running, and so do files that contradict each other (one
/// name twice, one pool with two bounds) with the handlers that they name; only `enabled: false` of a refused file acts. Both
/// are reported as rejections and clear when mended.
pub struct FileSource {
    folder: Folder,
    rescan: Duration,
    /// The revision that [`SpecSource::snapshot`] gave last.
    given: u64,
}

impl FileSource {
    /// Specs of `folder`, re-read at least every `rescan`; references in them are looked up in `environment`.
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
                reason: format!("no thread can be started: {error}"),
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
    /// Something in the folder changed, or somebody asks for a re-read.
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
        // A thread that is gone needs no command.
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
            // A sink that panicked has said so already.
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

    /// Without a watcher (no folder yet, or no inotify handles left) the re-reads alone find changes.
    fn start_watcher(&self) -> Option<RecommendedWatcher> {
        let events = self.events.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) {
                // The watch's thread ends before its watcher does.
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
                // A folder that is made anew is another one: its old watch hears nothing.
                self.watcher = None;
                if self.reachable {
                    self.reachable = false;
                    (self.sink)(Update::Unreachable { reason });
                }
            }
        }
    }
}

/// Reading a file is an event as well; only what may have changed one counts.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Waits for the end of a burst; `false` when the watch is to stop.
fn settle(inbox: &Receiver<Command>) -> bool {
    let longest = Instant::now() + LONGEST_BURST;
    while Instant::now() < longest {
        match inbox.recv_timeout(QUIET) {
            Ok(Command::Reread) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// Writes gates into the files of a folder.
struct FileGates {
    folder: PathBuf,
    /// One writer of this process at a time; others are told apart by comparing the text.
    writing: Mutex<()>,
}

/// The files of a folder by the names of the specs in them. What cannot be read has none.
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
    /// The files whose spec, good or bad, has this name, with their texts.
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
        // Each of several that declare it: the one that is kept must not open the gate again.
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

/// Whether the file had the other state before.
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
