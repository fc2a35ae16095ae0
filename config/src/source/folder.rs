//! A folder of specs at one moment, and what it becomes beside the last good one.
//!
//! ```text
//!  list + read ─► each file: spec or problems ─► at odds with other files? ─┬► no: it is in effect
//!                      └────────────────────────────────────────────────────┴► refused: the last good version of that
//!                                                                                 handler stays, with its gate shut if
//!                                                                                 the refused text says so
//! ```
//!
//! A mistake concerns the handlers that it names, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dead_letters::{circle_problem, closing};
use super::gate_edit::RefusedText;
use super::pools::{DeclaredPool, pool_conflicts, problem};
use crate::document::read_text;
use crate::environment::Environment;
use crate::problem::{Problem, Problems};
use crate::snapshot::{Rejection, RuntimeSettings, Snapshot};
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
    /// What a refused text tells all the same.
    refused: RefusedText,
}

/// What is in effect of a handler.
#[derive(Clone)]
struct InEffect {
    /// Where it came from, or what is refused in its place.
    file: PathBuf,
    /// The last good version.
    good: Arc<HandlerSpec>,
    /// The same, or with a gate that a refused text shuts.
    spec: Arc<HandlerSpec>,
}

impl InEffect {
    /// It stays, while what `file` says of it is refused.
    fn kept(&self, file: &Path, shut: bool) -> Self {
        let enabled = self.good.enabled && !shut;
        let spec = match self.spec.enabled == enabled {
            true => Arc::clone(&self.spec),
            false => Arc::new(HandlerSpec {
                enabled,
                ..HandlerSpec::clone(&self.good)
            }),
        };
        Self {
            file: file.to_path_buf(),
            good: Arc::clone(&self.good),
            spec,
        }
    }
}

