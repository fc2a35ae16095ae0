//! Writes and deletes a handler's keys by compare-and-set, so that concurrent operators do not overwrite each other.

use std::path::Path;

use serde::Serialize;
use sluicegate_config::control::{ControlKey, Rollout, check_value};
use sluicegate_config::document::did_you_mean;
use sluicegate_config::problem::Problems;
use sluicegate_store::{Entry, Expected, KeyVersion, Store, StoreError, Tree};

use super::FleetError;
use crate::source::name_in_spec;

/// Result of writing a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecWrite {
    /// The handler.
    pub name: String,
    /// The place of its spec.
    pub place: String,
    /// The revision from which on members have the spec.
    pub revision: u64,
    /// Whether the text differed from the previous one.
    pub changed: bool,
    /// Keys that override parts of the spec, for messages.
    pub overridden_by: Vec<String>,
}

/// Result of deleting a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// The handler.
    pub name: String,
    /// The places of the deleted keys.
    pub places: Vec<String>,
    /// The revision from which on members run without it.
    pub revision: u64,
}

/// The name of the handler declared by a spec's text.
///
/// # Errors
/// [`FleetError::Spec`] when the name is missing or invalid; `file` is named in problems.
pub fn name_of_spec(text: &str, file: Option<&Path>) -> Result<String, FleetError> {
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

/// Writes the spec `text`, provided that the handler's spec is still at revision `expect` (0 for none), if given, and
/// unchanged since it was read.
///
/// # Errors
/// [`FleetError`]; nothing is changed then.
pub fn apply_spec(
    store: &dyn Store,
    text: &str,
    file: Option<&Path>,
    expect: Option<u64>,
) -> Result<SpecWrite, FleetError> {
    let name = name_of_spec(text, file)?;
    let tree = store.list()?;
    refuse_in_progress(&tree, &name)?;
    let key = ControlKey::spec(&name)?;
    let there = tree.get(&key);
    let found = there.map_or(0, |entry| entry.stamp.revision);
    if let Some(expected) = expect
        && expected != found
    {
        return Err(FleetError::Moved {
            place: store.locate(&key),
            expected,
            found,
        });
    }
    let same = there.is_some_and(|entry| &*entry.value == text.as_bytes());
    let revision = match same {
        true => found,
        false => {
            store
                .write(&key, Some(text.as_bytes()), expected(there))?
                .revision
        }
    };
    let overriding = [
        ControlKey::Enabled(name.clone()),
        ControlKey::Config(name.clone()),
    ];
    let overriding = overriding.iter().filter(|key| tree.get(key).is_some());
    Ok(SpecWrite {
        place: store.locate(&key),
        overridden_by: overriding.map(|key| store.locate(key)).collect(),
        name,
        revision,
        changed: !same,
    })
}

/// Deletes every key of the handler `name`, the spec first.
///
/// # Errors
/// [`FleetError`]; keys that were deleted before a failure stay deleted.
pub fn delete_handler(store: &dyn Store, name: &str) -> Result<Deleted, FleetError> {
    let tree = store.list()?;
    let spec = ControlKey::spec(name)?;
    let keys: Vec<&ControlKey> = tree
        .entries
        .keys()
        .filter(|key| key.handler() == Some(name))
        .collect();
    if keys.is_empty() {
        return Err(unknown(&tree, name));
    }
    refuse_in_progress(&tree, name)?;
    // A handler does not run without its spec, so the spec is deleted first.
    let others = keys.into_iter().filter(|key| **key != spec);
    let mut places = Vec::new();
    let mut revision = 0;
    for key in std::iter::once(&spec).chain(others) {
        if let Some(entry) = tree.get(key) {
            let stamp: KeyVersion = store.write(key, None, Expected::At(entry.stamp))?;
            revision = revision.max(stamp.revision);
            places.push(store.locate(key));
        }
    }
    Ok(Deleted {
        name: name.to_owned(),
        places,
        revision,
    })
}

/// Opens or closes a gate. Returns the revision from which on members have the change.
///
/// # Errors
/// [`FleetError`]; nothing is changed then.
pub fn set_gate(store: &dyn Store, name: &str, open: bool) -> Result<u64, FleetError> {
    let tree = store.list()?;
    let spec = ControlKey::spec(name)?;
    let Some(spec) = tree.get(&spec) else {
        return Err(unknown(&tree, name));
    };
    let key = ControlKey::enabled(name)?;
    let there = tree.get(&key);
    let value: &[u8] = if open { b"true" } else { b"false" };
    if let Some(entry) = there
        && entry.value.trim_ascii() == value
    {
        return Ok(entry.stamp.revision.max(spec.stamp.revision));
    }
    Ok(store.write(&key, Some(value), expected(there))?.revision)
}

/// The expected version for a compare-and-set of the value that was read.
pub(super) fn expected(there: Option<&Entry>) -> Expected {
    there.map_or(Expected::Absent, |entry| Expected::At(entry.stamp))
}

fn refuse_in_progress(tree: &Tree, name: &str) -> Result<(), FleetError> {
    match tree.get(&ControlKey::rollout(name)?) {
        Some(entry) => Err(in_progress(name, entry)),
        None => Ok(()),
    }
}

/// The error for an operation during a rollout.
pub(super) fn in_progress(name: &str, entry: &Entry) -> FleetError {
    let rollout = Rollout::from_json(&entry.value).unwrap_or_default();
    let or_unknown = |text: String| match text.is_empty() {
        true => "an unknown operator".to_owned(),
        false => text,
    };
    FleetError::InProgress {
        name: name.to_owned(),
        by: or_unknown(rollout.by),
        started: rollout.started,
    }
}

/// The error for a name without a spec.
pub(super) fn unknown(tree: &Tree, name: &str) -> FleetError {
    let known = tree.entries.keys().filter_map(|key| match key {
        ControlKey::Spec(name) => Some(name.as_str()),
        _ => None,
    });
    FleetError::Unknown {
        name: name.to_owned(),
        hint: did_you_mean(name, known),
    }
}

/// Whether a write failed because another writer was faster.
pub(super) fn is_conflict(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict { .. })
}
