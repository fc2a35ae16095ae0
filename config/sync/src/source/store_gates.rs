//! Writes gates to a store: compare-and-set on one key.

use std::sync::Arc;

use sluicegate_config::control::{ControlKey, read_switch, read_text};
use sluicegate_config::document::{Lookup, did_you_mean};
use sluicegate_config::spec::{Origin, read_from};
use sluicegate_store::{Expected, Store, StoreError, Tree};

use super::{GateError, GateWrite, GateWriter};

/// Gate writer for the handlers in a store.
pub(super) struct StoreGates {
    pub(super) store: Arc<dyn Store>,
}

impl GateWriter for StoreGates {
    fn set_gate(&self, handler: &str, open: bool) -> Result<GateWrite, GateError> {
        let unknown = |hint| GateError::UnknownHandler {
            name: handler.to_owned(),
            hint,
        };
        let key = ControlKey::enabled(handler).map_err(|_| unknown(String::new()))?;
        let origin = self.store.locate(&key);
        let failed = |error: StoreError| match error {
            StoreError::Conflict { place } => GateError::Conflict { origin: place },
            error => GateError::NotWritable {
                origin: origin.clone(),
                reason: error.to_string(),
            },
        };
        let tree = self.store.list().map_err(failed)?;
        let Some(declared) = declared(&tree, handler) else {
            let known = tree.entries.keys().filter_map(|key| match key {
                ControlKey::Spec(name) => Some(name.as_str()),
                _ => None,
            });
            return Err(unknown(did_you_mean(handler, known)));
        };
        let there = tree.get(&key);
        // A spec's `enabled` counts only if the spec is valid, and not on members of a rollout with another spec.
        let rolls_out = tree.get(&ControlKey::Rollout(handler.to_owned())).is_some();
        let declared = declared.filter(|_| !rolls_out);
        let now = there.map_or(declared, |entry| read_switch(&entry.value, &origin).ok());
        if now == Some(open) {
            // Members that have not seen these writes yet may still have the other state.
            let spec = tree.get(&ControlKey::Spec(handler.to_owned()));
            let seen = [spec, there].into_iter().flatten();
            let says = match there {
                Some(_) => origin,
                None => self.store.locate(&ControlKey::Spec(handler.to_owned())),
            };
            return Ok(GateWrite {
                origin: says,
                changed: false,
                revision: seen.map(|entry| entry.stamp.revision).max(),
            });
        }
        let value: &[u8] = if open { b"true" } else { b"false" };
        let expected = there.map_or(Expected::Absent, |entry| Expected::At(entry.stamp));
        let written = self.store.write(&key, Some(value), expected);
        let written = written.map_err(failed)?;
        Ok(GateWrite {
            origin,
            changed: true,
            revision: Some(written.revision),
        })
    }
}

/// The gate that a handler's spec declares: `None` without a spec, `Some(None)` if the spec is invalid.
fn declared(tree: &Tree, handler: &str) -> Option<Option<bool>> {
    let entry = tree.get(&ControlKey::Spec(handler.to_owned()))?;
    let origin = Origin {
        place: None,
        lookup: Lookup::Form,
    };
    let text = read_text(&entry.value, "").ok();
    let spec = text.and_then(|text| read_from(text, origin).ok());
    Some(spec.map(|located| located.spec.enabled))
}
