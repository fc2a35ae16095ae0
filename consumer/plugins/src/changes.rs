//! What a new snapshot changes, for the log: derived from what the registry did, not from a comparison of its own.

use std::sync::Arc;

use sluicegate_config::Snapshot;

use super::managed::PendingChange;
use super::reconcile::{Required, SpecChange};
use super::registry::Inner;

/// What a new snapshot changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The changed specs, by handler, with what they require.
    pub changes: Vec<(String, SpecChange)>,
    /// Whether generations are left to prepare.
    pub prepares: bool,
}

impl Inner {
    /// What changed since the snapshot `before`; called after the handlers were brought to the present one.
    pub(super) fn changes_since(&self, before: &Snapshot) -> Vec<(String, SpecChange)> {
        let now = &self.snapshot.handlers;
        let gone = before.handlers.keys();
        let removed = gone
            .filter(|name| !now.contains_key(*name))
            .map(|name| (name.clone(), SpecChange::Removed));
        let changed = now.iter().filter_map(|(name, spec)| {
            let change = match before.handlers.get(name) {
                None => SpecChange::Added,
                Some(old) if Arc::ptr_eq(old, spec) => return None,
                Some(old) => SpecChange::between(old, spec, self.required_of(name))?,
            };
            Some((name.clone(), change))
        });
        removed.chain(changed).collect()
    }

    /// What the pending change of a handler requires.
    fn required_of(&self, name: &str) -> Required {
        let live = self.live.get(name);
        let pending = live.and_then(|live| match &live.next {
            PendingChange::Nothing => None,
            PendingChange::Wanted(wanted) | PendingChange::Preparing(wanted, _) => {
                Some((live.generation.as_ref()?, wanted))
            }
        });
        pending.map_or(Required::Nothing, |(serving, wanted)| {
            let found = Some(wanted.artefact.identity.sha256.as_str());
            serving.required(&wanted.spec, found)
        })
    }
}
