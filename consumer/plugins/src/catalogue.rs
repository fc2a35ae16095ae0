//! The catalogue: artefacts in the plugins folder, by the names and versions embedded in them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use semver::Version;
use sluicegate_engine::status::{ProblemKind, ServiceProblem};
use sluicegate_pool::clock::now_ms;
use sluicegate_pool::pool::relock;
use sluicegate_runtime::{HandlerRuntime, LoadError, PluginIdentity};

use super::folder::{FileFingerprint, Listing};

/// A file modified more recently than this may still be being written.
const SETTLE_WINDOW: Duration = Duration::from_millis(300);
/// Interval of scans while a file is too new.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);

/// The artefacts of a folder.
pub struct Catalogue {
    folder: PathBuf,
    pub(super) allow_unsigned: bool,
    runtimes: Vec<Arc<dyn HandlerRuntime>>,
    /// As of the last scan that has ended: a scan can take long, and nothing waits for it to be read.
    files: Mutex<Arc<Files>>,
    /// Held by a scan.
    scanning: Mutex<()>,
    /// Unusable files as of the last scan.
    refused: Mutex<Vec<ServiceProblem>>,
    /// Why and since when the folder, or a package in it, cannot be read.
    pub(super) unreadable: Mutex<Option<Unreadable>>,
    /// Folders that may be packages and of which nothing is known, because they cannot be read.
    pub(super) unlisted: Mutex<Vec<(PathBuf, String)>>,
}

/// The files of a folder and of the packages in it.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// A file and its last known contents.
#[derive(Clone)]
pub(super) struct File {
    stamp: FileFingerprint,
    pub(super) content: Result<Arc<Artefact>, Refused>,
    /// Why the last scan could not read it. That says nothing about its contents: the next scan retries.
    pub(super) unread: Option<Refused>,
}

/// Why a file cannot be used, and since when in milliseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    since_ms: i64,
}

impl File {
    /// Whether it could not be read, and nothing is known of it from earlier.
    pub(super) fn is_unknown(&self) -> bool {
        self.unread.is_some() && self.content.is_err()
    }
}

impl Refused {
    /// A refusal with this reason that started with `before`, if there was one.
    fn since(before: Option<&Self>, why: String) -> Self {
        let since_ms = before.map_or_else(now_ms, |before| before.since_ms);
        Self { why, since_ms }
    }
}

/// A folder that cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    pub(super) why: String,
    since_ms: i64,
    /// Files known from earlier scans stay in use.
    keeps: bool,
}

/// A plugin that can be loaded.
pub struct Artefact {
    /// Its file.
    pub path: PathBuf,
    /// Its embedded identity.
    pub identity: PluginIdentity,
    /// Its version, parsed.
    pub version: Version,
    /// The runtime that can load it.
    pub runtime: Arc<dyn HandlerRuntime>,
    pub(super) modified: SystemTime,
}

impl fmt::Debug for Artefact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} at {}",
            self.identity.name,
            self.version,
            self.path.display()
        )
    }
}

/// Why a file that can be read is not a usable plugin; only other bytes in its place help.
#[derive(Debug, thiserror::Error)]
enum ArtefactError {
    /// Its runtime refuses it.
    #[error(transparent)]
    Refused(#[from] LoadError),
    /// Versions are ordered, to find the newest one.
    #[error(
        "plugin `{}` has the version `{version}`, which is not a semantic version: {source}",
        path.display()
    )]
    Version {
        path: PathBuf,
        version: String,
        source: semver::Error,
    },
}

/// Result of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The artefacts differ from those of the previous scan.
    pub changed: bool,
    /// A file is too new to be read, or could not be read and nothing is known of it; scan again soon.
    pub unsettled: bool,
}

