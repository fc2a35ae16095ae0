//! The same edits on a directory of specs, which has no members and no history.

use std::path::{Path, PathBuf};

use crate::atomic_file;
use sluicegate_config::document::{did_you_mean, read_text};
use sluicegate_store::StoreError;

use super::edit::name_of_spec;
use super::{Deleted, FleetError, SpecWrite};
use crate::source::{compare_and_write, name_in_spec, spec_files};

/// Writes the spec `text` to the file that declares its handler, or to a new one.
///
/// # Errors
/// [`FleetError`]; nothing is changed then.
pub fn apply_file(folder: &Path, text: &str, file: Option<&Path>) -> Result<SpecWrite, FleetError> {
    let name = name_of_spec(text, file)?;
    let write = |place: &Path, changed| SpecWrite {
        name: name.clone(),
        place: place.display().to_string(),
        revision: 0,
        changed,
        overridden_by: Vec::new(),
    };
    let Some((path, there)) = find(folder, &name)?.into_iter().next() else {
        let path = folder.join(format!("{name}.yaml"));
        create(&path, text).map_err(|error| refused(&path, &error))?;
        return Ok(write(&path, true));
    };
    if there == text {
        return Ok(write(&path, false));
    }
    match compare_and_write(&path, &there, text) {
        Ok(true) => Ok(write(&path, true)),
        Ok(false) => Err(changed(&path)),
        Err(error) => Err(refused(&path, &error)),
    }
}

/// Removes the file of the handler `name`.
///
/// # Errors
/// [`FleetError`]; nothing is changed then.
pub fn delete_file(folder: &Path, name: &str) -> Result<Deleted, FleetError> {
    let files = find(folder, name)?;
    if files.is_empty() {
        let all = spec_files(folder).map_err(|reason| unreadable(folder, reason))?;
        let names: Vec<String> = all
            .iter()
            .filter_map(|path| name_in_spec(&read_text(path).ok()?))
            .collect();
        return Err(FleetError::Unknown {
            name: name.to_owned(),
            hint: did_you_mean(name, names.iter().map(String::as_str)),
        });
    }
    let mut places = Vec::new();
    for (path, _) in files {
        std::fs::remove_file(&path).map_err(|error| refused(&path, &error))?;
        places.push(path.display().to_string());
    }
    Ok(Deleted {
        name: name.to_owned(),
        places,
        revision: 0,
    })
}

/// The files that declare the handler, with their texts.
fn find(folder: &Path, name: &str) -> Result<Vec<(PathBuf, String)>, FleetError> {
    let files = spec_files(folder).map_err(|reason| unreadable(folder, reason))?;
    let mut found = Vec::new();
    for path in files {
        // An unreadable file declares nothing; the service reports it.
        if let Ok(text) = read_text(&path)
            && name_in_spec(&text).as_deref() == Some(name)
        {
            found.push((path, text));
        }
    }
    Ok(found)
}

/// Writes a file that must not exist yet, atomically for watchers.
fn create(path: &Path, text: &str) -> std::io::Result<()> {
    let new = atomic_file::write_temp(path, text.as_bytes(), atomic_file::SHARED)?;
    new.persist_noclobber(path)?;
    Ok(())
}

fn changed(path: &Path) -> FleetError {
    StoreError::Conflict {
        place: path.display().to_string(),
    }
    .into()
}

fn refused(path: &Path, error: &std::io::Error) -> FleetError {
    StoreError::Refused {
        store: "the file system".to_owned(),
        what: path.display().to_string(),
        reason: error.to_string(),
    }
    .into()
}

fn unreadable(folder: &Path, reason: String) -> FleetError {
    StoreError::Refused {
        store: "the file system".to_owned(),
        what: folder.display().to_string(),
        reason,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";

    #[test]
    fn a_spec_file_is_created_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let made = apply_file(folder.path(), OLD, None).unwrap();
        assert!(made.changed && made.place.ends_with("a.yaml"));
        assert!(!apply_file(folder.path(), OLD, None).unwrap().changed);
        std::fs::rename(
            folder.path().join("a.yaml"),
            folder.path().join("other.yml"),
        )
        .unwrap();
        let new = OLD.replace("[t]", "[u]");
        let replaced = apply_file(folder.path(), &new, None).unwrap();
        assert!(replaced.changed && replaced.place.ends_with("other.yml"));
        assert_eq!(spec_files(folder.path()).unwrap().len(), 1);
        assert_eq!(delete_file(folder.path(), "a").unwrap().places.len(), 1);
        assert!(matches!(
            delete_file(folder.path(), "a"),
            Err(FleetError::Unknown { .. })
        ));
    }
}
