//! Scans a folder of specs and merges it with the last good versions.
//!
//! ```text
//!  list + read ─► each file: spec or problems ─► conflict with other files? ─┬► no: active
//!                      └─────────────────────────────────────────────────────┴► rejected: the handler's last good
//!                                                                                  version stays active, with its gate
//!                                                                                  closed if the rejected text closes it
//! ```
//!
//! An error affects only the handlers that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluicegate_config::Environment;
use sluicegate_config::document::read_text;
use sluicegate_config::problem::{Problem, Problems};
use sluicegate_config::snapshot::{Rejection, RuntimeSettings, Snapshot};
use sluicegate_config::spec::{HandlerSpec, LocatedSpec, circles, read_located};

use super::dead_letters::{circle_problem, closing};
use super::gate_edit::RefusedText;
use super::pools::{DeclaredPool, pool_conflicts, problem};

/// Maximum number of spec files in a folder.
const MAX_FILES: usize = 20_000;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Why the spec files of a folder cannot be listed. Retryable: the folder may be created or emptied.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The file system does not list it.
    #[error(
        "the folder {} of handler specs cannot be read: {source}; create it, or set `handlers.file.folder`",
        folder.display()
    )]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// The file system's error.
        source: std::io::Error,
    },
    /// It has more files than are read.
    #[error("the folder {} holds {count} specs; at most {most} are read", folder.display(), most = MAX_FILES)]
    TooMany {
        /// The folder.
        folder: PathBuf,
        /// Number of spec files in it.
        count: usize,
    },
}

/// The spec files of a folder, sorted. Hidden files are ignored, since editors and writers use them for temporary files.
pub(crate) fn spec_files(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let refused = |source: std::io::Error| FolderError::Unreadable {
        folder: folder.to_path_buf(),
        source,
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
        return Err(FolderError::TooMany {
            folder: folder.to_path_buf(),
            count: files.len(),
        });
    }
    files.sort();
    Ok(files)
}

/// The problem of a link without its target.
const BROKEN_LINK: &str = "is a link to a file that does not exist; restore the file, or delete the link to delete \
                           the handler";

/// What is known about a listed file whose text cannot be read.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    /// Deleted since the folder was listed.
    Deleted,
    /// A link whose target does not exist.
    BrokenLink,
    /// It exists, or its state is unknown.
    Unreadable,
}

impl Unread {
    /// Decides by the metadata of the entry itself, which say whether it is a link, and by those of the file that it leads to.
    ///
    /// Only the answer that the file does not exist means a deletion. A folder without the permission to search it, a failing disk and
    /// a stale mount answer with other errors for files that are still there.
    fn by(is_link: Result<bool, ErrorKind>, followed: Result<(), ErrorKind>) -> Self {
        match (is_link, followed) {
            // A file that is not a link, and then not there, was deleted between the two answers.
            (Err(ErrorKind::NotFound), _) | (Ok(false), Err(ErrorKind::NotFound)) => Self::Deleted,
            (Ok(true), Err(ErrorKind::NotFound)) => Self::BrokenLink,
            _ => Self::Unreadable,
        }
    }

    fn of(file: &Path) -> Self {
        let entry = file.symlink_metadata().map(|entry| entry.is_symlink());
        let followed = file.metadata().map(drop);
        Self::by(
            entry.map_err(|error| error.kind()),
            followed.map_err(|error| error.kind()),
        )
    }
}

/// One parsed file.
struct Reading {
    text: String,
    /// Shared between scans while the text is unchanged.
    result: Result<Arc<LocatedSpec>, Problems>,
    /// Name and gate of a rejected text.
    refused: RefusedText,
}

/// The active version of a handler.
#[derive(Clone)]
struct InEffect {
    /// The file that it came from, or the rejected file that replaces it.
    file: PathBuf,
    /// Last good version.
    good: Arc<HandlerSpec>,
    /// `good`, or a copy with the gate closed by a rejected text.
    spec: Arc<HandlerSpec>,
}

