//! What the keys of a store become: gates, configs and rollouts over specs, last good values, garbage, outages, restarts.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sluicegate_config::service::References;
use sluicegate_config::source::{
    SnapshotError, SpecSource, StoreSource, StoreSourceSettings, Update, WatchHandle,
};
use sluicegate_config::store::{ControlKey, Expected, MemoryStore, Store, check_value};
use sluicegate_config::{Environment, MetricsLevel, RejectionEffect, Rollout, Snapshot};

mod garbage;
#[path = "store_source/restored.rs"]
mod restored;

use garbage::GARBAGE;

fn spec(name: &str, more: &str) -> String {
    format!("name: {name}\nplugin: relay\nroute: {{ topics: [t] }}\n{more}")
}

fn settings(cache: Option<&Path>) -> StoreSourceSettings {
    StoreSourceSettings {
        environment: Environment::from_iter([("SECRET", "hidden")]),
        references: References {
            env: ["SECRET".to_owned()].into(),
            folder: None,
        },
        member: "host-1".to_owned(),
        cache: cache.map(Path::to_path_buf),
        ..StoreSourceSettings::default()
    }
}

/// A store that a source watches.
struct Scene {
    store: MemoryStore,
    updates: Receiver<Update>,
    watch: Box<dyn WatchHandle>,
    last: Arc<Snapshot>,
}

fn put(store: &MemoryStore, key: &ControlKey, value: impl AsRef<[u8]>) {
    store
        .write(key, Some(value.as_ref()), Expected::Any)
        .unwrap();
}

fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).unwrap()
}

fn spec_key(name: &str) -> ControlKey {
    ControlKey::spec(name).unwrap()
}

fn config_key(name: &str) -> ControlKey {
    ControlKey::config(name).unwrap()
}

impl Scene {
    fn new(store: MemoryStore, settings: StoreSourceSettings) -> Self {
        let mut source = Box::new(StoreSource::new(Arc::new(store.clone()), settings));
        let last = Arc::new(source.snapshot().unwrap());
        let (sender, updates) = channel();
        let watch = source
            .watch(Box::new(move |update| sender.send(update).unwrap()))
            .unwrap();
        Self {
            store,
            updates,
            watch,
            last,
        }
    }

    /// A store with the handler `a`.
    fn with_a() -> Self {
        let store = MemoryStore::new();
        put(&store, &spec_key("a"), spec("a", "config: { x: 1 }\n"));
        Self::new(store, settings(None))
    }

    /// Writes, and gives what is in effect then: a memory store tells its watches before the write returns.
    fn put(&mut self, key: &ControlKey, value: impl AsRef<[u8]>) -> Arc<Snapshot> {
        put(&self.store, key, value);
        self.now()
    }

    fn delete(&mut self, key: &ControlKey) -> Arc<Snapshot> {
        self.store.write(key, None, Expected::Any).unwrap();
        self.now()
    }

    fn now(&mut self) -> Arc<Snapshot> {
        for update in self.updates.try_iter() {
            if let Update::Snapshot(snapshot) = update {
                self.last = snapshot;
            }
        }
        Arc::clone(&self.last)
    }
}

