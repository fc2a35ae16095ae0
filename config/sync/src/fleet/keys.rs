//! Writes and deletes a handler's keys by compare-and-set, so that concurrent operators do not overwrite each other.

use sluicegate_config::control::{ControlKey, Rollout, read_switch, read_text};
use sluicegate_config::document::{Lookup, did_you_mean};
use sluicegate_config::spec::{Origin, read_from};
use sluicegate_store::{Entry, Expected, KeyVersion, Store, StoreError, Tree};

use super::FleetError;
use super::writes::{Deleted, GateKeyPolicy, SpecWrite};
use crate::source::GateWrite;

/// See [`super::SpecBackend::apply`]; `text` is the checked spec of `name`.
pub(super) fn apply(
    store: &dyn Store,
    name: String,
    text: &str,
    expect: Option<u64>,
) -> Result<SpecWrite, FleetError> {
    let tree = store.list()?;
    refuse_in_progress(&tree, &name)?;
    let key = ControlKey::spec(&name)?;
    let there = tree.get(&key);
    let found = there.map_or(0, |entry| entry.stamp.revision);
    check_revision(store, &key, expect, found)?;
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

/// Deletes every key of the handler `name`, the spec first. Keys that were deleted before a failure stay deleted.
pub(super) fn delete(store: &dyn Store, name: &str) -> Result<Deleted, FleetError> {
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

/// See [`super::SpecBackend::write_gate`].
pub(super) fn write_gate(
    store: &dyn Store,
    name: &str,
    open: bool,
    policy: GateKeyPolicy,
) -> Result<GateWrite, FleetError> {
    let tree = store.list()?;
    let (key, spec_key) = (ControlKey::enabled(name)?, ControlKey::spec(name)?);
    let Some(spec) = tree.get(&spec_key) else {
        return Err(unknown(&tree, name));
    };
    let there = tree.get(&key);
    let (now, says) = match (there, policy) {
        (Some(entry), _) => (read_switch(&entry.value, "").ok(), &key),
        (None, GateKeyPolicy::Always) => (None, &key),
        (None, GateKeyPolicy::UnlessDeclared) => (declared_gate(&tree, name, spec), &spec_key),
    };
    if now == Some(open) {
        // Members that have not seen these writes yet may still have the other state.
        let seen = there.map_or(0, |entry| entry.stamp.revision);
        return Ok(GateWrite {
            origin: store.locate(says),
            changed: false,
            revision: Some(seen.max(spec.stamp.revision)),
        });
    }
    let value: &[u8] = if open { b"true" } else { b"false" };
    let written = store.write(&key, Some(value), expected(there))?;
    Ok(GateWrite {
        origin: store.locate(&key),
        changed: true,
        revision: Some(written.revision),
    })
}

/// The gate that the handler's `spec` declares for every member: `None` if the spec is invalid, or during a rollout, in which
/// members have another spec.
fn declared_gate(tree: &Tree, name: &str, spec: &Entry) -> Option<bool> {
    if tree.get(&ControlKey::Rollout(name.to_owned())).is_some() {
        return None;
    }
    let origin = Origin {
        place: None,
        lookup: Lookup::Form,
    };
    let text = read_text(&spec.value, "").ok()?;
    let located = read_from(text, origin).ok()?;
    Some(located.spec.enabled)
}

/// Checks that the revision `found` of a key is the one that the caller expects, if any.
pub(super) fn check_revision(
    store: &dyn Store,
    key: &ControlKey,
    expect: Option<u64>,
    found: u64,
) -> Result<(), FleetError> {
    match expect {
        Some(expected) if expected != found => Err(FleetError::Moved {
            place: store.locate(key),
            expected,
            found,
        }),
        _ => Ok(()),
    }
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
