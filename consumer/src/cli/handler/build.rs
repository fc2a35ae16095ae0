//! `sluicegate handler build`: runs cargo and copies the library to a plugin folder.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::crate_folder::CrateFolder;
use crate::cli::failure::Failure;
use crate::cli::output;

/// Arguments of `handler build`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    crate_folder: CrateFolder,
    /// Plugin folder to copy it into; a running service that uses the folder picks it up
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

/// Builds the plugin and prints its path.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let built = arguments.crate_folder.build()?;
    let place = match &arguments.into {
        None => built,
        Some(folder) => put(&built, folder).map_err(|error| {
            Failure::other(format!(
                "cannot copy the plugin to `{}`: {error}",
                folder.display()
            ))
        })?,
    };
    output::show(&place.display().to_string())
}

/// Copies under a temporary name and renames: a scan of the folder never sees a partial file.
fn put(built: &Path, folder: &Path) -> std::io::Result<PathBuf> {
    let name = built.file_name().unwrap_or_default();
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        // A mistyped folder would pass for success.
        let _ = writeln!(
            std::io::stderr(),
            "created the folder `{}`: check that a service reads it",
            folder.display()
        );
    }
    let place = folder.join(name);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = folder.join(hidden);
    fs::copy(built, &temporary)?;
    fs::rename(&temporary, &place)?;
    Ok(place)
}
