//! The file that is really opened: a copy that nobody else writes, under a name that this process never used.
//!
//! The loader of the system takes a path that it has seen for the library it knows, even when the file was replaced;
//! and a file that is overwritten while it is mapped corrupts running code. So a generation gets a file of its own in
//! a folder that only this user can enter. The name says the hash, the generation, the process and the load; what
//! dead processes left is removed.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sluicegate_runtime::LoadError;

use crate::unreadable;

static COPIES: AtomicU64 = AtomicU64::new(0);

/// The copy; the file goes when this is dropped, the mapping does not mind.
#[derive(Debug)]
pub(crate) struct PrivateCopy {
    pub(crate) path: PathBuf,
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
        let copy = COPIES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{sha256}-{generation}-{}.{copy}.so", std::process::id());
        let path = folder.join(name);
        // A leftover of an earlier process with this id; no living one has it.
        let _ = fs::remove_file(&path);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o500)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| unreadable(&path, error))?;
        Ok(Self { path })
    }
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
    let probe = folder.join(format!(
        ".owner-{}-{}",
        std::process::id(),
        COPIES.fetch_add(1, Ordering::Relaxed)
    ));
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

/// Removes copies of processes that are gone.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_suffix(".so"))
            .and_then(|name| name.rsplit_once('.'))
            .and_then(|(name, _copy)| name.rsplit_once('-'))
            .and_then(|(_, pid)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