#[test]
fn gate_and_config_keys_take_the_place_of_what_the_spec_says() {
    let mut scene = Scene::with_a();
    assert!(scene.last.handlers["a"].enabled);
    let config = |now: &Snapshot| now.handlers["a"].config.declared().clone();

    assert!(!scene.put(&gate("a"), "false\n").handlers["a"].enabled);
    let now = scene.put(&config_key("a"), r#"{"x": 2, "s": "${env:SECRET}"}"#);
    assert_eq!(config(&now)["x"], 2);
    assert_eq!(now.handlers["a"].config.expose()["s"], "hidden");
    assert!(!format!("{now:?}").contains("hidden"));
    let revision = now.revision;
    let now = scene.put(&spec_key("a"), spec("a", "workers: 3\nconfig: { x: 5 }\n"));
    assert_eq!(
        (now.handlers["a"].workers, &config(&now)["x"]),
        (3, &2.into())
    );
    assert!(!now.handlers["a"].enabled && now.revision > revision);

    assert_eq!(config(&scene.delete(&config_key("a")))["x"], 5);
    assert!(scene.delete(&gate("a")).handlers["a"].enabled);
    assert!(scene.delete(&spec_key("a")).handlers.is_empty());
}

#[test]
fn a_bad_value_leaves_the_last_good_one_and_the_other_keys_in_effect() {
    let mut scene = Scene::with_a();
    let good = Arc::clone(&scene.last.handlers["a"]);
    let now = scene.put(&spec_key("a"), spec("a", "workers: none\n"));
    assert!(Arc::ptr_eq(&good, &now.handlers["a"]));
    let rejection = &now.rejections[0];
    assert_eq!(rejection.origin, "a/spec");
    assert_eq!(rejection.handlers, ["a"]);
    assert_eq!(rejection.effect, RejectionEffect::LastGoodSpec);
    assert!(
        rejection
            .problems
            .to_string()
            .starts_with("a/spec:4:10: workers: ")
    );

    // Its gate and its config go on being followed.
    let now = scene.put(&gate("a"), "false");
    assert!(!now.handlers["a"].enabled && now.rejections.len() == 1);
    let now = scene.put(&gate("a"), "no");
    assert!(!now.handlers["a"].enabled && now.rejections.len() == 2);
    let now = scene.put(&config_key("a"), "[]");
    assert_eq!(now.handlers["a"].config.declared()["x"], 1);
    assert_eq!(now.rejections.len(), 3);

    put(&scene.store, &gate("a"), "true");
    put(&scene.store, &config_key("a"), "{}");
    let now = scene.put(&spec_key("a"), spec("a", ""));
    assert!(now.rejections.is_empty() && now.handlers["a"].enabled);
}

#[test]
fn a_handler_that_was_never_good_does_not_run_and_keeps_no_other_from_running() {
    let mut scene = Scene::with_a();
    let now = scene.put(&spec_key("b"), "name: [");
    assert_eq!(now.handlers.len(), 1);
    assert_eq!(now.rejections[0].effect, RejectionEffect::NotRunning);
    put(&scene.store, &gate("c"), "maybe");
    let now = scene.put(&spec_key("c"), spec("c", ""));
    assert!(!now.handlers.contains_key("c"), "nobody knows its gate");
    let now = scene.put(&gate("c"), "true");
    assert!(now.handlers["c"].enabled);

    // A start refuses to leave `b` out, unless its gate says that it is not wanted.
    let mut source = StoreSource::new(Arc::new(scene.store.clone()), settings(None));
    let refused = source.snapshot().unwrap_err();
    assert!(matches!(&refused, SnapshotError::Problems(_)), "{refused}");
    assert!(refused.to_string().starts_with("b/spec:"), "{refused}");
    scene.put(&gate("b"), "false");
    let mut source = StoreSource::new(Arc::new(scene.store.clone()), settings(None));
    assert_eq!(source.snapshot().unwrap().handlers.len(), 2);
}

#[test]
fn the_services_own_keys_are_followed() {
    let mut scene = Scene::with_a();
    assert!(!scene.last.switches.record_log);
    assert_eq!(scene.last.switches.metrics, MetricsLevel::Partition);
    assert!(scene.put(&ControlKey::Logging, "true").switches.record_log);
    let now = scene.put(&ControlKey::MetricsLevel, "basic");
    assert_eq!(now.switches.metrics, MetricsLevel::Basic);
    let now = scene.put(&ControlKey::MetricsLevel, "everything");
    assert_eq!(now.switches.metrics, MetricsLevel::Basic);
    assert_eq!(now.rejections[0].effect, RejectionEffect::Ignored);
    assert!(scene.put(&ControlKey::Logging, "1").switches.record_log);
    assert!(!scene.delete(&ControlKey::Logging).switches.record_log);
}

#[test]
fn a_roll_out_is_for_its_members_until_it_is_deleted() {
    let mut scene = Scene::with_a();
    let key = ControlKey::rollout("a").unwrap();
    let rollout = |members: &[&str], workers: &str| {
        let rollout = Rollout {
            id: "r".into(),
            spec: Some(spec("a", workers)),
            config: Some(serde_json::json!({ "x": 9 })),
            members: members.iter().map(|&id| id.to_owned()).collect(),
            ..Rollout::default()
        };
        rollout.to_json()
    };
    let now = scene.put(&key, rollout(&["other-1"], "workers: 2"));
    assert_eq!(now.handlers["a"].workers, 4);
    let now = scene.put(&key, rollout(&["other-1", "host-1"], "workers: 2"));
    assert_eq!(now.handlers["a"].workers, 2);
    assert_eq!(now.handlers["a"].config.declared()["x"], 9);
    let now = scene.delete(&key);
    assert_eq!(now.handlers["a"].workers, 4);
    assert_eq!(now.handlers["a"].config.declared()["x"], 1);
    assert!(now.rejections.is_empty());

    let now = scene.put(&key, rollout(&["host-1"], "workers: none"));
    assert_eq!(now.handlers["a"].workers, 4);
    assert_eq!(now.rejections[0].origin, "a/rollout");
    assert_eq!(now.rejections[0].handlers, ["a"]);
}

#[test]
fn handlers_of_a_pool_that_disagree_keep_their_bounds_and_their_gates() {
    let store = MemoryStore::new();
    for name in ["a", "b", "c"] {
        put(&store, &spec_key(name), spec(name, "pool: p\nworkers: 2\n"));
    }
    let mut scene = Scene::new(store, settings(None));
    let now = scene.put(&spec_key("b"), spec("b", "pool: p\nworkers: 4\n"));
    assert_eq!(now.handlers["b"].workers, 2);
    assert_eq!(now.rejections[0].origin, "b/spec");
    assert!(!scene.put(&gate("b"), "false").handlers["b"].enabled);
    put(
        &scene.store,
        &spec_key("a"),
        spec("a", "pool: p\nworkers: 4\n"),
    );
    let now = scene.put(&spec_key("c"), spec("c", "pool: p\nworkers: 4\n"));
    assert!(now.rejections.is_empty(), "{:?}", now.rejections);
    assert!(now.handlers.values().all(|spec| spec.workers == 4));
}

#[test]
fn a_refused_spec_shuts_its_gate_and_opens_none() {
    let mut scene = Scene::with_a();
    let open = |now: Arc<Snapshot>| now.handlers["a"].enabled;
    let bad = |more: &str| spec("a", &format!("wrokers: 3\n{more}"));
    let shut = "enabled: false\n";
    assert!(open(scene.put(&spec_key("a"), bad(""))));
    let now = scene.put(&spec_key("a"), bad(shut));
    assert_eq!(
        now.handlers["a"].config.declared()["x"],
        1,
        "the rest is as it was"
    );
    assert!(!open(now));
    // No YAML at all.
    assert!(open(scene.put(&spec_key("a"), bad("enabled: true\n"))));
    assert!(!open(
        scene.put(&spec_key("a"), "name: a\nenabled: false\nroute: [")
    ));
    // A gate key says more than any spec.
    assert!(open(scene.put(&gate("a"), "true")));
    assert!(!open(scene.delete(&gate("a"))));
    // What was good and shut is not opened by a spec that is refused.
    assert!(!open(scene.put(&spec_key("a"), spec("a", shut))));
    assert!(!open(scene.put(&spec_key("a"), bad("enabled: true\n"))));
    assert!(open(scene.put(&spec_key("a"), spec("a", ""))));

    // A rollout for this member, and one for another.
    let key = ControlKey::rollout("a").unwrap();
    let rollout = |member: &str| {
        let rollout = Rollout {
            id: "r".into(),
            spec: Some(bad(shut)),
            members: vec![member.to_owned()],
            ..Rollout::default()
        };
        rollout.to_json()
    };
    assert!(open(scene.put(&key, rollout("other-1"))));
    assert!(!open(scene.put(&key, rollout("host-1"))));
    assert!(open(scene.delete(&key)));
}

#[test]
fn a_spec_that_is_at_odds_with_others_shuts_its_gate_and_opens_none() {
    let store = MemoryStore::new();
    for name in ["a", "b", "c"] {
        put(&store, &spec_key(name), spec(name, "pool: p\nworkers: 2\n"));
    }
    let mut scene = Scene::new(store, settings(None));
    let odd = |more: &str| spec("b", &format!("pool: p\nworkers: 4\n{more}"));
    let open = |now: Arc<Snapshot>| now.handlers["b"].enabled;
    assert!(open(scene.put(&spec_key("b"), odd(""))));
    let now = scene.put(&spec_key("b"), odd("enabled: false\n"));
    assert_eq!(now.handlers["b"].workers, 2);
    assert!(!open(now));
    assert!(open(scene.put(&gate("b"), "true")));
    assert!(!open(scene.delete(&gate("b"))));
    assert!(open(scene.put(&spec_key("b"), odd(""))));
    let shut = spec("b", "pool: p\nworkers: 2\nenabled: false\n");
    assert!(!open(scene.put(&spec_key("b"), shut)));
    assert!(!open(scene.put(&spec_key("b"), odd(""))), "it was shut");
    // A spec that was deleted is not brought back by one that is refused.
    scene.delete(&spec_key("b"));
    let now = scene.put(&spec_key("b"), odd(""));
    assert!(!now.handlers.contains_key("b"));
}

#[test]
fn a_gate_that_a_refused_spec_has_shut_stays_shut_over_a_start_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", ""));
    let mut scene = Scene::new(store.clone(), settings(Some(&cache)));
    scene.put(&spec_key("a"), "name: a\nenabled: false\nroute: [");
    drop(scene);
    store.handle().set_away(true);
    let source = || StoreSource::new(Arc::new(store.clone()), settings(Some(&cache)));
    assert!(!source().snapshot().unwrap().handlers["a"].enabled);
    store.handle().set_away(false);
    put(&store, &spec_key("a"), spec("a", ""));
    assert!(source().snapshot().unwrap().handlers["a"].enabled);
    // A handler that is refused and shut keeps no service from starting.
    put(
        &store,
        &spec_key("b"),
        spec("b", "enabled: false\nwrokers: 3\n"),
    );
    let started = source().snapshot().unwrap();
    assert!(started.handlers.contains_key("a") && !started.handlers.contains_key("b"));
    put(&store, &spec_key("b"), spec("b", "wrokers: 3\n"));
    assert!(source().snapshot().is_err());
}

