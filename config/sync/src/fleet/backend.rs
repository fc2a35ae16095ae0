//! Where specs are stored, and the only writer of specs and gates there: operator commands call [`SpecBackend`] directly, and the
//! running service has it as the [`GateWriter`] of its source.
//!
//! ```text
//!  sluicegate handlers … ─► apply, delete, write_gate ─┐               ┌─► folder: a file is replaced if its text is as read
//!                                                      ├─► SpecBackend ┤
//!  admin API ─► GateWriter::set_gate ──────────────────┘               └─► store: a key is written if its version is as read
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluicegate_config::control::{ControlKey, check_value};
use sluicegate_config::problem::Problems;
use sluicegate_config::service::{HandlersConfig, HandlersFrom};
use sluicegate_store::{OpenStore, Store, StoreError};

use super::folder::FolderWriter;
use super::writes::{Deleted, GateKeyPolicy, SpecWrite};
use super::{FleetError, keys};
use crate::source::{GateError, GateWrite, GateWriter, name_in_spec};

/// The folder or store that contains specs.
pub struct SpecBackend(Kind);

enum Kind {
    Folder(FolderWriter),
    Store(Arc<dyn Store>),
}

impl SpecBackend {
    /// The backend of a service config. Contacts no store.
    ///
    /// # Errors
    /// [`StoreError`] if the settings are unusable, such as an unreadable certificate.
    pub fn open(config: &HandlersConfig) -> Result<Self, StoreError> {
        match &config.from {
            HandlersFrom::File { folder, .. } => Ok(Self::in_folder(folder.clone())),
            HandlersFrom::Etcd(settings) => settings.open().map(Self::in_store),
            HandlersFrom::ZooKeeper(settings) => settings.open().map(Self::in_store),
        }
    }

    /// The specs in the files of `folder`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self(Kind::Folder(FolderWriter::new(folder.into())))
    }

    /// The specs in the keys of `store`.
    #[must_use]
    pub fn in_store(store: Arc<dyn Store>) -> Self {
        Self(Kind::Store(store))
    }

    /// The store, for an operation that a folder does not support; `what` names what a folder lacks.
    ///
    /// # Errors
    /// [`FleetError::NeedsStore`] for a folder.
    pub fn store(&self, what: &'static str) -> Result<&dyn Store, FleetError> {
        match &self.0 {
            Kind::Folder(folder) => Err(FleetError::NeedsStore {
                folder: folder.path().to_path_buf(),
                what,
            }),
            Kind::Store(store) => Ok(&**store),
        }
    }

    /// Writes the spec `text` of the handler that it names, provided that the handler's spec is still at revision `expect` (0 for
    /// none), if given, and unchanged since it was read. `file` is named in problems of the text.
    ///
    /// # Errors
    /// [`FleetError`], such as [`FleetError::InProgress`] during a rollout of the handler, and [`FleetError::NeedsStore`] for
    /// `expect` in a folder. Nothing is changed then.
    pub fn apply(
        &self,
        text: &str,
        file: Option<&Path>,
        expect: Option<u64>,
    ) -> Result<SpecWrite, FleetError> {
        if expect.is_some() {
            self.store("members to wait for and no revisions")?;
        }
        let name = name_of_spec(text, file)?;
        match &self.0 {
            Kind::Folder(folder) => folder.apply(name, text),
            Kind::Store(store) => keys::apply(&**store, name, text, expect),
        }
    }

    /// Deletes every file, or every key, of the handler `name`.
    ///
    /// # Errors
    /// [`FleetError`]; files and keys that were deleted before a failure stay deleted.
    pub fn delete(&self, name: &str) -> Result<Deleted, FleetError> {
        match &self.0 {
            Kind::Folder(folder) => folder.delete(name),
            Kind::Store(store) => keys::delete(&**store, name),
        }
    }

    /// Opens or closes the gate of the handler `name`; a rollout of its spec does not prevent that.
    ///
    /// # Errors
    /// [`FleetError`]; nothing is changed then.
    pub fn write_gate(
        &self,
        name: &str,
        open: bool,
        policy: GateKeyPolicy,
    ) -> Result<GateWrite, FleetError> {
        match &self.0 {
            Kind::Folder(folder) => Ok(folder.write_gate(name, open)?),
            Kind::Store(store) => keys::write_gate(&**store, name, open, policy),
        }
    }
}

impl GateWriter for SpecBackend {
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError> {
        let store = match &self.0 {
            Kind::Folder(folder) => return folder.write_gate(handler, open),
            Kind::Store(store) => store,
        };
        let key = ControlKey::enabled(handler).map_err(|_| GateError::UnknownHandler {
            name: handler.to_owned(),
            hint: String::new(),
        })?;
        let written = keys::write_gate(&**store, handler, open, GateKeyPolicy::UnlessDeclared);
        written.map_err(|error| match error {
            FleetError::Unknown { name, hint } => GateError::UnknownHandler { name, hint },
            FleetError::Store(StoreError::Conflict { place }) => {
                GateError::Conflict { origin: place }
            }
            error => GateError::NotWritable {
                origin: store.locate(&key),
                reason: error.into(),
            },
        })
    }
}

/// The name of the handler declared by a spec's text.
///
/// # Errors
/// [`FleetError::Spec`] or [`FleetError::Name`] when the text is not a valid spec; `file` is named in problems.
pub(super) fn name_of_spec(text: &str, file: Option<&Path>) -> Result<String, FleetError> {
    let missing = "has no readable `name`; a spec starts with `name: …`";
    let name =
        name_in_spec(text).ok_or_else(|| FleetError::Spec(Problems::of_file(file, missing)))?;
    let key = ControlKey::spec(&name)?;
    let place = file.map(|file| file.display().to_string());
    check_value(
        &key,
        place.as_deref().unwrap_or("the spec"),
        text.as_bytes(),
    )
    .map_err(FleetError::Spec)?;
    Ok(name)
}
