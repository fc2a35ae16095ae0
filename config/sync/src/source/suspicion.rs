//! Decides whether a full listing of a store may be the result of data loss rather than of intended deletes. Pure.
//!
//! A store that lost its keys, was replaced by another, or was restored from a backup cannot be told from one in which handlers
//! were deleted. Changes that a watch of the same store delivered one by one are intended; changes that appear only in a listing
//! are compared with the applied state.

use std::sync::Arc;

use sluicegate_config::control::ControlKey;
use sluicegate_store::{StoreAddress, Tree};

/// The state that a listing is compared with.
pub(super) struct Known {
    /// The applied state, or its copy in the cache.
    pub(super) applied: Arc<Tree>,
    /// The store was listed at a lower revision than the applied one, and its content has not been applied since.
    pub(super) went_back: bool,
}

impl Known {
    /// `applied` was just applied.
    pub(super) fn new(applied: Arc<Tree>) -> Self {
        Self {
            applied,
            went_back: false,
        }
    }

    /// Whether the store is at an earlier state than the applied one. Later writes raise its revision but do not restore the state.
    pub(super) fn is_behind(&self, now: &Tree) -> bool {
        let is_it = !now.is_other_than(&self.applied);
        self.went_back || is_it && now.revision < self.applied.revision
    }

    /// Why `now`, listed from `store`, must not be applied without an operator's consent; `None` if it may.
    pub(super) fn suspicion(&self, now: &Tree, store: &StoreAddress) -> Option<String> {
        let applied = &*self.applied;
        if now.is_other_than(applied) {
            let named = |tree: &Tree| tree.identity.as_deref().unwrap_or_default().to_owned();
            return Some(format!(
                "{store} is another store than before: its id is {}, and was {}",
                named(now),
                named(applied)
            ));
        }
        let (mut known, mut missing, mut other) = (0_usize, 0_usize, 0_usize);
        for (key, entry) in &applied.entries {
            if !matches!(key, ControlKey::Spec(_)) {
                continue;
            }
            known += 1;
            match now.get(key) {
                None => missing += 1,
                Some(there) => other += usize::from(there.value != entry.value),
            }
        }
        if missing * 2 > known {
            return Some(format!(
                "{missing} of {known} handler specs are missing in {store}, and no watch saw their deletion"
            ));
        }
        // Clusters created with the same settings have the same identity, and their revisions start from the beginning.
        let lacks = missing + other > 0 && self.is_behind(now);
        lacks.then(|| {
            format!(
                "{store} went back behind revision {}: it was restored, or is another store; of {known} handler specs {missing} are missing and {other} differ",
                applied.revision
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_store::{Entry, KeyVersion, TreeChange};

    use super::*;

    fn tree(identity: &str, revision: u64, specs: &[(&str, &str)]) -> Tree {
        let mut tree = Tree {
            identity: Some(identity.into()),
            ..Tree::default()
        };
        let changes = specs.iter().map(|(name, text)| {
            let stamp = KeyVersion {
                revision: 1,
                version: 1,
            };
            let value = text.as_bytes().into();
            TreeChange::put(ControlKey::Spec((*name).into()), Entry { value, stamp })
        });
        tree.apply(changes.collect(), revision);
        tree
    }

    #[test]
    fn losses_are_held_back_and_changes_are_not() {
        const ALL: &[(&str, &str)] = &[("a", "1"), ("b", "1"), ("c", "1")];
        const CHANGED: &[(&str, &str)] = &[("a", "2"), ("b", "1"), ("c", "1")];
        let store = StoreAddress {
            kind: "etcd".to_owned(),
            servers: Vec::new(),
            below: String::new(),
        };
        let applied = Arc::new(tree("x", 10, ALL));
        for (now, went_back, said) in [
            (tree("x", 11, &ALL[..2]), false, None),
            (tree("x", 11, CHANGED), false, None),
            (tree("x", 9, ALL), false, None),
            (tree("x", 9, &ALL[1..]), false, Some("1 are missing")),
            (tree("x", 9, CHANGED), false, Some("1 differ")),
            // It was listed at an earlier revision before.
            (tree("x", 11, CHANGED), true, Some("behind revision 10")),
            (tree("x", 11, ALL), true, None),
            (tree("x", 11, &ALL[2..]), false, Some("2 of 3")),
            (tree("y", 11, ALL), false, Some("another store")),
        ] {
            let known = Known {
                applied: Arc::clone(&applied),
                went_back,
            };
            let suspicion = known.suspicion(&now, &store);
            let as_said = match (&suspicion, said) {
                (Some(suspicion), Some(said)) => suspicion.contains(said),
                (suspicion, said) => suspicion.is_none() && said.is_none(),
            };
            assert!(as_said, "{now:?}: {suspicion:?}, not {said:?}");
        }
        let known = Known::new(applied);
        assert!(known.is_behind(&tree("x", 9, ALL)));
        // Revisions of different stores are not comparable.
        assert!(!known.is_behind(&tree("y", 9, ALL)));
    }
}