#[test]
fn a_gate_of_a_handler_that_is_rolled_out_is_written_whatever_its_spec_says() {
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", "enabled: false\n"));
    let mut scene = Scene::new(store.clone(), settings(None));
    let rollout = Rollout {
        id: "r".into(),
        spec: Some(spec("a", "enabled: true\n")),
        members: vec!["host-1".to_owned()],
        ..Rollout::default()
    };
    let now = scene.put(&ControlKey::rollout("a").unwrap(), rollout.to_json());
    assert!(now.handlers["a"].enabled);
    let gates = StoreSource::new(Arc::new(store), settings(None)).gates();
    assert!(gates.set_gate("a", false).unwrap().changed);
    assert!(!scene.now().handlers["a"].enabled);
}

#[test]
fn a_gate_that_is_as_wished_names_what_says_so() {
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", ""));
    let key = ControlKey::enabled("a").unwrap();
    let gates = StoreSource::new(Arc::new(store.clone()), settings(None)).gates();
    for (open, changed, says) in [
        (true, false, &spec_key("a")),
        (false, true, &key),
        (false, false, &key),
    ] {
        let done = gates.set_gate("a", open).unwrap();
        assert_eq!((done.changed, done.origin), (changed, store.locate(says)));
        assert_eq!(store.list().unwrap().get(&key).is_some(), !open);
    }
}

