//! Writes specs and gates to the files of a folder, which has no members and no history.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sluicegate_config::document::{did_you_mean, read_text};
use sluicegate_store::StoreError;

use super::FleetError;
use super::writes::{Deleted, SpecWrite};
use crate::atomic_file::{compare_and_write, create_new};
use crate::source::{
    FolderError, GateError, GateWrite, RefusedText, name_in_spec, spec_files, with_gate,
};

/// Writes specs and gates to the files of a folder. A file is replaced only if it still has the text that was read.
pub(super) struct FolderWriter {
    folder: PathBuf,
    /// Serialises writers in this process; writers in other processes are detected by comparing the text.
    writing: Mutex<()>,
}

/// What the files of a folder declare.
#[derive(Default)]
struct Declarations {
    /// The files that declare the handler in question, with their texts.
    files: Vec<(PathBuf, String)>,
    /// The names that the others declare.
    others: Vec<String>,
}

impl Declarations {
    /// A suggestion of the nearest other name, or empty.
    fn hint(&self, name: &str) -> String {
        did_you_mean(name, self.others.iter().map(String::as_str))
    }
}

impl FolderWriter {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            writing: Mutex::new(()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Searches the files for the handler's declarations, where `name_in` reads the name in a text.
    fn find(
        &self,
        handler: &str,
        name_in: impl Fn(&str) -> Option<String>,
    ) -> Result<Declarations, FolderError> {
        let mut found = Declarations::default();
        for file in spec_files(&self.folder)? {
            // An unreadable file declares nothing; the service reports it.
            let Ok(text) = read_text(&file) else { continue };
            match name_in(&text) {
                Some(name) if name == handler => found.files.push((file, text)),
                other => found.others.extend(other),
            }
        }
        Ok(found)
    }

    /// The files that declare the handler's spec. One that is not YAML declares none.
    fn find_specs(&self, handler: &str) -> Result<Declarations, FleetError> {
        Ok(self.find(handler, name_in_spec)?)
    }

    /// Writes the checked spec `text` of `name` to the first file that declares it, or to a new one.
    pub(super) fn apply(&self, name: String, text: &str) -> Result<SpecWrite, FleetError> {
        let _writing = self.lock();
        let declared = self.find_specs(&name)?.files.into_iter().next();
        let (file, changed) = match declared {
            None => {
                let file = self.folder.join(format!("{name}.yaml"));
                create_new(&file, text).map_err(|error| refused(&file, error))?;
                (file, true)
            }
            Some((file, there)) if there == text => (file, false),
            Some((file, there)) => match compare_and_write(&file, &there, text) {
                Ok(true) => (file, true),
                Ok(false) => {
                    let place = file.display().to_string();
                    return Err(StoreError::Conflict { place }.into());
                }
                Err(error) => return Err(refused(&file, error)),
            },
        };
        Ok(SpecWrite {
            name,
            place: file.display().to_string(),
            revision: 0,
            changed,
            overridden_by: Vec::new(),
        })
    }

    /// Removes every file that declares the handler `name`. Files that were removed before a failure stay removed.
    pub(super) fn delete(&self, name: &str) -> Result<Deleted, FleetError> {
        let _writing = self.lock();
        let found = self.find_specs(name)?;
        if found.files.is_empty() {
            return Err(FleetError::Unknown {
                name: name.to_owned(),
                hint: found.hint(name),
            });
        }
        for (file, _) in &found.files {
            std::fs::remove_file(file).map_err(|error| refused(file, error))?;
        }
        Ok(Deleted {
            name: name.to_owned(),
            places: places(&found.files),
            revision: 0,
        })
    }

    /// Opens or closes the gate in the files that declare `handler`, valid or not: for a file that is not YAML, the error names the
    /// file instead of a missing handler. Succeeds if at least one of the files has the state.
    pub(super) fn write_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError> {
        let _writing = self.lock();
        let found = self.find(handler, |text| RefusedText::read(text).name);
        let found = found.map_err(|error| not_writable(&self.folder, error))?;
        if found.files.is_empty() {
            return Err(GateError::UnknownHandler {
                name: handler.to_owned(),
                hint: found.hint(handler),
            });
        }
        if open && found.files.len() > 1 {
            return Err(GateError::NotWritable {
                origin: places(&found.files).join(" and "),
                reason: format!("both declare `{handler}`; keep one").into(),
            });
        }
        // Write all files that declare it: whichever file remains must not open the gate again.
        let mut done = Vec::new();
        let mut changed = false;
        let mut failed = None;
        for (file, text) in found.files {
            match write_gate_in(&file, &text, open) {
                Ok(written) => {
                    changed |= written;
                    done.push((file, text));
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if done.is_empty() => Err(error),
            _ => Ok(GateWrite {
                origin: places(&done).join(" and "),
                changed,
                revision: None,
            }),
        }
    }
}

/// Returns whether the file changed.
fn write_gate_in(file: &Path, text: &str, open: bool) -> Result<bool, GateError> {
    let edited = with_gate(text, open).map_err(|error| not_writable(file, error))?;
    let Some(edited) = edited else {
        return Ok(false);
    };
    match compare_and_write(file, text, &edited) {
        Ok(true) => Ok(true),
        Ok(false) => Err(GateError::Conflict {
            origin: file.display().to_string(),
        }),
        Err(error) => Err(not_writable(file, error)),
    }
}

fn places(files: &[(PathBuf, String)]) -> Vec<String> {
    let places = files.iter().map(|(file, _)| file.display().to_string());
    places.collect()
}

/// A file that is not written, as a store's refusal, whose reason is text, so that callers need not tell a folder from a store.
fn refused(file: &Path, error: std::io::Error) -> FleetError {
    StoreError::Refused {
        store: "the file system".to_owned(),
        what: file.display().to_string(),
        reason: error.to_string(),
    }
    .into()
}

fn not_writable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> GateError {
    GateError::NotWritable {
        origin: path.display().to_string(),
        reason: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";

    #[test]
    fn a_spec_file_is_created_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let writer = FolderWriter::new(folder.path().to_path_buf());
        let apply = |text: &str| writer.apply("a".to_owned(), text).unwrap();
        let made = apply(OLD);
        assert!(made.changed && made.place.ends_with("a.yaml"));
        assert!(!apply(OLD).changed);
        std::fs::rename(
            folder.path().join("a.yaml"),
            folder.path().join("other.yml"),
        )
        .unwrap();
        let new = OLD.replace("[t]", "[u]");
        let replaced = apply(&new);
        assert!(replaced.changed && replaced.place.ends_with("other.yml"));
        assert_eq!(spec_files(folder.path()).unwrap().len(), 1);
        assert_eq!(writer.delete("a").unwrap().places.len(), 1);
        assert!(matches!(
            writer.delete("a"),
            Err(FleetError::Unknown { .. })
        ));
    }

    #[test]
    fn a_folder_that_cannot_be_listed_keeps_its_class_and_its_cause() {
        let folder = tempfile::tempdir().unwrap();
        let missing = FolderWriter::new(folder.path().join("missing"));
        for error in [
            missing.apply("a".to_owned(), OLD).unwrap_err(),
            missing.delete("a").unwrap_err(),
        ] {
            assert!(matches!(error, FleetError::Folder(_)), "{error:?}");
            let cause = std::error::Error::source(&error).unwrap();
            assert!(cause.downcast_ref::<std::io::Error>().is_some());
            assert!(
                error.to_string().contains("set `handlers.file.folder`"),
                "{error}"
            );
        }
    }
}
