//! The file that is really opened: a copy that nobody else writes, under a name that this process never used.
//!
//! The loader of the system takes a path that it has seen for the library it knows, even when the file was replaced;
//! and a file that is overwritten while it is mapped corrupts running code. So a generation gets a file of its own in
//! a folder that only this user can enter, under a name of hash, generation and chance. Its owner holds a lock on it:
//! what nobody holds is left over from a process that died, and is removed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluicegate_runtime::LoadError;

use crate::unreadable;

/// A copy that is this young may be one that its process is about to lock.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// The copy; the file goes when this is dropped, the mapping does not mind.
#[derive(Debug)]
pub(crate) struct PrivateCopy {
    pub(crate) path: PathBuf,
    /// Locked, shared.
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
        let path = folder.join(format!("{sha256}-{generation}-{:016x}.so", chance()));
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

/// A number that no other load gets, here or in another process.
fn chance() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the folder, or makes sure that it is ours and closed to others.
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
            "it is not a folder; remove it, or choose another plugins.cache",
        ));
    }
    // A file that this process makes has this process's owner.
    let probe = folder.join(format!(".owner-{:016x}", chance()));
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
            "it belongs to another user; choose another plugins.cache",
        ));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Removes copies that nobody holds.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let settled = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SETTLED_AFTER));
        if settled && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_private_apart_and_swept_once_nobody_holds_them() {
        let cache = tempfile::tempdir().unwrap();
        let write = || PrivateCopy::write(cache.path(), b"bytes", "abc", 1).unwrap();
        let (one, two) = (write(), write());
        assert_ne!(one.path, two.path);
        assert_eq!(fs::read(&one.path).unwrap(), b"bytes");
        let folder = cache.path().join("native");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let old = std::time::SystemTime::now() - 2 * SETTLED_AFTER;
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
    fn a_cache_that_is_no_folder_is_named() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("native"), "a file").unwrap();
        let error = PrivateCopy::write(cache.path(), b"", "abc", 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/native`: it is not a folder"), "{error}");
    }
}