#[test]
fn a_member_that_takes_another_id_leaves_the_roll_outs_of_the_first() {
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", ""));
    let rollout = Rollout {
        id: "r".into(),
        spec: Some(spec("a", "workers: 2\n")),
        members: vec!["host-1".to_owned()],
        ..Rollout::default()
    };
    put(
        &store,
        &ControlKey::rollout("a").unwrap(),
        rollout.to_json(),
    );
    let mut source = Box::new(StoreSource::new(Arc::new(store), settings(None)));
    let own = source.own_id().expect("a store's source has one");
    assert_eq!(source.snapshot().unwrap().handlers["a"].workers, 2);
    let (sender, updates) = channel();
    let _watch = source
        .watch(Box::new(move |update| sender.send(update).unwrap()))
        .unwrap();
    let workers = || {
        let last = updates.try_iter().last();
        last.map(|update| match update {
            Update::Snapshot(now) => now.handlers["a"].workers,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(workers(), None);
    own.set("host-1-0badcafe");
    assert_eq!(workers(), Some(4));
    own.set("host-1-0badcafe");
    assert_eq!(workers(), None);
    own.set("host-1");
    assert_eq!(workers(), Some(2));
}

#[test]
fn a_spec_that_would_let_dead_letters_go_round_leaves_the_earlier_one_in_effect() {
    let text = |name: &str, topics: &str, dead: &str| {
        format!(
            "name: {name}\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: {dead} }}\n"
        )
    };
    let store = MemoryStore::new();
    put(&store, &spec_key("x"), text("x", "a, y.dead", "x.dead"));
    put(&store, &spec_key("y"), text("y", "b", "y.dead"));
    let mut scene = Scene::new(store, settings(None));
    let now = scene.put(&spec_key("y"), text("y", "x.dead", "y.dead"));
    assert_eq!(now.rejections.len(), 1, "{:?}", now.rejections);
    assert_eq!(now.rejections[0].origin, "y/spec");
    let why = now.rejections[0].problems.to_string();
    assert!(
        why.contains("x.dead -> `y` -> y.dead -> `x` -> x.dead"),
        "{why}"
    );
    assert_eq!(now.handlers["y"].route.topics[0].to_string(), "b");
    assert_eq!(now.handlers["x"].route.topics.len(), 2, "the other runs on");
    let now = scene.put(&spec_key("x"), text("x", "a", "x.dead"));
    assert!(now.rejections.is_empty(), "{:?}", now.rejections);
    assert_eq!(now.handlers["y"].route.topics[0].to_string(), "x.dead");
}

#[test]
fn outages_and_repairs_are_told() {
    let mut scene = Scene::with_a();
    let handle = scene.store.handle();
    handle.set_away(true);
    let told = scene.updates.try_recv().unwrap();
    assert!(matches!(told, Update::Unreachable { .. }), "{told:?}");
    handle.set_away(false);
    assert_eq!(scene.updates.try_recv().unwrap(), Update::Reachable);
    handle.set_deaf(true);
    assert!(scene.put(&gate("a"), "false").handlers["a"].enabled);
    handle.relist();
    assert_eq!(
        scene.updates.try_recv().unwrap(),
        Update::Repaired { keys: 1 }
    );
    assert!(!scene.now().handlers["a"].enabled);
}

#[test]
fn a_re_read_looks_at_references_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "one\n").unwrap();
    let store = MemoryStore::new();
    let text = spec("a", "config: { p: \"${file:password}\" }\n");
    put(&store, &spec_key("a"), text);
    let references = References {
        folder: Some(folder.path().to_path_buf()),
        ..References::default()
    };
    let mut scene = Scene::new(
        store,
        StoreSourceSettings {
            references,
            ..settings(None)
        },
    );
    assert_eq!(scene.last.handlers["a"].config.expose()["p"], "one");
    std::fs::write(folder.path().join("password"), "two\n").unwrap();
    scene.watch.reread();
    assert_eq!(scene.now().handlers["a"].config.expose()["p"], "two");
}

#[test]
fn a_start_while_the_store_is_away_uses_the_last_good_values_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    store.handle().set_away(true);
    let start = |settings| StoreSource::new(Arc::new(store.clone()), settings).snapshot();
    let refused = start(settings(Some(&cache))).unwrap_err().to_string();
    assert!(refused.contains("no cache of an earlier run"), "{refused}");

    store.handle().set_away(false);
    put(
        &store,
        &spec_key("a"),
        spec("a", "config: { s: \"${env:SECRET}\" }\n"),
    );
    let mut scene = Scene::new(store.clone(), settings(Some(&cache)));
    scene.put(&gate("a"), "false");
    scene.put(&spec_key("a"), "garbage: [");
    scene.put(&ControlKey::MetricsLevel, "basic");
    drop(scene);
    let kept = std::fs::read_to_string(&cache).unwrap();
    assert!(!kept.contains("hidden"), "secrets are not kept");

    store.handle().set_away(true);
    let cached = start(settings(Some(&cache))).unwrap();
    assert!(!cached.handlers["a"].enabled);
    assert_eq!(cached.handlers["a"].config.expose()["s"], "hidden");
    assert_eq!(cached.switches.metrics, MetricsLevel::Basic);
    let fresh = StoreSourceSettings {
        require_fresh: true,
        ..settings(Some(&cache))
    };
    let refused = start(fresh).unwrap_err().to_string();
    assert!(refused.contains("require_fresh"), "{refused}");

    // Once it is back, what was written meanwhile counts; a bad value falls back on what the disk has.
    let mut scene = Scene::new(store.clone(), settings(Some(&cache)));
    store.handle().set_away(false);
    let now = scene.now();
    assert_eq!(now.rejections[0].origin, "a/spec");
    assert!(now.handlers.contains_key("a"));
    drop(scene);
    assert!(
        start(settings(Some(&cache)))
            .unwrap()
            .handlers
            .contains_key("a")
    );
}