impl InEffect {
    /// Stays active while the spec in `file` is rejected.
    fn kept(&self, file: &Path, closed: bool) -> Self {
        let enabled = self.good.enabled && !closed;
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

/// A watched folder: the last readings and the active specs.
pub(crate) struct Folder {
    path: PathBuf,
    environment: Environment,
    readings: BTreeMap<PathBuf, Reading>,
    /// Active versions by handler.
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

    /// The active snapshot.
    pub(crate) fn last(&self) -> Snapshot {
        Snapshot::clone(&self.last)
    }

    /// Reads the folder. Returns the new snapshot if the specs or the rejections changed.
    ///
    /// # Errors
    /// The folder cannot be listed; the active snapshot stays.
    pub(crate) fn scan(&mut self) -> Result<Option<Arc<Snapshot>>, FolderError> {
        let gone = self.read_files()?;
        if gone {
            // An editor that replaces a file may remove it for a moment: read again before a handler is removed.
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

    /// All problems in the folder, for a start, which accepts none.
    pub(crate) fn problems(&self) -> Problems {
        let mut problems = self.conflicts();
        for reading in self.readings.values() {
            if let Err(found) = &reading.result {
                problems.merge(found.clone());
            }
        }
        problems
    }

    /// Parses every file whose text changed. Returns whether a file of an active handler is gone.
    fn read_files(&mut self) -> Result<bool, FolderError> {
        let files = spec_files(&self.path)?;
        let mut readings = BTreeMap::new();
        for file in files {
            let text = match read_text(&file) {
                Ok(text) => text,
                Err(problems) => {
                    let problems = match Unread::of(&file) {
                        Unread::Deleted => continue,
                        // A link is still there when its target is not: the handler stays.
                        Unread::BrokenLink => Problems::of_file(Some(&file), BROKEN_LINK),
                        Unread::Unreadable => problems,
                    };
                    readings.insert(file, Reading::without_text(problems));
                    continue;
                }
            };
            let reading = match self.readings.remove(&file) {
                // The target of a reference may have changed, so a text with one is always parsed again.
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

    /// The active specs and the rejections after this scan.
    fn settle(&mut self) -> (BTreeMap<String, Arc<HandlerSpec>>, Vec<Rejection>) {
        let mut rejections = Vec::new();
        let mut next = self.accept(&self.conflicting(), &mut rejections);
        self.keep_of_bad_files(&mut next, &mut rejections);
        rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.in_effect = next;
        let handlers = self.in_effect.iter();
        let handlers = handlers.map(|(name, one)| (name.clone(), Arc::clone(&one.spec)));
        (handlers.collect(), rejections)
    }

    /// Good files: their specs become active, unless they conflict with other files.
    fn accept(
        &self,
        conflicting: &BTreeMap<String, Vec<Problem>>,
        rejections: &mut Vec<Rejection>,
    ) -> BTreeMap<String, InEffect> {
        let mut next: BTreeMap<String, InEffect> = BTreeMap::new();
        let mut closed: BTreeMap<&str, bool> = BTreeMap::new();
        for (file, located) in self.good() {
            let name = &located.spec.name;
            let before = self.in_effect.get(name);
            if conflicting.contains_key(name) {
                let closed = closed.entry(name).or_default();
                *closed |= !located.spec.enabled;
                if let Some(before) = before {
                    // The file that it came from, if it still exists.
                    let known = next.get(name).map_or(&before.file, |one| &one.file);
                    let from = if self.readings.contains_key(known) {
                        known
                    } else {
                        file
                    };
                    let kept = before.kept(from, *closed);
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
        for (name, problems) in conflicting {
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

    /// Bad files: handlers that came from them, or that they name, stay active.
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
            let RefusedText {
                name: named,
                closes_gate,
            } = &reading.refused;
            let named = named.as_deref();
            let from_file = by_file.get(file.as_path()).into_iter().flatten().copied();
            let concerned: BTreeSet<&str> = from_file.chain(named).collect();
            let mut kept = Vec::new();
            for name in concerned.difference(&declared) {
                if let Some(before) = self.in_effect.get(*name) {
                    // Another bad file may have the same name.
                    let closed = next.get(*name).is_some_and(|one| !one.spec.enabled);
                    next.insert(
                        (*name).to_owned(),
                        before.kept(file, *closes_gate || closed),
                    );
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

    /// Handlers whose good files conflict with each other or with those of other handlers, and why: duplicate names, pools with
    /// different limits, dead-letter cycles.
    fn conflicting(&self) -> BTreeMap<String, Vec<Problem>> {
        let names = self.by_name();
        let mut conflicting = BTreeMap::new();
        for (name, declared) in &names {
            if declared.len() > 1 {
                conflicting.insert((*name).to_owned(), duplicate_names(declared));
            }
        }
        let single = || {
            let single = names.values().filter(|declared| declared.len() == 1);
            single.flatten().copied()
        };
        for (one, problem) in pool_conflicts(single()) {
            conflicting.insert(one.located.spec.name.clone(), vec![problem]);
        }
        let before: BTreeMap<String, Arc<HandlerSpec>> = self
            .in_effect
            .iter()
            .map(|(name, one)| (name.clone(), Arc::clone(&one.spec)))
            .collect();
        let mut wanted = before.clone();
        wanted.retain(|name, _| conflicting.contains_key(name));
        for one in single() {
            let name = &one.located.spec.name;
            if !conflicting.contains_key(name) {
                wanted.insert(name.clone(), Arc::new(one.located.spec.clone()));
            }
        }
        for (name, circle) in closing(wanted, &before) {
            if let Some(declared) = names.get(name.as_str()).and_then(|all| all.first()) {
                let problem = circle_problem(&circle, declared.file, *declared);
                conflicting.entry(name).or_insert_with(|| vec![problem]);
            }
        }
        conflicting
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

    /// All conflicts between files: duplicate names, pools with different limits, dead-letter cycles.
    fn conflicts(&self) -> Problems {
        let names = self.by_name();
        let all = || names.values().flatten().copied();
        let mut problems = Problems::new();
        for declared in names.values().filter(|declared| declared.len() > 1) {
            duplicate_names(declared)
                .into_iter()
                .for_each(|one| problems.push(one));
        }
        for (_, problem) in pool_conflicts(all()) {
            problems.push(problem);
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

/// One problem for each of the files that declare the same handler.
fn duplicate_names(declared: &[DeclaredPool<'_>]) -> Vec<Problem> {
    let of = |(index, one): (usize, &DeclaredPool<'_>)| {
        let other = &declared[usize::from(index == 0)];
        let message = format!(
            "`{}` is also the name in {}; handler names must be unique",
            one.located.spec.name,
            other.at()
        );
        problem(one.file, &one.located.name_place, "name", message)
    };
    declared.iter().enumerate().map(of).collect()
}

impl Reading {
    /// Of a file that cannot be read.
    fn without_text(problems: Problems) -> Self {
        Self {
            text: String::new(),
            result: Err(problems),
            refused: RefusedText::default(),
        }
    }

    /// Whether the file could be read, whatever its content.
    fn is_of_text(&self) -> bool {
        !self.text.is_empty() || self.result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_known_to_be_absent_is_deleted() {
        let absent = ErrorKind::NotFound;
        let unknown = [
            ErrorKind::PermissionDenied,
            ErrorKind::StaleNetworkFileHandle,
            ErrorKind::NotADirectory,
            // EIO, among others.
            ErrorKind::Other,
        ];
        assert_eq!(Unread::by(Err(absent), Err(absent)), Unread::Deleted);
        assert_eq!(Unread::by(Ok(true), Err(absent)), Unread::BrokenLink);
        assert_eq!(Unread::by(Ok(false), Err(absent)), Unread::Deleted);
        for other in unknown {
            for followed in [Ok(()), Err(absent), Err(other)] {
                assert_eq!(
                    Unread::by(Err(other), followed),
                    Unread::Unreadable,
                    "{other}"
                );
            }
            for is_link in [true, false] {
                assert_eq!(
                    Unread::by(Ok(is_link), Err(other)),
                    Unread::Unreadable,
                    "{other}"
                );
            }
        }
    }

    const SPEC: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";

    /// The problems of a start with the specs in `folder`.
    fn problems_of_start(folder: &Path) -> String {
        let mut folder = Folder::new(folder.to_path_buf(), Environment::default());
        folder.scan().unwrap();
        folder.problems().to_string()
    }

    #[test]
    fn a_link_that_cannot_be_followed_is_reported_with_its_own_reason() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("a.yaml");
        std::os::unix::fs::symlink("a.yaml", &link).unwrap();
        let looped = problems_of_start(root.path());
        assert!(looped.contains("Too many levels"), "{looped}");
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("missing.yaml", &link).unwrap();
        let broken = problems_of_start(root.path());
        assert!(broken.contains(BROKEN_LINK), "{broken}");
    }

    /// Permissions do not bind root, so the files are hidden by a path that is too long for the kernel: the folder can be listed, as
    /// without the permission to search it, and nothing in it can be examined.
    #[test]
    fn a_start_does_not_lose_the_handler_of_a_file_that_cannot_be_examined() {
        const LONGEST_PATH: usize = 4095;
        let root = tempfile::tempdir().unwrap();
        let short = root.path().join("s");
        let mut inner = PathBuf::new();
        let length = |outer: &Path, inner: &Path| outer.join(inner).as_os_str().len();
        while length(&short, &inner) + 201 < LONGEST_PATH - "/a.yaml".len() {
            inner.push("d".repeat(200));
        }
        std::fs::create_dir_all(short.join(&inner)).unwrap();
        std::fs::write(short.join(&inner).join("a.yaml"), SPEC).unwrap();
        assert_eq!(problems_of_start(&short.join(&inner)), "");
        let more = LONGEST_PATH - length(&short, &inner);
        let long = root.path().join("s".repeat(1 + more));
        std::fs::rename(&short, &long).unwrap();
        let problems = problems_of_start(&long.join(&inner));
        assert!(problems.contains("cannot be read"), "{problems}");
    }
}
