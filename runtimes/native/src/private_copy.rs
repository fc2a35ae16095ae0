//! The file that is actually loaded: a private copy under a name that this process has never used.
//!
//! The system's loader returns the already loaded library for a known path, even if the file was replaced, and
//! overwriting a mapped file corrupts running code. Each generation therefore gets its own copy in a folder that only
//! this user can enter, named by hash, generation and a random number. Its owner holds a lock on it: an unlocked copy is
//! left over from a dead process and is removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluicegate_runtime::LoadError;

use crate::unreadable;

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
    /// Writes `bytes` into `cache/native`.
    pub(crate) fn write(
        cache: &Path,
        bytes: &[u8],
        sha256: &str,
        generation: u64,
    ) -> Result<Self, LoadError> {
        let folder = cache.join("native");
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
        let is_stale = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_AFTER));
        if is_stale && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_private_distinct_and_removed_once_unlocked() {
        let cache = tempfile::tempdir().unwrap();
        let write = || PrivateCopy::write(cache.path(), b"bytes", "abc", 1).unwrap();
        let (one, two) = (write(), write());
        assert_ne!(one.path, two.path);
        assert_eq!(fs::read(&one.path).unwrap(), b"bytes");
        let folder = cache.path().join("native");
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
        let (held, left) = (one.path.clone(), folder.join("left-by-the-dead.so"));
        fs::copy(&two.path, &left).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&left)
            .unwrap()
            .set_modified(old)
            .unwrap();
        drop(two);
        let three = write();
        assert!(held.exists() && three.path.exists() && !left.exists());
        drop(one);
        assert!(!held.exists());
    }

    #[test]
    fn a_cache_that_is_not_a_folder_is_reported() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("native"), "a file").unwrap();
        let error = PrivateCopy::write(cache.path(), b"", "abc", 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/native`: it is not a folder"), "{error}");
    }
}