/// A watched folder: what was read last, and what is in effect.
pub(crate) struct Folder {
    path: PathBuf,
    environment: Environment,
    readings: BTreeMap<PathBuf, Reading>,
    /// What is in effect, by handler.
    in_effect: BTreeMap<String, InEffect>,
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
            switches: RuntimeSettings::default(),
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
                        refused: RefusedText::default(),
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
                _ => {
                    let read = read_located(&text, Some(&file), &self.environment);
                    Reading {
                        refused: match &read {
                            Ok(_) => RefusedText::default(),
                            Err(_) => RefusedText::read(&text),
                        },
                        result: read.map(Arc::new),
                        text,
                    }
                }
            };
            readings.insert(file, reading);
        }
        self.readings = readings;
        Ok(self
            .in_effect
            .values()
            .any(|one| !self.readings.contains_key(&one.file)))
    }

    /// The specs that are in effect after this scan, and what is not.
    fn settle(&mut self) -> (BTreeMap<String, Arc<HandlerSpec>>, Vec<Rejection>) {
        let mut rejections = Vec::new();
        let mut next = self.accept(&self.odd(), &mut rejections);
        self.keep_of_bad_files(&mut next, &mut rejections);
        rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.in_effect = next;
        let handlers = self.in_effect.iter();
        let handlers = handlers.map(|(name, one)| (name.clone(), Arc::clone(&one.spec)));
        (handlers.collect(), rejections)
    }

    /// Good files: what they say is in effect, unless it is at odds with other files.
    fn accept(
        &self,
        odd: &BTreeMap<String, Vec<Problem>>,
        rejections: &mut Vec<Rejection>,
    ) -> BTreeMap<String, InEffect> {
        let mut next: BTreeMap<String, InEffect> = BTreeMap::new();
        let mut shut: BTreeMap<&str, bool> = BTreeMap::new();
        for (file, located) in self.good() {
            let name = &located.spec.name;
            let before = self.in_effect.get(name);
            if odd.contains_key(name) {
                let shut = shut.entry(name).or_default();
                *shut |= !located.spec.enabled;
                if let Some(before) = before {
                    // The file that it came from, if that is still there.
                    let known = next.get(name).map_or(&before.file, |one| &one.file);
                    let from = if self.readings.contains_key(known) {
                        known
                    } else {
                        file
                    };
                    let kept = before.kept(from, *shut);
                    next.insert(name.clone(), kept);
                }
                continue;
            }
            let same = before.filter(|before| *before.good == located.spec);
            let good = same.map_or_else(
                || Arc::new(located.spec.clone()),
                |before| Arc::clone(&before.good),
            );
            let one = InEffect {
                file: file.to_path_buf(),
                spec: Arc::clone(&good),
                good,
            };
            next.insert(name.clone(), one);
        }
        for (name, problems) in odd {
            for problem in problems {
                let file = problem.file.as_deref().unwrap_or(&self.path);
                let origin = file.display().to_string();
                let runs_on = next.contains_key(name);
                let problems = Problems::from(problem.clone());
                rejections.push(Rejection::of_one(origin, Some(name), runs_on, problems));
            }
        }
        next
    }

    /// Bad files: what came from them or has the name that they give runs on.
    fn keep_of_bad_files(
        &self,
        next: &mut BTreeMap<String, InEffect>,
        rejections: &mut Vec<Rejection>,
    ) {
        let declared: BTreeSet<&str> = self.good().map(|(_, good)| &*good.spec.name).collect();
        let mut by_file: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        for (name, one) in &self.in_effect {
            by_file.entry(&one.file).or_default().push(name);
        }
        for (file, reading) in &self.readings {
            let Err(problems) = &reading.result else {
                continue;
            };
            let RefusedText { name: named, shuts } = &reading.refused;
            let named = named.as_deref();
            let from_file = by_file.get(file.as_path()).into_iter().flatten().copied();
            let concerned: BTreeSet<&str> = from_file.chain(named).collect();
            let mut kept = Vec::new();
            for name in concerned.difference(&declared) {
                if let Some(before) = self.in_effect.get(*name) {
                    // Another bad file may have its name too.
                    let shut = next.get(*name).is_some_and(|one| !one.spec.enabled);
                    next.insert((*name).to_owned(), before.kept(file, *shuts || shut));
                    kept.push((*name).to_owned());
                }
            }
            let runs_on = !kept.is_empty();
            if let Some(name) = named.filter(|name| !runs_on && !declared.contains(name)) {
                kept.push(name.to_owned());
            }
            let origin = file.display().to_string();
            rejections.push(Rejection {
                handlers: kept,
                ..Rejection::of_one(origin, None, runs_on, problems.clone())
            });
        }
    }

    /// Handlers whose good files are at odds with each other or with those of other handlers, and why: names given twice,
    /// pools with different bounds, dead letters that would go round.
    fn odd(&self) -> BTreeMap<String, Vec<Problem>> {
        let names = self.by_name();
        let mut odd = BTreeMap::new();
        for (name, declared) in &names {
            if declared.len() > 1 {
                odd.insert((*name).to_owned(), given_twice(declared));
            }
        }
        let single = || {
            let single = names.values().filter(|declared| declared.len() == 1);
            single.flatten().copied()
        };
        for (one, at_odds) in pool_conflicts(single()) {
            odd.insert(one.located.spec.name.clone(), vec![at_odds]);
        }
        let before: BTreeMap<String, Arc<HandlerSpec>> = self
            .in_effect
            .iter()
            .map(|(name, one)| (name.clone(), Arc::clone(&one.spec)))
            .collect();
        let mut wanted = before.clone();
        wanted.retain(|name, _| odd.contains_key(name));
        for one in single() {
            let name = &one.located.spec.name;
            if !odd.contains_key(name) {
                wanted.insert(name.clone(), Arc::new(one.located.spec.clone()));
            }
        }
        for (name, circle) in closing(wanted, &before) {
            if let Some(declared) = names.get(name.as_str()).and_then(|all| all.first()) {
                let problem = circle_problem(&circle, declared.file, *declared);
                odd.entry(name).or_insert_with(|| vec![problem]);
            }
        }
        odd
    }

    fn by_name(&self) -> BTreeMap<&str, Vec<DeclaredPool<'_>>> {
        let mut names: BTreeMap<&str, Vec<DeclaredPool<'_>>> = BTreeMap::new();
        for (file, located) in self.good() {
            let name = &located.spec.name;
            names
                .entry(name)
                .or_default()
                .push(DeclaredPool { file, located });
        }
        names
    }

    fn good(&self) -> impl Iterator<Item = (&Path, &LocatedSpec)> {
        self.readings
            .iter()
            .filter_map(|(file, reading)| Some((file.as_path(), reading.result.as_deref().ok()?)))
    }

    /// What the files say against each other, all of it: names given twice, pools with different bounds, dead letters that
    /// go round.
    fn conflicts(&self) -> Problems {
        let names = self.by_name();
        let all = || names.values().flatten().copied();
        let mut problems = Problems::new();
        for declared in names.values().filter(|declared| declared.len() > 1) {
            given_twice(declared)
                .into_iter()
                .for_each(|one| problems.push(one));
        }
        for (_, at_odds) in pool_conflicts(all()) {
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

/// A problem for each of the files that declare one handler.
fn given_twice(declared: &[DeclaredPool<'_>]) -> Vec<Problem> {
    let of = |(index, one): (usize, &DeclaredPool<'_>)| {
        let other = &declared[usize::from(index == 0)];
        let message = format!(
            "`{}` is also the name in {}; handler names are unique",
            one.located.spec.name,
            other.at()
        );
        problem(one.file, &one.located.name_place, "name", message)
    };
    declared.iter().enumerate().map(of).collect()
}

impl Reading {
    /// Whether there was a text at all, good or bad.
    fn is_of_text(&self) -> bool {
        !self.text.is_empty() || self.result.is_ok()
    }
}
