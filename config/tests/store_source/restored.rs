//! Stores that were restored from a backup, that are other ones, or that lack most of what they held.

use std::sync::Arc;

use sluicegate_config::source::{SpecSource, StoreSource, StoreSourceSettings, Update};
use sluicegate_config::store::{Expected, MemoryStore, Store};

use super::{Scene, gate, put, settings, spec, spec_key};

impl Scene {
    /// A store with these handlers.
    fn with(names: &[&str]) -> Self {
        let store = MemoryStore::new();
        for name in names {
            put(&store, &spec_key(name), spec(name, ""));
        }
        Self::new(store, settings(None))
    }

    /// Everything that was told since this was last asked; snapshots as the names of their handlers.
    fn told(&mut self) -> Vec<String> {
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
    let mut scene = Scene::with(&["a", "b"]);
    let handle = scene.store.handle();
    let backup = handle.back_up();
    let revision = scene.put(&gate("a"), "false").revision;
    // What a watch has told of is known to be meant.
    scene.put(&spec_key("c"), spec("c", ""));
    scene.delete(&spec_key("c"));
    handle.restore(&backup);
    let now = scene.now();
    assert!(now.handlers["a"].enabled && now.handlers.len() == 2);
    assert!(now.revision < revision);
    assert!(!scene.put(&gate("a"), "false").handlers["a"].enabled);
}

/// Clusters that were set up with the same flags have one cluster id.
#[test]
fn a_store_that_went_back_and_lacks_a_spec_or_has_another_one_is_held() {
    let mut scene = Scene::with(&["a", "b"]);
    let handle = scene.store.handle();
    let backup = handle.back_up();
    scene.put(&spec_key("c"), spec("c", ""));
    let known = handle.back_up();
    scene.told();
    handle.restore(&backup);
    let told = scene.told();
    assert_eq!(told.len(), 1, "{told:?}");
    let said = "held: memory went back behind revision 3: it was restored, or is another store; of 3 handler specs 1 are missing there, and 0 are other ones";
    assert_eq!(told[0], said);
    // Writes to it raise its revision past what was known, and it is what it is.
    for open in ["false", "true", "false"] {
        put(&scene.store, &gate("a"), open);
    }
    assert_eq!(scene.told(), Vec::<String>::new());
    handle.restore(&known);
    assert_eq!(scene.told(), ["released"], "it is as it was");

    put(&scene.store, &spec_key("a"), spec("a", "workers: 2\n"));
    scene.told();
    handle.restore(&known);
    let told = scene.told();
    assert!(told[0].ends_with("0 are missing there, and 1 are other ones"));
    assert!(scene.watch.accept());
    assert_eq!(scene.told(), ["released", "a b c"]);
}

#[test]
fn what_another_store_says_is_held_until_it_is_accepted() {
    let mut scene = Scene::with(&["a", "b"]);
    let other = Scene::with(&["a", "b", "c"]);
    scene.told();
    let handle = scene.store.handle();
    let backup = handle.back_up();
    handle.restore(&other.store.handle().back_up());
    let told = scene.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("held: memory is another store than before"),
        "{told:?}"
    );
    // What is written there meanwhile is not applied either, and is told no second time.
    put(&scene.store, &gate("a"), "false");
    assert_eq!(scene.told(), Vec::<String>::new());
    handle.restore(&backup);
    assert_eq!(scene.told(), ["released"], "it is as it was");

    handle.restore(&other.store.handle().back_up());
    put(&scene.store, &gate("a"), "false");
    assert!(scene.told()[0].starts_with("held: "));
    assert!(scene.watch.accept());
    assert_eq!(scene.told(), ["released", "a b c"]);
    assert!(!scene.watch.accept(), "nothing is held");
    assert!(!scene.put(&gate("b"), "false").handlers["b"].enabled);
}

#[test]
fn a_listing_that_lacks_most_specs_is_held_and_what_a_watch_sees_is_not() {
    let mut scene = Scene::with(&["a", "b", "c", "d"]);
    let handle = scene.store.handle();
    for name in ["a", "b", "c"] {
        scene.delete(&spec_key(name));
    }
    assert_eq!(scene.now().handlers.len(), 1, "a watch saw it");
    for name in ["a", "b", "c"] {
        scene.put(&spec_key(name), spec(name, ""));
    }
    scene.told();
    handle.set_deaf(true);
    for name in ["a", "b", "c"] {
        scene
            .store
            .write(&spec_key(name), None, Expected::Any)
            .unwrap();
    }
    handle.set_deaf(false);
    handle.relist();
    let told = scene.told();
    let reason = "held: 3 of 4 handler specs are missing in memory";
    assert!(told.last().unwrap().starts_with(reason), "{told:?}");
    // The reason is the present one.
    put(&scene.store, &spec_key("x"), spec("x", ""));
    scene
        .store
        .write(&spec_key("d"), None, Expected::Any)
        .unwrap();
    let told = scene.told();
    assert!(told.last().unwrap().starts_with("held: 4 of 4"), "{told:?}");
    put(&scene.store, &spec_key("a"), spec("a", ""));
    put(&scene.store, &spec_key("b"), spec("b", ""));
    let told = scene.told();
    assert_eq!(
        told.last().unwrap(),
        "a b x",
        "half of them are there: {told:?}"
    );
}

#[test]
fn what_is_held_is_held_after_a_restart_and_the_cache_keeps_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    for name in ["a", "b"] {
        put(&store, &spec_key(name), spec(name, ""));
    }
    let handle = store.handle();
    let start = || Scene::new(store.clone(), settings(Some(&cache)));
    let mut scene = start();
    let before = handle.back_up();
    scene.put(&spec_key("c"), spec("c", ""));
    let whole = handle.back_up();
    drop(scene);

    let held = |scene: &mut Scene, said: &str| {
        let names: Vec<&str> = scene.last.handlers.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "c"], "the last specs run on");
        let told = scene.told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(said), "{told:?}");
    };
    for _ in 0..2 {
        // It went back while nobody looked; the second start finds it further on than what is known.
        handle.restore(&before);
        let mut scene = start();
        held(&mut scene, "held: memory went back behind revision 3");
        for open in ["false", "true", "false"] {
            put(&store, &gate("a"), open);
        }
        drop(scene);
        held(&mut start(), "held: memory went back behind revision 3");
    }
    // Another store; and the same one, with most specs gone.
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

    // It can be accepted after the restart as before it, and stays so.
    let mut scene = start();
    held(&mut scene, "held: ");
    assert!(scene.watch.accept());
    assert_eq!(scene.told(), ["released", "c"]);
    drop(scene);
    let mut scene = start();
    assert_eq!(scene.last.handlers.len(), 1);
    assert_eq!(scene.told(), Vec::<String>::new());
}

#[test]
fn a_start_by_the_cache_does_not_take_what_another_store_says() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    put(&store, &spec_key("b"), spec("b", ""));
    let other = Scene::with(&["a"]).store.handle().back_up();
    drop(Scene::new(store.clone(), settings(Some(&cache))));
    // A start without the store goes by the cache; then another store answers.
    store.handle().set_away(true);
    let mut scene = Scene::new(store.clone(), settings(Some(&cache)));
    store.handle().restore(&other);
    store.handle().set_away(false);
    let told = scene.told();
    assert!(told.last().unwrap().starts_with("held: "), "{told:?}");
    assert!(scene.last.handlers.contains_key("b"));
}
