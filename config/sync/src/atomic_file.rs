//! Atomic file writes: a hidden temporary file in the target's folder, renamed over it, so that readers never see a part.

use std::fs::Permissions;
use std::io::{Result, Write};
use std::path::Path;

use sluicegate_config::bounded_file;
use tempfile::{Builder, NamedTempFile};

/// Mode of a file that others may read, before the umask.
pub(crate) const SHARED: u32 = 0o666;
/// Mode of a file for this user alone.
pub(crate) const PRIVATE: u32 = 0o600;

/// Writes `text` to a temporary file next to `path` and syncs it. The caller moves it into place with `persist` or
/// `persist_noclobber`; dropping the value deletes it.
///
/// # Errors
/// The file system's error.
pub(crate) fn write_temp(path: &Path, text: &[u8], mode: u32) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = Builder::new();
    // Hidden: folder watches ignore such names.
    builder.prefix(".").suffix(".new");
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Writes a file that must not exist yet.
///
/// # Errors
/// The file system's error.
pub(crate) fn create_new(file: &Path, text: &str) -> Result<()> {
    write_temp(file, text.as_bytes(), SHARED)?.persist_noclobber(file)?;
    Ok(())
}

/// Replaces the text of `file` if it is still `expected`; returns `false` if it has changed.
///
/// # Errors
/// The file system's error.
pub(crate) fn compare_and_write(file: &Path, expected: &str, text: &str) -> Result<bool> {
    // Replace the target of a symlink, not the link.
    let file = file.canonicalize()?;
    let new = write_temp(&file, text.as_bytes(), PRIVATE)?;
    new.as_file()
        .set_permissions(std::fs::metadata(&file)?.permissions())?;
    let there = bounded_file::read(&file, expected.len());
    if there.ok().as_deref() != Some(expected.as_bytes()) {
        return Ok(false);
    }
    new.persist(&file)?;
    Ok(true)
}
