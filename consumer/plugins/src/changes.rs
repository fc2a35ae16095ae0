//! What a new snapshot changes, for the log: derived from what the registry did, not from a comparison of its own.

use std::sync::Arc;

use sluicegate_config::Snapshot;

use super::reconcile::{SpecChange, SpecEffect};

/// What a new snapshot changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The changed specs, by handler, with what happens to them.
    pub changes: Vec<(String, SpecChange)>,
    /// Whether generations are left to prepare.
    pub prepares: bool,
}

/// What changed from one snapshot to the next, given what happens to the spec of a handler.
pub(super) fn between(
    before: &Snapshot,
    after: &Snapshot,
    effect_of: impl Fn(&str) -> SpecEffect,
) -> Vec<(String, SpecChange)> {
    let now = &after.handlers;
    let gone = before.handlers.keys();
    let removed = gone
        .filter(|name| !now.contains_key(*name))
        .map(|name| (name.clone(), SpecChange::Removed));
    let changed = now.iter().filter_map(|(name, spec)| {
        let change = match before.handlers.get(name) {
            None => SpecChange::Added,
            Some(old) if Arc::ptr_eq(old, spec) => return None,
            Some(old) => SpecChange::between(old, spec, effect_of(name))?,
        };
        Some((name.clone(), change))
    });
    removed.chain(changed).collect()
}
