//! A folder of specs at one moment, and what it becomes beside the last good one.
//!
//! ```text
//!  list + read ─► each file: spec or problems ─► conflicts between files? ─► last good snapshot stays
//!                                               └► none: good specs, and for bad files their last good version
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dead_letters::circle_problem;
use super::pools::{Declared, at_odds, problem};
use crate::document::read_text;
use crate::environment::Environment;
use crate::problem::Problems;
use crate::snapshot::{Rejection, RejectionEffect, Snapshot, Switches};
use crate::spec::{HandlerSpec, LocatedSpec, circles, read_located};

/// Most spec files that a folder may hold.
const MAX_FILES: usize = 20_000;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The spec files of a folder, sorted. Hidden files are left out: editors and writers put their work there.
///
/// # Errors
/// A sentence when the folder cannot be listed.
pub(crate) fn spec_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let refused = |error: std::io::Error| {
        format!(
            "the folder {} of handler specs cannot be read: {error}; make it, or set `handlers.file.folder`",
            folder.display()
        )
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|extension| {
            EXTENSIONS
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if known && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    if files.len() > MAX_FILES {
        return Err(format!(
            "the folder {} holds {} specs; at most {MAX_FILES} are read",
            folder.display(),
            files.len()
        ));
    }
    files.sort();
    Ok(files)
}

/// One file that was read.
struct Reading {
    text: String,
    /// Shared between scans as long as the text stays the same.
    result: Result<Arc<LocatedSpec>, Problems>,
}

/// A watched folder: what was read last, and what is in effect.
pub(crate) struct Folder {
    path: PathBuf,
    environment: Environment,
    readings: BTreeMap<PathBuf, Reading>,
    /// The specs in effect, by the file that they came from.
    in_effect: BTreeMap<PathBuf, Arc<HandlerSpec>>,
    last: Arc<Snapshot>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, environment: Environment) -> Self {
        Self {
            path,
            environment,
            readings: BTreeMap::new(),
            in_effect: BTreeMap::new(),
            last: Arc::new(Snapshot::default()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in effect.
    pub(crate) fn last(&self) -> Snapshot {
        Snapshot::clone(&self.last)
    }

    /// Reads the folder. `Some` is what is in effect from now on, when that or the rejections changed.
    ///
    /// # Errors
    /// A sentence when the folder cannot be listed; what is in effect stays.
    pub(crate) fn scan(&mut self) -> Result<Option<Arc<Snapshot>>, String> {
        let gone = self.read_files()?;
        if gone {
            // An editor that replaces a file may have taken it away for a moment: look twice before a handler goes.
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.read_files()?;
        }
        let (handlers, rejections) = self.settle();
        if self.last.revision > 0
            && handlers == self.last.handlers
            && rejections == self.last.rejections
        {
            return Ok(None);
        }
        self.last = Arc::new(Snapshot {
            revision: self.last.revision + 1,
            handlers,
            rejections,
            switches: Switches::default(),
        });
        Ok(Some(Arc::clone(&self.last)))
    }

    /// Everything that is wrong in the folder as it stands, for a start that accepts nothing bad.
    pub(crate) fn problems(&self) -> Problems {
        let mut problems = self.conflicts();
        for reading in self.readings.values() {
            if let Err(found) = &reading.result {
                problems.merge(found.clone());
            }
        }
        problems
    }

    /// Reads every file whose text changed; tells whether a file with a running handler is gone.
    fn read_files(&mut self) -> Result<bool, String> {
        let files = spec_files(&self.path)?;
        let mut readings = BTreeMap::new();
        for file in files {
            let text = match read_text(&file) {
                Ok(text) => text,
                Err(_) if !file.exists() => continue,
                Err(problems) => {
                    let reading = Reading {
                        text: String::new(),
                        result: Err(problems),
                    };
                    readings.insert(file, reading);
                    continue;
                }
            };
            let reading = match self.readings.remove(&file) {
                // What a reference points to may have changed, so a text with one is read again.
                Some(same) if same.text == text && !text.contains("${") && same.is_of_text() => {
                    same
                }
                _ => Reading {
                    result: read_located(&text, Some(&file), &self.environment).map(Arc::new),
                    text,
                },
            };
            readings.insert(file, reading);
        }
        self.readings = readings;
        Ok(self
            .in_effect
            .keys()
            .any(|file| !self.readings.contains_key(file)))
    }

    /// The specs that are in effect after this scan, and what is not.
    fn settle(&mut self) -> (BTreeMap<String, Arc<HandlerSpec>>, Vec<Rejection>) {
        let conflicts = self.conflicts();
        let conflicted = !conflicts.is_empty();
        let mut rejections = Vec::new();
        if conflicted {
            rejections.push(Rejection {
                origin: self.path.display().to_string(),
                handlers: self.last.handlers.keys().cloned().collect(),
                effect: RejectionEffect::LastGoodSnapshot,
                problems: conflicts,
            });
        }
        let mut next = BTreeMap::new();
        for (file, reading) in &self.readings {
            let before = self.in_effect.get(file);
            match &reading.result {
                Ok(located) => {
                    let same = before.filter(|spec| ***spec == located.spec);
                    let spec = same.map_or_else(|| Arc::new(located.spec.clone()), Arc::clone);
                    next.insert(file.clone(), spec);
                }
                Err(problems) => {
                    let kept = before.filter(|spec| !self.is_declared(&spec.name));
                    rejections.push(Rejection::of_one(
                        file.display().to_string(),
                        kept.map(|spec| spec.name.as_str()),
                        kept.is_some(),
                        problems.clone(),
                    ));
                    if let Some(kept) = kept {
                        next.insert(file.clone(), Arc::clone(kept));
                    }
                }
            }
        }
        rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
        if !conflicted {
            self.in_effect = next;
        }
        let handlers = self.in_effect.values();
        let handlers = handlers.map(|spec| (spec.name.clone(), Arc::clone(spec)));
        (handlers.collect(), rejections)
    }

    /// Whether a good file declares the handler.
    fn is_declared(&self, name: &str) -> bool {
        self.good().any(|(_, located)| located.spec.name == name)
    }

    fn good(&self) -> impl Iterator<Item = (&Path, &LocatedSpec)> {
        self.readings
            .iter()
            .filter_map(|(file, reading)| Some((file.as_path(), reading.result.as_deref().ok()?)))
    }

    /// What the files say against each other: names given twice, pools with different bounds, dead letters that go round.
    fn conflicts(&self) -> Problems {
        let mut names: BTreeMap<&str, Vec<Declared<'_>>> = BTreeMap::new();
        let all = || {
            self.good()
                .map(|(file, located)| Declared { file, located })
        };
        for declared in all() {
            let name = &declared.located.spec.name;
            names.entry(name).or_default().push(declared);
        }
        let mut problems = Problems::new();
        for declared in names.values().filter(|declared| declared.len() > 1) {
            for (index, one) in declared.iter().enumerate() {
                let other = &declared[usize::from(index == 0)];
                let message = format!(
                    "`{}` is also the name in {}; handler names are unique",
                    one.located.spec.name,
                    other.at()
                );
                problems.push(problem(one.file, &one.located.name_place, "name", message));
            }
        }
        for (_, at_odds) in at_odds(all()) {
            problems.push(at_odds);
        }
        for circle in circles(all().map(|declared| &declared.located.spec)) {
            let first = circle.handlers().find_map(|name| names.get(name)?.first());
            if let Some(declared) = first {
                problems.push(circle_problem(&circle, declared.file, *declared));
            }
        }
        problems
    }
}

impl Reading {
    /// Whether there was a text at all, good or bad.
    fn is_of_text(&self) -> bool {
        !self.text.is_empty() || self.result.is_ok()
    }
}
