//! The plugins folder: which artefacts there are, by the names and versions that they carry in themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use semver::Version;
use sluicegate_config::spec::VersionRequirement;
use sluicegate_runtime::{HandlerRuntime, PluginIdentity};

use super::pool::relock;

/// What makes a folder a package.
const MANIFEST: &str = "plugin.yaml";
/// A file that was changed more recently than this may still be written.
const SETTLES_IN: Duration = Duration::from_millis(300);

/// The artefacts of a folder.
pub struct Catalogue {
    folder: PathBuf,
    allow_unsigned: bool,
    runtimes: Vec<Arc<dyn HandlerRuntime>>,
    files: Mutex<BTreeMap<PathBuf, File>>,
}

/// A file and what is known of it.
struct File {
    stamp: Stamp,
    content: Result<Arc<Artefact>, String>,
}

/// Tells whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: SystemTime,
    /// When the system last changed anything of it: a copy may keep length and time of modification.
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        })
    }

    /// The stamp of a file that is read together with another.
    fn with(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            modified: self.modified.max(other.modified),
            changed: self.changed.max(other.changed),
            inode: self.inode ^ other.inode.rotate_left(32),
        }
    }
}

/// A plugin that can be loaded.
pub struct Artefact {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub identity: PluginIdentity,
    /// Its version, parsed.
    pub version: Version,
    /// Who can load it.
    pub runtime: Arc<dyn HandlerRuntime>,
    modified: SystemTime,
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

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The artefacts differ from those of the scan before.
    pub changed: bool,
    /// A file is too fresh to be read; scan again soon.
    pub unsettled: bool,
}

/// Why no artefact serves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing of this name.
    #[error("no plugin in `{folder}` has or exports `{plugin}`; there is: {known}{broken}")]
    Unknown {
        /// The folder.
        folder: String,
        /// The name.
        plugin: String,
        /// What there is.
        known: String,
        /// Files that could not be read, as a sentence.
        broken: String,
    },
    /// No version that the spec accepts.
    #[error("plugin `{plugin}` has no version that fits `{wanted}`; there is: {known}")]
    NoVersion {
        /// The name.
        plugin: String,
        /// The requirement.
        wanted: String,
        /// The versions there are.
        known: String,
    },
    /// A plugin's name is given, but it exports several handlers.
    #[error("plugin `{plugin}` exports several handlers; name one of: {known}")]
    Ambiguous {
        /// The name.
        plugin: String,
        /// Its handlers.
        known: String,
    },
    /// It is not signed.
    #[error(
        "plugin `{plugin}` at `{path}` is not signed; for development set `plugins.allow_unsigned: true`"
    )]
    Unsigned {
        /// The name.
        plugin: String,
        /// The file.
        path: String,
    },
}

impl Catalogue {
    /// A catalogue of `folder`, still empty; the first runtime that recognises a file reads it.
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
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads the folder again; files that have not changed are not opened. A folder that cannot be read is empty.
    pub fn scan(&self) -> Scan {
        let now = SystemTime::now();
        let mut found = Scan::default();
        let mut files = relock(&self.files);
        let mut before = std::mem::take(&mut *files);
        for (path, stamp) in self.list() {
            let Some(runtime) = self.runtimes.iter().find(|r| r.recognises(&path)) else {
                continue;
            };
            let known = before.remove(&path);
            let known = match known {
                Some(file) if file.stamp == stamp => {
                    files.insert(path, file);
                    continue;
                }
                known => known,
            };
            // A time in the future says nothing of when the file was written.
            let age = now.duration_since(stamp.modified).unwrap_or(SETTLES_IN);
            if age < SETTLES_IN {
                found.unsettled = true;
                // What was there before stays known until the new bytes are read.
                files.extend(known.map(|file| (path, file)));
                continue;
            }
            found.changed = true;
            let file = self.read(&path, stamp, runtime);
            files.insert(path, file);
        }
        found.changed |= !before.is_empty();
        found
    }

