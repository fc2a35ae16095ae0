//! Stores that were restored from a backup, that are other ones, or that lack most of what they held.

use sluicegate_config::source::Update;
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
    scene.put(&spec_key("c"), spec("c", ""));
    let revision = scene.put(&gate("a"), "false").revision;
    handle.restore(&backup);
    let now = scene.now();
    assert!(now.handlers["a"].enabled && now.handlers.len() == 2);
    assert!(now.revision < revision);
    assert!(!scene.put(&gate("a"), "false").handlers["a"].enabled);
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
fn a_start_takes_what_stands_there_and_the_cache_is_of_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", ""));
    drop(Scene::new(store.clone(), settings(Some(&cache))));
    let backup = store.handle().back_up();
    // Another store: what it says counts at a start, and the cache of the first one is not used for it.
    store.handle().wipe();
    put(&store, &spec_key("a"), "garbage: [");
    put(&store, &spec_key("b"), spec("b", ""));
    put(&store, &gate("a"), "false");
    let scene = Scene::new(store.clone(), settings(Some(&cache)));
    let names: Vec<&String> = scene.last.handlers.keys().collect();
    assert_eq!(names, ["b"]);
    drop(scene);

    // A start without the store goes by the cache; then another store answers.
    store.handle().set_away(true);
    let mut scene = Scene::new(store.clone(), settings(Some(&cache)));
    store.handle().restore(&backup);
    store.handle().set_away(false);
    let told = scene.told();
    assert!(told.last().unwrap().starts_with("held: "), "{told:?}");
    assert!(scene.last.handlers.contains_key("b"));
}
