//! Artefacts downloaded or built once per machine: kept outside `target/`, created atomically, locked between processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `${XDG_CACHE_HOME:-~/.cache}/sluicegate`.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => {
            let home = std::env::var_os("HOME")
                .context("set HOME or XDG_CACHE_HOME: servers for tests are cached there")?;
            PathBuf::from(home).join(".cache")
        }
    };
    Ok(base.join("sluicegate"))
}

/// The folder `name` of the cache; `make` fills it the first time. Concurrent processes wait for each other,
/// and a `make` that fails or is killed leaves nothing behind that a later call would take for the finished folder.
///
/// # Errors
/// If the cache cannot be written, or the error of `make`.
pub fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = folder()?;
    let done = cache.join(name);
    if done.is_dir() {
        return Ok(done);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock()
        .with_context(|| format!("cannot lock {name} in the cache"))?;
    if done.is_dir() {
        return Ok(done);
    }
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        .tempdir_in(&cache)?;
    make(partial.path())?;
    // `keep` disarms the guard of the temporary folder first, so that it does not remove the renamed one.
    fs::rename(partial.keep(), &done).with_context(|| format!("cannot put {name} in place"))?;
    Ok(done)
}
