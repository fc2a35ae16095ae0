//! The file that is actually loaded: a private copy under a name that this process has never used.
//!
//! The system's loader returns the already loaded library for a known path, even if the file was replaced, and
//! overwriting a mapped file corrupts running code. Each time code is loaded, it therefore gets its own copy in a folder that only
//! this user can enter, named by hash, generation and a random number. Its owner holds a lock on it: an unlocked copy is
//! left over from a dead process and is removed. Only files with such a name, in a folder that is named for nothing else, are
//! ever removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluicegate_runtime::LoadError;

use crate::unreadable;

/// The folder of the copies.
const FOLDER: &str = "sluicegate-native-copies";
/// An unlocked copy younger than this may be one that its process is about to lock.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// The copy. Dropping it deletes the file; the mapping stays valid.
#[derive(Debug)]
pub(crate) struct PrivateCopy {
    pub(crate) path: PathBuf,
    /// Holds the shared lock.
    _held: File,
}

impl PrivateCopy {
    /// Writes `bytes` into the folder of copies in `cache`.
    pub(crate) fn write(
        cache: &Path,
        bytes: &[u8],
        sha256: &str,
        generation: u64,
    ) -> Result<Self, LoadError> {
        let folder = cache.join(FOLDER);
        enter(&folder).map_err(|error| unreadable(&folder, error))?;
        remove_stale(&folder);
        let path = folder.join(format!("{sha256}-{generation}-{:016x}.so", random()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| File::open(&path))
            .and_then(|file| file.lock_shared().map(|()| file));
        match written {
            Ok(held) => Ok(Self { path, _held: held }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(unreadable(&path, error))
            }
        }
    }
}

/// A random number, unique across loads and processes.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Creates the folder, or verifies that it belongs to this user and is inaccessible to others.
fn enter(folder: &Path) -> std::io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = fs::symlink_metadata(folder)?;
    if !meta.is_dir() {
        return Err(std::io::Error::other(
            "it is not a folder; remove it, or configure another plugins.cache",
        ));
    }
    // A file created by this process has this process's owner.
    let probe = folder.join(format!(".owner-{:016x}", random()));
    let owner = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&probe)?
        .metadata()?
        .uid();
    fs::remove_file(&probe)?;
    if meta.uid() != owner {
        return Err(std::io::Error::other(
            "it belongs to another user; configure another plugins.cache",
        ));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Removes unlocked copies.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_str().is_some_and(is_copy);
        let is_stale = |meta: fs::Metadata| {
            let modified = meta.modified();
            meta.is_file()
                && modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_AFTER))
        };
        let is_stale = is_ours && entry.metadata().is_ok_and(is_stale);
        if is_stale && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether a file has the name of a copy: `SHA256-GENERATION-RANDOM.so`.
fn is_copy(name: &str) -> bool {
    let hex = |text: &str, len| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let parts: Option<Vec<&str>> = name
        .strip_suffix(".so")
        .map(|name| name.split('-').collect());
    match parts.as_deref() {
        Some([sha256, generation, random]) => {
            let is_number =
                !generation.is_empty() && generation.bytes().all(|b| b.is_ascii_digit());
            hex(sha256, 64) && is_number && hex(random, 16)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn copies_are_private_distinct_and_removed_once_unlocked() {
        let cache = tempfile::tempdir().unwrap();
        let write = || PrivateCopy::write(cache.path(), b"bytes", SHA256, 1).unwrap();
        let (one, two) = (write(), write());
        assert_ne!(one.path, two.path);
        assert_eq!(fs::read(&one.path).unwrap(), b"bytes");
        let folder = cache.path().join(FOLDER);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let old = std::time::SystemTime::now() - 2 * STALE_AFTER;
        for path in [&one.path, &two.path] {
            fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
        let held = one.path.clone();
        let left = folder.join(format!("{SHA256}-17-0123456789abcdef.so"));
        // What is not ours, or not surely, stays.
        let others = [
            "notes.txt".to_owned(),
            "libx.so".to_owned(),
            format!("{SHA256}-17-0123456789abcdef.so.bak"),
            format!("{SHA256}-17-0123456789ABCDEF.so"),
            format!("{SHA256}--0123456789abcdef.so"),
            format!("{}-17-0123456789abcdef.so", &SHA256[1..]),
            format!("{SHA256}-17-0123456789abcdef-1.so"),
        ]
        .map(|name| folder.join(name));
        for path in others.iter().chain([&left]) {
            fs::copy(&two.path, path).unwrap();
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_modified(old).unwrap();
        }
        drop(two);
        let three = write();
        assert!(held.exists() && three.path.exists() && !left.exists());
        for path in &others {
            assert!(path.exists(), "{} is removed", path.display());
        }
        drop(one);
        assert!(!held.exists());
    }

    #[test]
    fn a_cache_that_is_not_a_folder_is_reported() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join(FOLDER), "a file").unwrap();
        let error = PrivateCopy::write(cache.path(), b"", SHA256, 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/sluicegate-native-copies`: it is not a folder"),
            "{error}"
        );
    }
}
