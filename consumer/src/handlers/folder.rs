//! What stands in the plugins folder: files, and how to tell that one has changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What makes a folder a package.
const MANIFEST: &str = "plugin.yaml";

/// What a look at the folder has found.
#[derive(Default)]
pub(super) struct Listing {
    /// Files, each with its stamp if that could be had.
    pub(super) files: Vec<(PathBuf, Option<FileFingerprint>)>,
    /// What is neither file nor folder, and what it is.
    pub(super) odd: Vec<(PathBuf, &'static str)>,
    /// Folders that could not be read, and why.
    pub(super) unreadable: Vec<(PathBuf, String)>,
}

impl Listing {
    /// The files of the folder and of the packages in it (folders with a manifest).
    pub(super) fn of(folder: &Path) -> Self {
        let mut listing = Self::default();
        for package in listing.add(folder) {
            if package.join(MANIFEST).is_file() {
                listing.add(&package);
            }
        }
        listing.files.sort_by(|(a, _), (b, _)| a.cmp(b));
        listing
    }

    /// Adds the files of `folder`, and gives its folders. Links are followed: plugins are often links into a build's output.
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
                self.files.push((path, stamp));
            }
            Ok(_) => self.odd.push((path, "no regular file")),
            Err(error) => {
                match error.kind() {
                    // Of a mount that is not there, often. Else it was taken away meanwhile.
                    std::io::ErrorKind::NotFound if path.is_symlink() => {
                        self.odd.push((path, "a link that leads nowhere"));
                    }
                    std::io::ErrorKind::NotFound => {}
                    // It is not known what is behind it.
                    _ => self.files.push((path, None)),
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

/// Tells whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileFingerprint {
    bytes: u64,
    pub(super) modified: SystemTime,
    /// When the system last changed anything of it: a copy may keep length and time of modification.
    changed: (i64, i64),
    inode: u64,
}

impl FileFingerprint {
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
