//! The store source: gates, configs and rollouts over specs, last good values, garbage, outages, restarts.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, Rollout, check_value};
use sluicegate_config::service::References;
use sluicegate_config::{Environment, MetricsLevel, RejectionEffect, Snapshot};
use sluicegate_kit::garbage::GARBAGE;
use sluicegate_store::{Expected, MemoryStore, Store};
use sluicegate_sync::source::{
    SnapshotError, SpecSource, StoreSource, StoreSourceSettings, Update, WatchHandle,
};

#[path = "store_source/restored.rs"]
mod restored;

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

struct Harness {
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

impl Harness {
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

    /// Writes and returns the resulting snapshot: a memory store notifies its watches before the write returns.
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
fn gate_and_config_keys_override_the_spec() {
    let mut harness = Harness::with_a();
    assert!(harness.last.handlers["a"].enabled);
    let config = |now: &Snapshot| now.handlers["a"].config.declared().clone();

    assert!(!harness.put(&gate("a"), "false\n").handlers["a"].enabled);
    let now = harness.put(&config_key("a"), r#"{"x": 2, "s": "${env:SECRET}"}"#);
    assert_eq!(config(&now)["x"], 2);
    assert_eq!(now.handlers["a"].config.expose()["s"], "hidden");
    assert!(!format!("{now:?}").contains("hidden"));
    let revision = now.revision;
    let now = harness.put(&spec_key("a"), spec("a", "workers: 3\nconfig: { x: 5 }\n"));
    assert_eq!(
        (now.handlers["a"].workers, &config(&now)["x"]),
        (3, &2.into())
    );
    assert!(!now.handlers["a"].enabled && now.revision > revision);

    assert_eq!(config(&harness.delete(&config_key("a")))["x"], 5);
    assert!(harness.delete(&gate("a")).handlers["a"].enabled);
    assert!(harness.delete(&spec_key("a")).handlers.is_empty());
}

#[test]
fn an_invalid_value_leaves_the_last_good_one_and_the_other_keys_active() {
    let mut harness = Harness::with_a();
    let good = Arc::clone(&harness.last.handlers["a"]);
    let now = harness.put(&spec_key("a"), spec("a", "workers: none\n"));
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

    // Changes of its gate and config are still applied.
    let now = harness.put(&gate("a"), "false");
    assert!(!now.handlers["a"].enabled && now.rejections.len() == 1);
    let now = harness.put(&gate("a"), "no");
    assert!(!now.handlers["a"].enabled && now.rejections.len() == 2);
    let now = harness.put(&config_key("a"), "[]");
    assert_eq!(now.handlers["a"].config.declared()["x"], 1);
    assert_eq!(now.rejections.len(), 3);

    put(&harness.store, &gate("a"), "true");
    put(&harness.store, &config_key("a"), "{}");
    let now = harness.put(&spec_key("a"), spec("a", ""));
    assert!(now.rejections.is_empty() && now.handlers["a"].enabled);
}

#[test]
fn a_handler_that_was_never_good_does_not_run_and_does_not_affect_others() {
    let mut harness = Harness::with_a();
    let now = harness.put(&spec_key("b"), "name: [");
    assert_eq!(now.handlers.len(), 1);
    assert_eq!(now.rejections[0].effect, RejectionEffect::NotRunning);
    put(&harness.store, &gate("c"), "maybe");
    let now = harness.put(&spec_key("c"), spec("c", ""));
    assert!(!now.handlers.contains_key("c"), "its gate is unknown");
    let now = harness.put(&gate("c"), "true");
    assert!(now.handlers["c"].enabled);

    // A start fails rather than leave `b` out, unless its gate is closed.
    let mut source = StoreSource::new(Arc::new(harness.store.clone()), settings(None));
    let refused = source.snapshot().unwrap_err();
    assert!(matches!(&refused, SnapshotError::Problems(_)), "{refused}");
    assert!(refused.to_string().starts_with("b/spec:"), "{refused}");
    harness.put(&gate("b"), "false");
    let mut source = StoreSource::new(Arc::new(harness.store.clone()), settings(None));
    assert_eq!(source.snapshot().unwrap().handlers.len(), 2);
}

#[test]
fn keys_of_the_service_itself_are_applied() {
    let mut harness = Harness::with_a();
    assert!(!harness.last.switches.record_log);
    assert_eq!(harness.last.switches.metrics, MetricsLevel::Partition);
    let now = harness.put(&ControlKey::Logging, "true");
    assert!(now.switches.record_log);
    let now = harness.put(&ControlKey::MetricsLevel, "basic");
    assert_eq!(now.switches.metrics, MetricsLevel::Basic);
    let now = harness.put(&ControlKey::MetricsLevel, "everything");
    assert_eq!(now.switches.metrics, MetricsLevel::Basic);
    assert_eq!(now.rejections[0].effect, RejectionEffect::Ignored);
    assert!(harness.put(&ControlKey::Logging, "1").switches.record_log);
    assert!(!harness.delete(&ControlKey::Logging).switches.record_log);
}

#[test]
fn a_rollout_applies_to_its_members_until_it_is_deleted() {
    let mut harness = Harness::with_a();
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
    let now = harness.put(&key, rollout(&["other-1"], "workers: 2"));
    assert_eq!(now.handlers["a"].workers, 4);
    let now = harness.put(&key, rollout(&["other-1", "host-1"], "workers: 2"));
    assert_eq!(now.handlers["a"].workers, 2);
    assert_eq!(now.handlers["a"].config.declared()["x"], 9);
    let now = harness.delete(&key);
    assert_eq!(now.handlers["a"].workers, 4);
    assert_eq!(now.handlers["a"].config.declared()["x"], 1);
    assert!(now.rejections.is_empty());

    let now = harness.put(&key, rollout(&["host-1"], "workers: none"));
    assert_eq!(now.handlers["a"].workers, 4);
    assert_eq!(now.rejections[0].origin, "a/rollout");
    assert_eq!(now.rejections[0].handlers, ["a"]);
}

#[test]
fn handlers_of_a_conflicting_pool_keep_their_limits_and_gates() {
    let store = MemoryStore::new();
    for name in ["a", "b", "c"] {
        put(&store, &spec_key(name), spec(name, "pool: p\nworkers: 2\n"));
    }
    let mut harness = Harness::new(store, settings(None));
    let now = harness.put(&spec_key("b"), spec("b", "pool: p\nworkers: 4\n"));
    assert_eq!(now.handlers["b"].workers, 2);
    assert_eq!(now.rejections[0].origin, "b/spec");
    assert!(!harness.put(&gate("b"), "false").handlers["b"].enabled);
    put(
        &harness.store,
        &spec_key("a"),
        spec("a", "pool: p\nworkers: 4\n"),
    );
    let now = harness.put(&spec_key("c"), spec("c", "pool: p\nworkers: 4\n"));
    assert!(now.rejections.is_empty(), "{:?}", now.rejections);
    assert!(now.handlers.values().all(|spec| spec.workers == 4));
}

#[test]
fn a_rejected_spec_can_close_its_gate_but_not_open_it() {
    let mut harness = Harness::with_a();
    let open = |now: Arc<Snapshot>| now.handlers["a"].enabled;
    let bad = |more: &str| spec("a", &format!("wrokers: 3\n{more}"));
    let closed = "enabled: false\n";
    assert!(open(harness.put(&spec_key("a"), bad(""))));
    let now = harness.put(&spec_key("a"), bad(closed));
    assert_eq!(
        now.handlers["a"].config.declared()["x"],
        1,
        "the rest is unchanged"
    );
    assert!(!open(now));
    // Not YAML.
    assert!(open(harness.put(&spec_key("a"), bad("enabled: true\n"))));
    assert!(!open(
        harness.put(&spec_key("a"), "name: a\nenabled: false\nroute: [")
    ));
    // A gate key overrides any spec.
    assert!(open(harness.put(&gate("a"), "true")));
    assert!(!open(harness.delete(&gate("a"))));
    // A rejected spec does not open a gate that the last good one closes.
    assert!(!open(harness.put(&spec_key("a"), spec("a", closed))));
    assert!(!open(harness.put(&spec_key("a"), bad("enabled: true\n"))));
    assert!(open(harness.put(&spec_key("a"), spec("a", ""))));

    // A rollout for this member, and one for another.
    let key = ControlKey::rollout("a").unwrap();
    let rollout = |member: &str| {
        let rollout = Rollout {
            id: "r".into(),
            spec: Some(bad(closed)),
            members: vec![member.to_owned()],
            ..Rollout::default()
        };
        rollout.to_json()
    };
    assert!(open(harness.put(&key, rollout("other-1"))));
    assert!(!open(harness.put(&key, rollout("host-1"))));
    assert!(open(harness.delete(&key)));
}

#[test]
fn a_conflicting_spec_can_close_its_gate_but_not_open_it() {
    let store = MemoryStore::new();
    for name in ["a", "b", "c"] {
        put(&store, &spec_key(name), spec(name, "pool: p\nworkers: 2\n"));
    }
    let mut harness = Harness::new(store, settings(None));
    let clash = |more: &str| spec("b", &format!("pool: p\nworkers: 4\n{more}"));
    let open = |now: Arc<Snapshot>| now.handlers["b"].enabled;
    assert!(open(harness.put(&spec_key("b"), clash(""))));
    let now = harness.put(&spec_key("b"), clash("enabled: false\n"));
    assert_eq!(now.handlers["b"].workers, 2);
    assert!(!open(now));
    assert!(open(harness.put(&gate("b"), "true")));
    assert!(!open(harness.delete(&gate("b"))));
    assert!(open(harness.put(&spec_key("b"), clash(""))));
    let closed = spec("b", "pool: p\nworkers: 2\nenabled: false\n");
    assert!(!open(harness.put(&spec_key("b"), closed)));
    assert!(!open(harness.put(&spec_key("b"), clash(""))), "closed");
    // A rejected spec does not bring back a deleted one.
    harness.delete(&spec_key("b"));
    let now = harness.put(&spec_key("b"), clash(""));
    assert!(!now.handlers.contains_key("b"));
}

#[test]
fn a_gate_closed_by_a_rejected_spec_stays_closed_after_a_start_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", ""));
    let mut harness = Harness::new(store.clone(), settings(Some(&cache)));
    harness.put(&spec_key("a"), "name: a\nenabled: false\nroute: [");
    drop(harness);
    store.handle().set_away(true);
    let source = || StoreSource::new(Arc::new(store.clone()), settings(Some(&cache)));
    assert!(!source().snapshot().unwrap().handlers["a"].enabled);
    store.handle().set_away(false);
    put(&store, &spec_key("a"), spec("a", ""));
    assert!(source().snapshot().unwrap().handlers["a"].enabled);
    // A rejected handler with a closed gate does not block a start.
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
fn a_gate_of_a_handler_in_a_rollout_is_always_written() {
    let store = MemoryStore::new();
    put(&store, &spec_key("a"), spec("a", "enabled: false\n"));
    let mut harness = Harness::new(store.clone(), settings(None));
    let rollout = Rollout {
        id: "r".into(),
        spec: Some(spec("a", "enabled: true\n")),
        members: vec!["host-1".to_owned()],
        ..Rollout::default()
    };
    let now = harness.put(&ControlKey::rollout("a").unwrap(), rollout.to_json());
    assert!(now.handlers["a"].enabled);
    let gates = StoreSource::new(Arc::new(store), settings(None)).gates();
    assert!(gates.set_gate("a", false).unwrap().changed);
    assert!(!harness.now().handlers["a"].enabled);
}

#[test]
fn a_gate_that_already_has_the_state_names_its_origin() {
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
fn a_member_that_changes_its_id_leaves_the_rollouts_of_the_old_one() {
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
    let own = source.own_id().expect("a store source has an id");
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
fn a_spec_that_would_close_a_dead_letter_cycle_leaves_the_earlier_one_active() {
    let text = |name: &str, topics: &str, dead: &str| {
        format!(
            "name: {name}\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: {dead} }}\n"
        )
    };
    let store = MemoryStore::new();
    put(&store, &spec_key("x"), text("x", "a, y.dead", "x.dead"));
    put(&store, &spec_key("y"), text("y", "b", "y.dead"));
    let mut harness = Harness::new(store, settings(None));
    let now = harness.put(&spec_key("y"), text("y", "x.dead", "y.dead"));
    assert_eq!(now.rejections.len(), 1, "{:?}", now.rejections);
    assert_eq!(now.rejections[0].origin, "y/spec");
    let why = now.rejections[0].problems.to_string();
    assert!(
        why.contains("x.dead -> `y` -> y.dead -> `x` -> x.dead"),
        "{why}"
    );
    assert_eq!(now.handlers["y"].route.topics[0].to_string(), "b");
    assert_eq!(now.handlers["x"].route.topics.len(), 2, "the other is kept");
    let now = harness.put(&spec_key("x"), text("x", "a", "x.dead"));
    assert!(now.rejections.is_empty(), "{:?}", now.rejections);
    assert_eq!(now.handlers["y"].route.topics[0].to_string(), "x.dead");
}

#[test]
fn outages_and_missed_updates_are_reported() {
    let mut harness = Harness::with_a();
    let handle = harness.store.handle();
    handle.set_away(true);
    let update = harness.updates.try_recv().unwrap();
    assert!(matches!(update, Update::Unreachable { .. }), "{update:?}");
    handle.set_away(false);
    assert_eq!(harness.updates.try_recv().unwrap(), Update::Reachable);
    handle.set_deaf(true);
    assert!(harness.put(&gate("a"), "false").handlers["a"].enabled);
    handle.relist();
    assert_eq!(
        harness.updates.try_recv().unwrap(),
        Update::Repaired { keys: 1 }
    );
    assert!(!harness.now().handlers["a"].enabled);
}

#[test]
fn a_re_read_resolves_references_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "one\n").unwrap();
    let store = MemoryStore::new();
    let text = spec("a", "config: { p: \"${file:password}\" }\n");
    put(&store, &spec_key("a"), text);
    let references = References {
        folder: Some(folder.path().to_path_buf()),
        ..References::default()
    };
    let mut harness = Harness::new(
        store,
        StoreSourceSettings {
            references,
            ..settings(None)
        },
    );
    assert_eq!(harness.last.handlers["a"].config.expose()["p"], "one");
    std::fs::write(folder.path().join("password"), "two\n").unwrap();
    harness.watch.reread();
    assert_eq!(harness.now().handlers["a"].config.expose()["p"], "two");
}

#[test]
fn a_start_without_the_store_uses_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("handlers.cache");
    let store = MemoryStore::new();
    store.handle().set_away(true);
    let start = |settings| StoreSource::new(Arc::new(store.clone()), settings).snapshot();
    let refused = start(settings(Some(&cache))).unwrap_err().to_string();
    assert!(refused.contains("no usable cache of an"), "{refused}");

    store.handle().set_away(false);
    put(
        &store,
        &spec_key("a"),
        spec("a", "config: { s: \"${env:SECRET}\" }\n"),
    );
    let mut harness = Harness::new(store.clone(), settings(Some(&cache)));
    harness.put(&gate("a"), "false");
    harness.put(&spec_key("a"), "garbage: [");
    harness.put(&ControlKey::MetricsLevel, "basic");
    drop(harness);
    let kept = std::fs::read_to_string(&cache).unwrap();
    assert!(!kept.contains("hidden"), "secrets are not cached");

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

    // Once the store is back, writes during the outage are applied; an invalid value falls back to the cached one.
    let mut harness = Harness::new(store.clone(), settings(Some(&cache)));
    store.handle().set_away(false);
    let now = harness.now();
    assert_eq!(now.rejections[0].origin, "a/spec");
    assert!(now.handlers.contains_key("a"));
    drop(harness);
    assert!(
        start(settings(Some(&cache)))
            .unwrap()
            .handlers
            .contains_key("a")
    );
}

#[test]
fn a_change_of_one_of_two_thousand_specs_leaves_the_others_untouched() {
    let store = MemoryStore::new();
    for number in 0..2_000 {
        let name = format!("h{number}");
        let when = format!("pool: p\nconfig: {{ n: {number} }}\n");
        put(&store, &spec_key(&name), spec(&name, &when));
    }
    let began = Instant::now();
    let mut harness = Harness::new(store, settings(None));
    let started = began.elapsed();
    assert_eq!(harness.last.handlers.len(), 2_000);
    let before = Arc::clone(&harness.last);
    let began = Instant::now();
    let now = harness.put(&config_key("h7"), r#"{"n": 8}"#);
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
        other => panic!("unknown key {other}"),
    }
}

#[test]
fn garbage_is_rejected_with_position_and_reason_and_changes_nothing() {
    assert!(GARBAGE.len() >= 60);
    for (kind, value, reason) in GARBAGE {
        let (key, shown) = (key_of(kind), String::from_utf8_lossy(value));
        let problems = check_value(&key, "place", value);
        let problems = problems.expect_err(&shown).to_string();
        assert!(problems.starts_with("place:"), "{shown:?}: {problems}");
        assert!(problems.contains(reason), "{shown:?}: {problems}");

        let mut harness = Harness::with_a();
        let before = harness.put(&gate("a"), "true");
        let now = harness.put(&key, value);
        assert!(Arc::ptr_eq(&before.handlers["a"], &now.handlers["a"]));
        assert_eq!(before.switches, now.switches);
        assert_eq!(now.rejections.len(), 1, "{shown:?}");
        assert_eq!(now.rejections[0].origin, key.to_string());
    }
}