impl Catalogue {
    /// An empty catalogue of `folder`. Each file is read by the first of `runtimes` that recognises it.
    pub fn new(
        folder: PathBuf,
        allow_unsigned: bool,
        runtimes: Vec<Arc<dyn HandlerRuntime>>,
    ) -> Self {
        Self {
            folder,
            allow_unsigned,
            runtimes,
            files: Mutex::default(),
            scanning: Mutex::default(),
            refused: Mutex::default(),
            unreadable: Mutex::default(),
            unlisted: Mutex::default(),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Rescans the folder; unchanged files are not opened. Whatever is currently unreadable (the folder, a package in it, a file)
    /// keeps its last known contents: unreadable does not mean deleted. Until it ends, [`Self::find`] uses the previous list.
    pub fn scan(&self) -> Scan {
        let _alone = relock(&self.scanning);
        let before = self.files();
        let had_files = !before.is_empty();
        let mut listing = Listing::of(&self.folder);
        let (files, found) = self.examine(&mut listing, BTreeMap::clone(&before));
        let mut refused_before = relock(&self.refused);
        let mut refused = refused(&files);
        refused.extend(self.non_file_problems(&listing.not_files, &refused_before));
        refused.extend(problems_of_builds(&files, &refused_before));
        *refused_before = refused;
        drop(refused_before);
        *relock(&self.unlisted) = listing.unlisted(&files);
        *relock(&self.files) = Arc::new(files);
        self.record_unreadable(&listing.unreadable, had_files);
        found
    }

    /// The files of the last scan.
    pub(super) fn files(&self) -> Arc<Files> {
        Arc::clone(&relock(&self.files))
    }

    /// Reads what has changed since the scan that found `before`.
    fn examine(&self, listing: &mut Listing, mut before: Files) -> (Files, Scan) {
        let now = SystemTime::now();
        let (mut files, mut found) = (Files::new(), Scan::default());
        for (path, stamp) in std::mem::take(&mut listing.files) {
            let known = before.remove(&path);
            let stamp = match stamp {
                Ok(stamp) => stamp,
                Err(why) => {
                    let file = known.or_else(|| self.unexamined(&path, why));
                    files.extend(file.map(|file| (path, file)));
                    continue;
                }
            };
            let known = match known {
                Some(file) if file.stamp == stamp && file.unread.is_none() => {
                    files.insert(path, file);
                    continue;
                }
                known => known,
            };
            let Some(runtime) = self.runtimes.iter().find(|r| r.recognises(&path)) else {
                found.changed |= known.is_some();
                continue;
            };
            // A modification time in the future does not tell when the file was written.
            let age = now.duration_since(stamp.modified).unwrap_or(SETTLE_WINDOW);
            if age < SETTLE_WINDOW {
                found.unsettled = true;
                // The previous contents stay known until the new bytes are read.
                files.extend(known.map(|file| (path, file)));
                continue;
            }
            let (file, changed) = self.read(&path, stamp, runtime, known);
            found.changed |= changed;
            found.unsettled |= file.is_unknown();
            files.insert(path, file);
        }
        found.changed |= keep_unreadable(listing, before, &mut files);
        (files, found)
    }

    /// Scans until no file is too new to be read, or until `enough` holds; for `limit` at most. Returns whether any scan found changes.
    pub fn scan_settled(&self, limit: Duration, enough: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut changed = false;
        loop {
            let scan = self.scan();
            changed |= scan.changed;
            if !scan.unsettled || enough(self) || Instant::now() >= deadline {
                return changed;
            }
            std::thread::sleep(SCAN_INTERVAL);
        }
    }

    /// A file with a plugin's name whose metadata cannot be read, and of which nothing is known.
    fn unexamined(&self, path: &Path, why: String) -> Option<File> {
        let named = self.runtimes.iter().any(|r| r.recognises(path));
        let why = format!("cannot read plugin `{}`: {why}", path.display());
        named.then(|| Self::unread(FileFingerprint::UNKNOWN, None, Refused::since(None, why)).0)
    }

    /// Problems for entries with a plugin's name that are not files; `before`: the problems of the previous scan.
    fn non_file_problems(
        &self,
        not_files: &[(PathBuf, &'static str)],
        before: &[ServiceProblem],
    ) -> Vec<ServiceProblem> {
        let named = not_files
            .iter()
            .filter(|(path, _)| self.runtimes.iter().any(|r| r.recognises(path)));
        let problem = |(path, what): &(PathBuf, &'static str)| {
            let what = format!("`{}` is {what}", path.display());
            let known = before.iter().find(|problem| problem.what == what);
            known.cloned().unwrap_or_else(|| {
                tracing::warn!("{what}: not usable as a plugin");
                ServiceProblem {
                    kind: ProblemKind::PluginRefused,
                    what,
                    since_ms: now_ms(),
                    count: 1,
                    cause: "a plugin must be a regular file".to_owned(),
                    remedy:
                        "put the plugin file there, mount the volume that its link leads to, or remove the entry"
                            .to_owned(),
                }
            })
        };
        named.map(problem).collect()
    }

    /// Records what cannot be read, and logs when that starts and ends. `keeps`: plugins are known from earlier scans.
    fn record_unreadable(&self, found: &[(PathBuf, String)], keeps: bool) {
        let why: Vec<&str> = found.iter().map(|(_, why)| why.as_str()).collect();
        let why = why.join("; ");
        let mut noted = relock(&self.unreadable);
        let before = noted.take();
        let was_logged = before.as_ref().is_some_and(|before| before.keeps);
        if why.is_empty() {
            if was_logged {
                tracing::info!("plugins folder is readable again");
            }
            return;
        }
        if keeps && !was_logged {
            tracing::warn!(
                why,
                "plugins folder cannot be read; known plugins stay in use"
            );
        }
        *noted = Some(Unreadable {
            why,
            since_ms: before.map_or_else(now_ms, |before| before.since_ms),
            keeps,
        });
    }

    /// Current problems with the folder and its files.
    pub fn problems(&self) -> Vec<ServiceProblem> {
        let refused = relock(&self.refused).clone();
        self.unread_problem().into_iter().chain(refused).collect()
    }

    /// The problem of an unreadable folder whose plugins are in use.
    fn unread_problem(&self) -> Option<ServiceProblem> {
        let noted = relock(&self.unreadable).clone();
        let Unreadable { why, since_ms, .. } = noted.filter(|noted| noted.keeps)?;
        Some(ServiceProblem {
            kind: ProblemKind::PluginsUnread,
            count: 1,
            what: "the plugins folder cannot be read".to_owned(),
            since_ms,
            cause: why,
            remedy: "make it readable for the service; known plugins stay in use, and new ones are found once it can be \
                     read"
                .to_owned(),
        })
    }

    /// Reads a file; returns it and whether the catalogue changed. An unreadable file keeps its last known contents.
    fn read(
        &self,
        path: &Path,
        stamp: FileFingerprint,
        runtime: &Arc<dyn HandlerRuntime>,
        known: Option<File>,
    ) -> (File, bool) {
        let before = known.as_ref();
        let refused = before.and_then(|known| known.content.as_ref().err());
        let content = match runtime.inspect(path) {
            Err(error) if error.is_retryable() => {
                let unread = before.and_then(|known| known.unread.as_ref());
                let reason = Refused::since(unread, error.to_string());
                return Self::unread(stamp, known, reason);
            }
            Err(error) => Err(error.into()),
            Ok(identity) => artefact(path, stamp, runtime, identity),
        };
        let content = content.map_err(|error| Refused::since(refused, error.to_string()));
        match &content {
            Err(Refused { why: reason, .. }) => tracing::warn!(%reason, "plugin not usable"),
            Ok(artefact) => tracing::info!(plugin = ?artefact, "plugin found"),
        }
        let file = File {
            stamp,
            content,
            unread: None,
        };
        (file, true)
    }

    /// An unreadable file: keeps its last known contents, if any.
    fn unread(stamp: FileFingerprint, known: Option<File>, reason: Refused) -> (File, bool) {
        let why = &reason.why;
        match known {
            Some(known) => {
                if known.unread.is_none() {
                    tracing::warn!(reason = %why, "plugin file cannot be read; its last known contents stay in use");
                }
                let unread = Some(reason);
                (File { unread, ..known }, false)
            }
            None => {
                tracing::warn!(reason = %why, "plugin not usable");
                let file = File {
                    stamp,
                    content: Err(reason.clone()),
                    unread: Some(reason),
                };
                (file, true)
            }
        }
    }
}

/// Keeps those of `before`, which the listing lacks, that are in a folder that cannot be read; returns whether others are gone.
fn keep_unreadable(listing: &mut Listing, before: Files, files: &mut Files) -> bool {
    let was_package = |at: &PathBuf| before.keys().any(|path| path.starts_with(at));
    let unexamined = listing.unexamined.iter();
    let packages = unexamined.filter(|(at, _)| was_package(at)).cloned();
    let packages: Vec<_> = packages.collect();
    listing.unreadable.extend(packages);
    let mut gone = false;
    for (path, file) in before {
        match listing
            .unreadable
            .iter()
            .any(|(at, _)| path.starts_with(at))
        {
            true => {
                files.insert(path, file);
            }
            false => gone = true,
        }
    }
    gone
}

/// Problems for versions of which there are several builds; `before`: the problems of the previous scan.
fn problems_of_builds(files: &Files, before: &[ServiceProblem]) -> Vec<ServiceProblem> {
    let mut versions: BTreeMap<(&str, &Version), Vec<&Artefact>> = BTreeMap::new();
    for artefact in files.values().filter_map(|file| file.content.as_ref().ok()) {
        let key = (artefact.identity.name.as_str(), &artefact.version);
        versions.entry(key).or_default().push(artefact);
    }
    let problem = |((name, version), builds): ((&str, &Version), Vec<&Artefact>)| {
        let cause = several_builds(&builds)?;
        let what = format!("plugin `{name}` has several builds of version {version}");
        let known = before
            .iter()
            .find(|problem| problem.what == what && problem.cause == cause);
        Some(known.cloned().unwrap_or_else(|| {
            tracing::warn!("{what}: {cause}");
            ServiceProblem {
                kind: ProblemKind::PluginRefused,
                what,
                since_ms: now_ms(),
                count: 1,
                cause,
                remedy: "remove all but one of them; a handler that runs one of them continues to, and no new one is \
                         started until then"
                    .to_owned(),
            }
        }))
    };
    versions.into_iter().filter_map(problem).collect()
}

/// The files of several builds of one version with their digests; `None` if all have the same bytes.
pub(super) fn several_builds(builds: &[&Artefact]) -> Option<String> {
    let first = &builds.first()?.identity.sha256;
    let differs = builds.iter().any(|one| one.identity.sha256 != *first);
    let one = |one: &&Artefact| {
        format!(
            "`{}` has the SHA-256 {}",
            one.path.display(),
            one.identity.sha256
        )
    };
    differs.then(|| builds.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Problems for unusable files.
fn refused(files: &Files) -> Vec<ServiceProblem> {
    let refused = files.iter().filter_map(|(path, file)| {
        let path = path.display();
        let (refused, what, remedy) = match (&file.unread, &file.content) {
            (Some(unread), content) => (
                unread,
                match content {
                    Ok(_) => format!("`{path}` cannot be read; its last known contents stay in use"),
                    Err(_) => format!("`{path}` cannot be read"),
                },
                "make it readable for the service; it is retried at each scan of the folder",
            ),
            (None, Err(refused)) => (
                refused,
                format!("`{path}` is not a usable plugin"),
                "rebuild it with this version of the SDK and copy it there again, or remove the file",
            ),
            (None, Ok(_)) => return None,
        };
        Some(ServiceProblem {
            kind: ProblemKind::PluginRefused,
            count: 1,
            what,
            since_ms: refused.since_ms,
            cause: refused.why.clone(),
            remedy: remedy.to_owned(),
        })
    });
    refused.collect()
}

fn artefact(
    path: &Path,
    stamp: FileFingerprint,
    runtime: &Arc<dyn HandlerRuntime>,
    identity: PluginIdentity,
) -> Result<Arc<Artefact>, ArtefactError> {
    let version = Version::parse(&identity.version).map_err(|source| ArtefactError::Version {
        path: path.to_owned(),
        version: identity.version.clone(),
        source,
    })?;
    Ok(Arc::new(Artefact {
        path: path.to_owned(),
        identity,
        version,
        runtime: Arc::clone(runtime),
        modified: stamp.modified,
    }))
}