    /// The files of the folder and of the packages in it (folders with a manifest).
    fn list(&self) -> Vec<(PathBuf, Stamp)> {
        let mut files = Vec::new();
        let mut folders = Vec::new();
        list_folder(&self.folder, &mut files, &mut folders);
        for package in folders {
            if package.join(MANIFEST).is_file() {
                list_folder(&package, &mut files, &mut Vec::new());
            }
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        files
    }

    fn read(&self, path: &Path, stamp: Stamp, runtime: &Arc<dyn HandlerRuntime>) -> File {
        let content = runtime
            .inspect(path)
            .map_err(|error| error.to_string())
            .and_then(|identity| {
                let version = Version::parse(&identity.version).map_err(|error| {
                    let (path, version) = (path.display(), &identity.version);
                    format!("plugin `{path}` has the version `{version}`, which is no semantic version: {error}")
                })?;
                Ok(Arc::new(Artefact {
                    path: path.to_owned(),
                    identity,
                    version,
                    runtime: Arc::clone(runtime),
                    modified: stamp.modified,
                }))
            });
        match &content {
            Ok(artefact) => tracing::info!(plugin = ?artefact, "plugin found"),
            Err(reason) => tracing::warn!(%reason, "plugin not usable"),
        }
        File { stamp, content }
    }

    /// The newest artefact that serves `plugin` (its name, or that of a handler that it exports) in a version that
    /// `wanted` accepts, and the name of the handler. Of two files of one version the later one serves.
    ///
    /// # Errors
    /// [`FindError`] says what there is instead.
    pub fn find(
        &self,
        plugin: &str,
        wanted: &VersionRequirement,
    ) -> Result<(Arc<Artefact>, String), FindError> {
        let files = relock(&self.files);
        let artefacts = || files.values().filter_map(|file| file.content.as_ref().ok());
        let named: Vec<_> = artefacts()
            .filter(|artefact| {
                let identity = &artefact.identity;
                identity.name == plugin || identity.handlers.iter().any(|name| name == plugin)
            })
            .collect();
        if named.is_empty() {
            let known = artefacts()
                .flat_map(|a| std::iter::once(&a.identity.name).chain(&a.identity.handlers));
            let broken: Vec<_> = files
                .values()
                .filter_map(|file| file.content.as_ref().err().map(String::as_str))
                .collect();
            return Err(FindError::Unknown {
                folder: self.folder.display().to_string(),
                plugin: plugin.to_owned(),
                known: list(known.cloned()),
                broken: match broken.is_empty() {
                    true => String::new(),
                    false => format!("; not usable: {}", broken.join("; ")),
                },
            });
        }
        let fitting = named
            .iter()
            .filter(|artefact| wanted.matches(&artefact.version));
        let newest = fitting.max_by_key(|artefact| (&artefact.version, artefact.modified));
        let Some(&newest) = newest else {
            return Err(FindError::NoVersion {
                plugin: plugin.to_owned(),
                wanted: wanted.to_string(),
                known: list(named.iter().map(|artefact| artefact.version.to_string())),
            });
        };
        if !self.allow_unsigned {
            return Err(FindError::Unsigned {
                plugin: plugin.to_owned(),
                path: newest.path.display().to_string(),
            });
        }
        let handler = exported_handler(&newest.identity, plugin)?;
        Ok((Arc::clone(newest), handler))
    }
}

/// Adds the files of `folder`, and its folders. Links are followed: plugins are often links into a build's output.
fn list_folder(folder: &Path, files: &mut Vec<(PathBuf, Stamp)>, folders: &mut Vec<PathBuf>) {
    let stamp_of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.is_file(), Stamp::of(&metadata)?))
    };
    let manifest = stamp_of(&folder.join(MANIFEST)).map(|(_, stamp)| stamp);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        match stamp_of(&path) {
            Some((true, stamp)) => {
                let stamp = manifest.map_or(stamp, |manifest| stamp.with(manifest));
                files.push((path, stamp));
            }
            Some((false, _)) => folders.push(path),
            None => {}
        }
    }
}

fn exported_handler(identity: &PluginIdentity, plugin: &str) -> Result<String, FindError> {
    if identity.handlers.iter().any(|name| name == plugin) {
        return Ok(plugin.to_owned());
    }
    match identity.handlers.as_slice() {
        [only] => Ok(only.clone()),
        several => Err(FindError::Ambiguous {
            plugin: plugin.to_owned(),
            known: list(several.iter().cloned()),
        }),
    }
}

/// Names for a sentence, sorted, each once.
fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}
