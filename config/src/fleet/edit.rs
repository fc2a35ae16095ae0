//! Writing a handler's keys: each compared and set, so that two operators do not overwrite each other.

use std::path::Path;

use serde::Serialize;

use super::FleetError;
use crate::document::did_you_mean;
use crate::problem::Problems;
use crate::rollout::Rollout;
use crate::source::name_in_spec;
use crate::store::{ControlKey, Entry, Expected, KeyVersion, Store, StoreError, Tree, check_value};

/// What a write of a spec did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecWrite {
    /// The handler.
    pub name: String,
    /// Where its spec stands.
    pub place: String,
    /// The revision from which on members have it.
    pub revision: u64,
    /// Whether something else stood there before.
    pub changed: bool,
    /// Keys that take the place of parts of the spec, for people.
    pub overridden_by: Vec<String>,
}

/// What a delete did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// The handler.
    pub name: String,
    /// Where the keys stood that are gone.
    pub places: Vec<String>,
    /// The revision from which on members do without it.
    pub revision: u64,
}

/// The name of the handler that a spec's text declares.
///
/// # Errors
/// [`FleetError::Spec`] when there is none, or no handler can have it; `file` is named in problems.
pub fn name_of_spec(text: &str, file: Option<&Path>) -> Result<String, FleetError> {
    let missing = "has no `name` that can be read; a spec begins with `name: …`";
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

/// Writes the spec `text`, if the handler's spec is still at revision `expect` (0 for none), where that is given, and
/// in any case as it was read.
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

/// Deletes every key of the handler `name`.
///
/// # Errors
/// [`FleetError`]; keys that were deleted before a later one failed stay deleted, the spec first.
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
    // Without its spec nothing of a handler runs, so that goes first.
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

/// Opens or shuts a gate, and gives the revision from which on members have it.
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

/// The compare-and-set of what was read.
pub(super) fn expected(there: Option<&Entry>) -> Expected {
    there.map_or(Expected::Absent, |entry| Expected::At(entry.stamp))
}

fn refuse_in_progress(tree: &Tree, name: &str) -> Result<(), FleetError> {
    match tree.get(&ControlKey::rollout(name)?) {
        Some(entry) => Err(in_progress(name, entry)),
        None => Ok(()),
    }
}

/// The refusal beside a rollout.
pub(super) fn in_progress(name: &str, entry: &Entry) -> FleetError {
    let rollout = Rollout::from_json(&entry.value).unwrap_or_default();
    let or_somebody = |text: String| match text.is_empty() {
        true => "somebody".to_owned(),
        false => text,
    };
    FleetError::InProgress {
        name: name.to_owned(),
        by: or_somebody(rollout.by),
        started: rollout.started,
    }
}

/// The refusal of a name that no spec has.
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

/// Whether a write failed since somebody else was faster.
pub(super) fn is_conflict(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict { .. })
}