#[test]
fn one_of_two_thousand_specs_changes_without_touching_the_others() {
    let store = MemoryStore::new();
    for number in 0..2_000 {
        let name = format!("h{number}");
        let when = format!("pool: p\nconfig: {{ n: {number} }}\n");
        put(&store, &spec_key(&name), spec(&name, &when));
    }
    let began = Instant::now();
    let mut scene = Scene::new(store, settings(None));
    let started = began.elapsed();
    assert_eq!(scene.last.handlers.len(), 2_000);
    let before = Arc::clone(&scene.last);
    let began = Instant::now();
    let now = scene.put(&config_key("h7"), r#"{"n": 8}"#);
    let applied = began.elapsed();
    let changed: Vec<&String> = now
        .handlers
        .iter()
        .filter(|(name, spec)| !Arc::ptr_eq(spec, &before.handlers[*name]))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(changed, ["h7"]);
    println!("2,000 specs read in {started:?}, one change in {applied:?} (unoptimised)");
    assert!(started < Duration::from_secs(5), "{started:?}");
    assert!(applied < Duration::from_millis(300), "{applied:?}");
}

/// The key of a row of the table.
fn key_of(kind: &str) -> ControlKey {
    match kind {
        "enabled" => gate("a"),
        "spec" => spec_key("a"),
        "config" => config_key("a"),
        "rollout" => ControlKey::rollout("a").unwrap(),
        "logging" => ControlKey::Logging,
        "metrics" => ControlKey::MetricsLevel,
        other => panic!("no key is called {other}"),
    }
}

#[test]
fn garbage_is_refused_by_place_and_reason_and_changes_nothing() {
    assert!(GARBAGE.len() >= 60);
    for (kind, value, reason) in GARBAGE {
        let (key, shown) = (key_of(kind), String::from_utf8_lossy(value));
        let problems = check_value(&key, "place", value);
        let problems = problems.expect_err(&shown).to_string();
        assert!(problems.starts_with("place:"), "{shown:?}: {problems}");
        assert!(problems.contains(reason), "{shown:?}: {problems}");

        let mut scene = Scene::with_a();
        let before = scene.put(&gate("a"), "true");
        let now = scene.put(&key, value);
        assert!(Arc::ptr_eq(&before.handlers["a"], &now.handlers["a"]));
        assert_eq!(before.switches, now.switches);
        assert_eq!(now.rejections.len(), 1, "{shown:?}");
        assert_eq!(now.rejections[0].origin, key.to_string());
    }
}
