//! Listing of the plugins folder, and fingerprints that detect changed files.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The file that makes a folder a package.
const MANIFEST: &str = "plugin.yaml";

/// Result of listing the folder.
#[derive(Default)]
pub(super) struct Listing {
    /// Files with their fingerprints, or why the metadata could not be read.
    pub(super) files: Vec<(PathBuf, Result<FileFingerprint, String>)>,
    /// Entries that are neither a file nor a folder, with a description.
    pub(super) not_files: Vec<(PathBuf, &'static str)>,
    /// Folders that could not be read, and why.
    pub(super) unreadable: Vec<(PathBuf, String)>,
    /// Folders that may be packages: their manifest cannot be examined, for the given reason. Often they are none, such as a
    /// volume's `lost+found`, which is closed to the service.
    pub(super) unexamined: Vec<(PathBuf, String)>,
}

impl Listing {
    /// Lists the files of the folder and of the packages in it (folders with a manifest).
    pub(super) fn of(folder: &Path) -> Self {
        let mut listing = Self::default();
        for package in listing.add(folder) {
            let manifest = package.join(MANIFEST);
            match std::fs::metadata(&manifest) {
                Ok(metadata) if metadata.is_file() => drop(listing.add(&package)),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let why = format!("`{}` cannot be read: {error}", manifest.display());
                    listing.unexamined.push((package, why));
                }
            }
        }
        listing.files.sort_by(|(a, _), (b, _)| a.cmp(b));
        listing
    }

    /// The folders that may be packages, cannot be read, and have no file among the known ones.
    pub(super) fn unlisted<T>(&self, known: &BTreeMap<PathBuf, T>) -> Vec<(PathBuf, String)> {
        let folders = self.unreadable.iter().chain(&self.unexamined);
        let is_unknown =
            |(at, _): &&(PathBuf, String)| !known.keys().any(|path| path.starts_with(at));
        folders.filter(is_unknown).cloned().collect()
    }

    /// Adds the files of `folder` and returns its folders. Follows symbolic links, since plugins are often links into a build
    /// output.
    fn add(&mut self, folder: &Path) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let manifest = std::fs::metadata(folder.join(MANIFEST)).ok();
        let manifest = manifest.and_then(|metadata| FileFingerprint::of(&metadata));
        let mut add = |path: PathBuf| match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => folders.push(path),
            Ok(metadata) if metadata.is_file() => {
                let with_manifest = |stamp: FileFingerprint| {
                    manifest.map_or(stamp, |manifest| stamp.with(manifest))
                };
                let stamp = FileFingerprint::of(&metadata).map(with_manifest);
                let no_time = || "the file system gives no modification time".to_owned();
                self.files.push((path, stamp.ok_or_else(no_time)));
            }
            Ok(_) => self.not_files.push((path, "not a regular file")),
            Err(error) => {
                match error.kind() {
                    // A broken link, often into a missing mount. Without a link the entry was just removed.
                    std::io::ErrorKind::NotFound if path.is_symlink() => {
                        self.not_files.push((path, "a broken link"));
                    }
                    std::io::ErrorKind::NotFound => {}
                    // Unknown contents: the catalogue keeps what it knows.
                    _ => self.files.push((path, Err(error.to_string()))),
                }
            }
        };
        let read = std::fs::read_dir(folder).and_then(|entries| {
            for entry in entries {
                add(entry?.path());
            }
            Ok(())
        });
        if let Err(error) = read {
            let why = format!("`{}` cannot be read: {error}", folder.display());
            self.unreadable.push((folder.to_owned(), why));
        }
        folders
    }
}

/// Detects changes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileFingerprint {
    bytes: u64,
    pub(super) modified: SystemTime,
    /// Time of the last status change (ctime): a copy may preserve length and modification time.
    changed: (i64, i64),
    inode: u64,
}

impl FileFingerprint {
    /// That of a file whose metadata cannot be read: it differs from any other.
    pub(super) const UNKNOWN: Self = Self {
        bytes: 0,
        modified: SystemTime::UNIX_EPOCH,
        changed: (0, 0),
        inode: 0,
    };

    fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        })
    }

    /// The fingerprint of a file that is read together with another one.
    fn with(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            modified: self.modified.max(other.modified),
            changed: self.changed.max(other.changed),
            inode: self.inode ^ other.inode.rotate_left(32),
        }
    }
}
