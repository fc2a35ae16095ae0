//! Stores that were restored from a backup, replaced by another store, or have lost most of their keys.

use std::sync::Arc;

use sluicegate_store::{Expected, MemoryStore, Store};
use sluicegate_sync::source::{SpecSource, StoreSource, StoreSourceSettings, Update};

use super::{Harness, gate, put, settings, spec, spec_key};

impl Harness {
    /// A store with these handlers.
    fn with(names: &[&str]) -> Self {
        let store = MemoryStore::new();
        for name in names {
            put(&store, &spec_key(name), spec(name, ""));
        }
        Self::new(store, settings(None))
    }

    /// All updates since the last call; snapshots as the names of their handlers.
    fn take_updates(&mut self) -> Vec<String> {
        let updates: Vec<Update> = self.updates.try_iter().collect();
        updates
            .into_iter()
            .map(|update| match update {
                Update::Snapshot(now) => {
                    let names: Vec<&str> = now.handlers.keys().map(String::as_str).collect();
                    names.join(" ")
                }
                Update::Held { reason } => format!("held: {reason}"),
                Update::Released => "released".to_owned(),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

#[test]
fn a_store_that_was_restored_is_followed_again() {
    let mut harness = Harness::with(&["a", "b"]);
    let handle = harness.store.handle();
    let backup = handle.back_up();
    let revision = harness.put(&gate("a"), "false").revision;
    // Changes that a watch has delivered are intended.
    harness.put(&spec_key("c"), spec("c", ""));
    harness.delete(&spec_key("c"));
    handle.restore(&backup);
    let now = harness.now();
    assert!(now.handlers["a"].enabled && now.handlers.len() == 2);
    assert!(now.revision < revision);
    assert!(!harness.put(&gate("a"), "false").handlers["a"].enabled);
}

/// Clusters created with the same flags have the same cluster id.
#[test]
fn a_restored_store_that_lacks_or_changes_a_spec_is_held_back() {
    let mut harness = Harness::with(&["a", "b"]);
    let handle = harness.store.handle();
    let backup = handle.back_up();
    harness.put(&spec_key("c"), spec("c", ""));
    let known = handle.back_up();
    harness.take_updates();
    handle.restore(&backup);
    let updates = harness.take_updates();
    assert_eq!(updates.len(), 1, "{updates:?}");
    let expected = "held: memory went back behind revision 3: it was restored, or is another store; of 3 handler specs 1 are missing and 0 differ";
    assert_eq!(updates[0], expected);
    // Writes raise its revision past the known one, which does not change the result.
    for open in ["false", "true", "false"] {
        put(&harness.store, &gate("a"), open);
    }
    assert_eq!(harness.take_updates(), Vec::<String>::new());
    handle.restore(&known);
    assert_eq!(
        harness.take_updates(),
        ["released"],
        "the earlier content is back"
    );

    put(&harness.store, &spec_key("a"), spec("a", "workers: 2\n"));
    harness.take_updates();
    handle.restore(&known);
    let updates = harness.take_updates();
    assert!(updates[0].ends_with("0 are missing and 1 differ"));
    assert!(harness.watch.accept());
    assert_eq!(harness.take_updates(), ["released", "a b c"]);
}

#[test]
fn another_stores_content_is_held_back_until_accepted() {
    let mut harness = Harness::with(&["a", "b"]);
    let other = Harness::with(&["a", "b", "c"]);
    harness.take_updates();
    let handle = harness.store.handle();
    let backup = handle.back_up();
    handle.restore(&other.store.handle().back_up());
    let updates = harness.take_updates();
    assert_eq!(updates.len(), 1, "{updates:?}");
    assert!(
        updates[0].starts_with("held: memory is another store than before"),
        "{updates:?}"
    );
    // Later writes are not applied either, and are not reported again.
    put(&harness.store, &gate("a"), "false");
    assert_eq!(harness.take_updates(), Vec::<String>::new());
    handle.restore(&backup);
    assert_eq!(
        harness.take_updates(),
        ["released"],
        "the earlier content is back"
    );

    handle.restore(&other.store.handle().back_up());
    put(&harness.store, &gate("a"), "false");
    assert!(harness.take_updates()[0].starts_with("held: "));
    assert!(harness.watch.accept());
    assert_eq!(harness.take_updates(), ["released", "a b c"]);
    assert!(!harness.watch.accept(), "nothing is held back");
    assert!(!harness.put(&gate("b"), "false").handlers["b"].enabled);
}

#[test]
fn a_listing_that_lacks_most_specs_is_held_back_and_watch_events_are_not() {
    let mut harness = Harness::with(&["a", "b", "c", "d"]);
    let handle = harness.store.handle();
    for name in ["a", "b", "c"] {
        harness.delete(&spec_key(name));
    }
    assert_eq!(harness.now().handlers.len(), 1, "a watch saw the delete");
    for name in ["a", "b", "c"] {
        harness.put(&spec_key(name), spec(name, ""));
    }
    harness.take_updates();
    handle.set_deaf(true);
    for name in ["a", "b", "c"] {
        harness
            .store
            .write(&spec_key(name), None, Expected::Any)
            .unwrap();
    }
    handle.set_deaf(false);
    handle.relist();
    let updates = harness.take_updates();
    let reason = "held: 3 of 4 handler specs are missing in memory";
    assert!(updates.last().unwrap().starts_with(reason), "{updates:?}");
    // The reason is current.
    put(&harness.store, &spec_key("x"), spec("x", ""));
    harness
        .store
        .write(&spec_key("d"), None, Expected::Any)
        .unwrap();
    let updates = harness.take_updates();
    assert!(
        updates.last().unwrap().starts_with("held: 4 of 4"),
        "{updates:?}"
    );
    put(&harness.store, &spec_key("a"), spec("a", ""));
    put(&harness.store, &spec_key("b"), spec("b", ""));
    let updates = harness.take_updates();
    assert_eq!(
        updates.last().unwrap(),
        "a b x",
        "half of them are present: {updates:?}"
    );
}

#[test]
fn held_content_is_still_held_after_a_restart_and_the_cache_keeps_lost_specs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    for name in ["a", "b"] {
        put(&store, &spec_key(name), spec(name, ""));
    }
    let handle = store.handle();
    let start = || Harness::new(store.clone(), settings(Some(&cache)));
    let mut harness = start();
    let before = handle.back_up();
    harness.put(&spec_key("c"), spec("c", ""));
    let whole = handle.back_up();
    drop(harness);

    let held = |harness: &mut Harness, expected: &str| {
        let names: Vec<&str> = harness.last.handlers.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "c"], "the last specs stay active");
        let updates = harness.take_updates();
        assert_eq!(updates.len(), 1, "{updates:?}");
        assert!(updates[0].starts_with(expected), "{updates:?}");
    };
    for _ in 0..2 {
        // It was restored while no service ran; by the second start its revision has passed the known one.
        handle.restore(&before);
        let mut harness = start();
        held(&mut harness, "held: memory went back behind revision 3");
        for open in ["false", "true", "false"] {
            put(&store, &gate("a"), open);
        }
        drop(harness);
        held(&mut start(), "held: memory went back behind revision 3");
    }
    // Another store; and the same store without most specs.
    handle.wipe();
    put(&store, &spec_key("d"), spec("d", ""));
    held(&mut start(), "held: memory is another store than before");
    handle.restore(&whole);
    for name in ["a", "b"] {
        store.write(&spec_key(name), None, Expected::Any).unwrap();
    }
    held(&mut start(), "held: 2 of 3 handler specs are missing");

    let fresh = StoreSourceSettings {
        require_fresh: true,
        ..settings(Some(&cache))
    };
    let refused = StoreSource::new(Arc::new(store.clone()), fresh).snapshot();
    let refused = refused.unwrap_err().to_string();
    for words in ["2 of 3", "require_fresh", "delete ", "handlers.cache"] {
        assert!(refused.contains(words), "no `{words}` in: {refused}");
    }

    // It can also be accepted after the restart, permanently.
    let mut harness = start();
    held(&mut harness, "held: ");
    assert!(harness.watch.accept());
    assert_eq!(harness.take_updates(), ["released", "c"]);
    drop(harness);
    let mut harness = start();
    assert_eq!(harness.last.handlers.len(), 1);
    assert_eq!(harness.take_updates(), Vec::<String>::new());
}

#[test]
fn a_start_from_the_cache_does_not_apply_another_stores_content() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    put(&store, &spec_key("b"), spec("b", ""));
    let other = Harness::with(&["a"]).store.handle().back_up();
    drop(Harness::new(store.clone(), settings(Some(&cache))));
    // A start without the store uses the cache; then another store answers.
    store.handle().set_away(true);
    let mut harness = Harness::new(store.clone(), settings(Some(&cache)));
    store.handle().restore(&other);
    store.handle().set_away(false);
    let updates = harness.take_updates();
    assert!(updates.last().unwrap().starts_with("held: "), "{updates:?}");
    assert!(harness.last.handlers.contains_key("b"));
}
