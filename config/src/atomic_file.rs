//! Files that readers see whole or not at all: written beside their place under a hidden name, then put there in one step.

use std::fs::Permissions;
use std::io::{Result, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// What a file that others may read is made with; the process's mask takes away from it.
pub(crate) const SHARED: u32 = 0o666;
/// What a file is made with that is nobody else's business.
pub(crate) const PRIVATE: u32 = 0o600;

/// Writes `text` to disk beside `path`; the caller puts it in its place with `persist` or `persist_noclobber`. Otherwise it
/// goes when the value goes.
///
/// # Errors
/// What the file system says.
pub(crate) fn beside(path: &Path, text: &[u8], mode: u32) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = Builder::new();
    // Watchers of a folder leave hidden files out.
    builder.prefix(".").suffix(".new");
    #[cfg(unix)]
    builder.permissions(<Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    Ok(file)
}
