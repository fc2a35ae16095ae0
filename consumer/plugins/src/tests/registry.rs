//! The registry: discovery, health checks before activation, rejections that leave the old generation active, release.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluicegate_config::spec::HandlerConfig;
use sluicegate_config::{Environment, HandlerSpec, RejectionEffect, Snapshot, read_spec};
use sluicegate_engine::dispatch::PoolState;
use sluicegate_engine::status::HandlerState;
use sluicegate_kit::plugin_doubles::{
    Producer, Replies, Script, ScriptedPlugin, Step, batch, codes, until,
};
use sluicegate_pool::HungThreads;
use sluicegate_pool::pool::relock;
use sluicegate_runtime::{
    HandlerRuntime, LoadError, LoadedPlugin, PluginIdentity, VerifiedArtefact, outcome_code,
};

use crate::{Applied, HandlerPlan, Registry, RegistrySettings};

/// Files named `libNAME.so` that hold `NAME VERSION HANDLER…`; their bytes are their hash.
pub(super) struct TextRuntime {
    pub(super) script: Arc<Script>,
    pub(super) loaded: std::sync::Mutex<Vec<Arc<ScriptedPlugin>>>,
    /// The plugin `slow` is not loaded while this is locked.
    pub(super) slow: std::sync::Mutex<()>,
    /// Number of loads of the plugin `slow` so far.
    pub(super) slow_loads: AtomicU32,
    /// Number of reads of the plugin `slow-read` so far, which wait for the same lock.
    pub(super) slow_reads: AtomicU32,
    /// Number of loads that still panic.
    pub(super) panics: AtomicU32,
}

impl HandlerRuntime for TextRuntime {
    fn kind(&self) -> &'static str {
        "text"
    }

    fn recognises(&self, path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "so")
    }

    fn inspect(&self, path: &Path) -> Result<PluginIdentity, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|error| LoadError::Unreadable {
            path: path.display().to_string(),
            source: error.into(),
        })?;
        if text.starts_with("slow-read") {
            self.slow_reads.fetch_add(1, Ordering::SeqCst);
            drop(relock(&self.slow));
        }
        let mut words = text.split_whitespace();
        let refused = || LoadError::Refused {
            path: path.display().to_string(),
            gate: "descriptor",
            source: "there is none".into(),
        };
        Ok(PluginIdentity {
            name: words.next().ok_or_else(refused)?.to_owned(),
            version: words.next().ok_or_else(refused)?.to_owned(),
            handlers: words.map(str::to_owned).collect(),
            abi: "1.0".to_owned(),
            toolchain: "test".to_owned(),
            sha256: text.clone(),
        })
    }

    fn load(
        &self,
        artefact: &VerifiedArtefact,
        _cache: &Path,
        _generation: u64,
    ) -> Result<Arc<dyn LoadedPlugin>, LoadError> {
        let panics = &self.panics;
        let left = panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(left.is_err(), "the loader's panic");
        let identity = self.inspect(&artefact.path)?;
        if identity.sha256 != artefact.sha256 {
            return Err(LoadError::Changed {
                path: artefact.path.display().to_string(),
            });
        }
        if identity.name == "slow" {
            self.slow_loads.fetch_add(1, Ordering::SeqCst);
            drop(relock(&self.slow));
        }
        let mut plugin = Arc::into_inner(ScriptedPlugin::new(&self.script)).unwrap();
        let info = plugin.infos.remove(0);
        let named = |name: &String| {
            let mut info = info.clone();
            info.name.clone_from(name);
            info.takes_config = name.starts_with("hot");
            info
        };
        plugin.infos = identity.handlers.iter().map(named).collect();
        plugin.identity = identity;
        let plugin = Arc::new(plugin);
        relock(&self.loaded).push(Arc::clone(&plugin));
        Ok(plugin)
    }
}

/// Threads that may hang in a process.
pub(super) const MAX_HUNG: usize = 2;

pub(super) struct RegistryHarness {
    pub(super) folder: tempfile::TempDir,
    pub(super) runtime: Arc<TextRuntime>,
    pub(super) registry: Registry,
    revision: u64,
}

impl RegistryHarness {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        Self::with(files, &[], true)
    }

    pub(super) fn with(
        files: &[(&str, &str)],
        steps: &[(i64, Step)],
        allow_unsigned: bool,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            put(folder.path(), file, text);
        }
        let runtime = Arc::new(TextRuntime {
            script: Script::new(steps),
            loaded: std::sync::Mutex::default(),
            slow: std::sync::Mutex::default(),
            slow_loads: AtomicU32::new(0),
            slow_reads: AtomicU32::new(0),
            panics: AtomicU32::new(0),
        });
        let registry = Registry::new(RegistrySettings {
            folder: folder.path().to_owned(),
            cache: PathBuf::new(),
            allow_unsigned,
            create_timeout: Duration::from_millis(300),
            health_interval: Duration::from_millis(50),
            health_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(20),
            hung: HungThreads::new(MAX_HUNG),
            runtimes: vec![Arc::clone(&runtime) as _],
            emitter: Arc::new(Producer::default()),
            trial: None,
            secrets: Arc::default(),
            provenance: false,
        });
        Self {
            folder,
            runtime,
            registry: registry.unwrap(),
            revision: 0,
        }
    }

    pub(super) fn apply(&mut self, specs: &[HandlerSpec]) -> Applied {
        self.revision += 1;
        self.registry
            .apply(&Snapshot::new(self.revision, specs.iter().cloned()))
    }

    /// Scans the folder and follows; returns whether anything may have changed.
    pub(super) fn follow_scan(&self) -> bool {
        let changed = self.registry.catalogue().scan().changed;
        self.registry.follow_scan(changed)
    }

    /// Rescans as the service does after a change of the folder; `None` if nothing changed.
    pub(super) fn rescan(&self) -> Option<Applied> {
        self.follow_scan().then(|| {
            while self.registry.prepare_next() {}
            self.registry.current()
        })
    }

    pub(super) fn loads(&self) -> usize {
        relock(&self.runtime.loaded).len()
    }
}

/// Writes a file with an old modification time, so that a scan reads it at once.
pub(super) fn put(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    age(&path);
}

/// Sets an old modification time, so that the file counts as completely written.
pub(super) fn age(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(5))
        .unwrap();
}

pub(crate) fn spec(name: &str, version: &str, config: &str) -> HandlerSpec {
    let text = format!(
        "name: {name}\nplugin: copy\nversion: \"{version}\"\nroute: {{ topics: [t] }}\nworkers: 1\ntimeout: 20s\n"
    );
    HandlerSpec {
        config: HandlerConfig::new(serde_json::json!({ "is": config })),
        ..read_spec(&text, None, &Environment::default()).unwrap()
    }
}

pub(super) fn run_one(plan: &HandlerPlan) -> Vec<u16> {
    let mut replies = Replies::new();
    let pool = &plan.targets[0].pool;
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    codes(&replies.finished())
}

#[test]
fn the_newest_matching_version_is_active_and_a_newer_one_replaces_it() {
    let mut harness = RegistryHarness::new(&[
        ("liba.so", "copy 1.1.0 copy"),
        ("libb.so", "copy 1.2.0 copy"),
        ("libc.so", "copy 2.0.0 copy"),
        ("broken.so", ""),
        ("README.md", "copy 9.0.0 copy"),
    ]);
    let first = harness.apply(&[spec("one", "1", "a")]);
    assert_eq!(first.refusals, []);
    assert_eq!(&*first.plan.handlers[0].targets[0].version, "1.2.0");
    assert_eq!(run_one(&first.plan.handlers[0]), [outcome_code::ACK]);
    assert!(harness.rescan().is_none(), "nothing has changed");

    put(harness.folder.path(), "libd.so", "copy 1.3.0 copy");
    let second = harness.rescan().unwrap();
    assert_eq!(second.changed, ["one"]);
    let (old, new) = (&first.plan.handlers[0], &second.plan.handlers[0]);
    assert_eq!(&*new.targets[0].version, "1.3.0");
    assert!(new.generation() > old.generation() && new.ix == old.ix);
    assert_eq!(
        run_one(old),
        [outcome_code::ACK],
        "active until pumps drop it"
    );
    let script = Arc::clone(&harness.runtime.script);
    assert_eq!(script.living(), 2);
    drop(first);
    until("the old generation is released", || script.living() == 1);
    until("its code has ended", || {
        relock(&harness.runtime.loaded)[0]
            .shut_down
            .load(Ordering::SeqCst)
            == 1
    });
    let states: Vec<_> = harness.registry.report().iter().map(|r| r.state).collect();
    assert_eq!(states, [HandlerState::Draining, HandlerState::Active]);
}

#[test]
fn a_failed_load_keeps_the_old_generation_and_spec_but_applies_the_gate() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let good = harness.apply(&[spec("one", "*", "a")]);
    let mut bad = spec("one", "*", "refuse");
    bad.enabled = false;
    let kept = harness.apply(&[bad]);
    assert_eq!(kept.refusals[0].effect, RejectionEffect::LastGoodSpec);
    assert!(
        kept.refusals[0].reason.contains("at /refuse: not allowed"),
        "{}",
        kept.refusals[0].reason
    );
    let (old, new) = (&good.plan.handlers[0], &kept.plan.handlers[0]);
    assert_eq!(new.generation(), old.generation());
    assert_eq!(new.spec.config, old.spec.config);
    assert!(!new.spec.enabled);
    assert_eq!(run_one(new), [outcome_code::ACK]);

    let unhealthy = harness.apply(&[spec("one", "*", "unhealthy")]);
    assert!(
        unhealthy.refusals[0]
            .reason
            .contains("scripted to be unhealthy")
    );
    assert_eq!(unhealthy.plan.handlers[0].generation(), old.generation());
    let healed = harness.apply(&[spec("one", "*", "b")]);
    assert_eq!(healed.refusals, []);
    assert!(healed.plan.handlers[0].generation() > old.generation());
}

#[test]
fn a_handler_that_takes_a_config_keeps_its_generation_and_instance() {
    let mut harness = RegistryHarness::new(&[("liba.so", "hot 1.0.0 hot")]);
    let hot = |config: &str| HandlerSpec {
        plugin: "hot".to_owned(),
        ..spec("one", "*", config)
    };
    let first = harness.apply(&[hot("a")]);
    let second = harness.apply(&[hot("b")]);
    assert_eq!((second.refusals.len(), second.changed.len()), (0, 1));
    let (old, new) = (&first.plan.handlers[0], &second.plan.handlers[0]);
    assert_eq!(new.generation(), old.generation());
    assert_eq!(new.spec.config, hot("b").config);
    let refused = harness.apply(&[hot("refuse")]);
    let reason = &refused.refusals[0].reason;
    assert!(
        reason.starts_with("handler `one`") && reason.contains("at /refuse: not allowed"),
        "{reason}"
    );
    assert_eq!(refused.plan.handlers[0].spec.config, hot("b").config);
    // The config taken last is still active: no instance is reconfigured.
    let back = harness.apply(&[hot("b")]);
    assert_eq!((back.refusals.len(), back.changed.len()), (0, 0));
    let configs = relock(&harness.runtime.script.configs).clone();
    assert_eq!(configs, [r#"built with {"is":"a"}"#, r#"took {"is":"b"}"#]);
    // A change beyond the config still needs a new generation.
    let wider = HandlerSpec {
        workers: 2,
        ..hot("c")
    };
    let replaced = harness.apply(&[wider]);
    assert!(replaced.plan.handlers[0].generation() > old.generation());
    assert_eq!(run_one(&replaced.plan.handlers[0]), [outcome_code::ACK]);
}

#[test]
fn a_config_for_instances_in_long_calls_makes_a_new_generation() {
    let files = [("liba.so", "hot 1.0.0 hot")];
    let mut harness = RegistryHarness::with(&files, &[(1, Step::Hang("long"))], true);
    let hot = |config: &str| HandlerSpec {
        plugin: "hot".to_owned(),
        ..spec("one", "*", config)
    };
    let first = harness.apply(&[hot("a")]);
    let (old, mut replies) = (&first.plan.handlers[0], Replies::new());
    let pool = &old.targets[0].pool;
    assert!(pool.submit(batch(0, &[1]), &replies.inbox).is_ok());
    until("the call runs", || harness.registry.report()[0].busy == 1);
    let second = harness.apply(&[hot("b")]);
    assert_eq!(second.refusals, []);
    assert!(second.plan.handlers[0].generation() > old.generation());
    harness.runtime.script.open("long");
    replies.finished();
    let configs = relock(&harness.runtime.script.configs).clone();
    assert_eq!(
        configs,
        [r#"built with {"is":"a"}"#, r#"built with {"is":"b"}"#]
    );
}

#[test]
fn a_rejected_new_handler_is_not_in_the_table() {
    let mut harness = RegistryHarness::new(&[
        ("liba.so", "copy 1.0.0 copy"),
        ("libm.so", "many 1.0.0 x y"),
    ]);
    let mut unknown = spec("unknown", "*", "a");
    unknown.plugin = "other".to_owned();
    let mut ambiguous = spec("ambiguous", "*", "a");
    ambiguous.plugin = "many".to_owned();
    let too_new = spec("too-new", "2", "a");
    let hangs = spec("hangs", "*", "hang-create");
    let applied = harness.apply(&[
        unknown,
        ambiguous,
        too_new,
        hangs,
        spec("healthy", "*", "a"),
    ]);
    let names: Vec<_> = applied.plan.handlers.iter().map(|h| &*h.name).collect();
    assert_eq!(names, ["healthy"]);
    let reason = |name: &str| {
        let refusal = applied.refusals.iter().find(|r| r.handler == name).unwrap();
        assert_eq!(refusal.effect, RejectionEffect::NotRunning);
        refusal.reason.clone()
    };
    assert!(reason("unknown").contains("available: copy, many"));
    assert!(reason("ambiguous").contains("write `plugin: many/x` or `plugin: many/y`"));
    assert!(reason("too-new").contains("matches `2`; available: 1.0.0"));
    assert!(reason("hangs").contains("timed out after 300ms"));
    harness.runtime.script.open("create");
}

#[test]
fn packages_are_found_and_read_again_when_their_manifest_changes() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let folder = harness.folder.path().to_owned();
    std::fs::create_dir_all(folder.join("pack")).unwrap();
    std::fs::create_dir_all(folder.join("deps")).unwrap();
    put(&folder, "pack/libb.so", "copy 1.1.0 copy");
    put(&folder, "deps/libc.so", "copy 9.0.0 copy");
    let before = harness.apply(&[spec("one", "*", "a")]);
    assert_eq!(&*before.plan.handlers[0].targets[0].version, "1.0.0");
    put(&folder, "pack/plugin.yaml", "name: copy");
    let packed = harness.rescan().unwrap();
    assert_eq!(&*packed.plan.handlers[0].targets[0].version, "1.1.0");
    assert!(harness.rescan().is_none());
    put(&folder, "pack/plugin.yaml", "name: copy # again");
    assert!(
        harness.rescan().is_some(),
        "the library is read again with it"
    );
}

#[test]
fn unsigned_plugins_are_refused_unless_allowed() {
    let mut harness = RegistryHarness::with(&[("liba.so", "copy 1.0.0 copy")], &[], false);
    let applied = harness.apply(&[spec("one", "*", "a")]);
    assert!(applied.plan.handlers.is_empty());
    let reason = &applied.refusals[0].reason;
    assert!(reason.contains("plugins.allow_unsigned: true"), "{reason}");
    assert_eq!(harness.loads(), 0);
}

#[test]
fn a_handler_is_loaded_when_its_gate_first_opens_and_stays_loaded_when_it_closes() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let gate = |open| {
        let mut spec = spec("one", "*", "a");
        spec.enabled = open;
        spec
    };
    let closed = harness.apply(&[gate(false)]);
    assert!(closed.plan.handlers[0].targets.is_empty() && harness.loads() == 0);
    let open = harness.apply(&[gate(true)]);
    assert_eq!(run_one(&open.plan.handlers[0]), [outcome_code::ACK]);
    let closed = harness.apply(&[gate(false)]);
    assert_eq!(
        closed.plan.handlers[0].generation(),
        open.plan.handlers[0].generation()
    );
    assert!(closed.changed.is_empty());
}

#[test]
fn a_gate_opens_only_if_its_instances_are_healthy() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let open = spec("one", "*", "a");
    let closed = HandlerSpec {
        enabled: false,
        ..open.clone()
    };
    let first = harness.apply(std::slice::from_ref(&open));
    harness.apply(std::slice::from_ref(&closed));
    let state = |harness: &RegistryHarness| harness.registry.report()[0].state;
    harness
        .runtime
        .script
        .unhealthy
        .store(true, Ordering::SeqCst);
    until("it is reported", || {
        state(&harness) == HandlerState::Unhealthy
    });
    let held = harness.apply(std::slice::from_ref(&open));
    assert!(!held.plan.handlers[0].spec.enabled, "it is unhealthy");
    assert!(held.refusals[0].reason.contains("scripted to be unhealthy"));
    assert!(!harness.registry.recover(), "it is still unhealthy");
    harness
        .runtime
        .script
        .unhealthy
        .store(false, Ordering::SeqCst);
    until("it has recovered", || {
        state(&harness) == HandlerState::Active
    });
    assert!(harness.registry.recover());
    let opened = harness.registry.current();
    assert!(opened.plan.handlers[0].spec.enabled);
    assert_eq!(opened.refusals, []);
    let kept = opened.plan.handlers[0].generation();
    assert_eq!(kept, first.plan.handlers[0].generation());
}

#[test]
fn a_tripped_handler_runs_again_after_its_gate_was_closed_and_opened() {
    let mut harness =
        RegistryHarness::with(&[("liba.so", "copy 1.0.0 copy")], &[(1, Step::Panic)], true);
    let spec = |open| {
        let mut spec = spec("one", "*", "a");
        spec.restart.max_restarts = 0;
        spec.enabled = open;
        spec
    };
    let plan = harness.apply(&[spec(true)]).plan;
    assert_eq!(run_one(&plan.handlers[0]), [outcome_code::PANICKED]);
    assert_eq!(harness.registry.report()[0].state, HandlerState::Failed);
    let pool = plan.handlers[0].targets[0].pool.clone();
    harness.apply(&[spec(true)]);
    assert_eq!(pool.state(), PoolState::Failed, "nothing was requested");
    harness.apply(&[spec(false)]);
    assert_eq!(pool.state(), PoolState::Failed);
    harness.apply(&[spec(true)]);
    assert_eq!(pool.state(), PoolState::Active);
    let error = harness.registry.report()[0].last_error.clone().unwrap();
    assert!(error.message.contains("failed 1 times"), "{error:?}");
}

#[test]
fn a_thousand_handlers_share_two_threads_and_few_instances() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let shared = |n: usize| {
        let mut spec = spec(&format!("h{n}"), "*", "a");
        spec.pool = Some("small".to_owned());
        spec.workers = 2;
        spec
    };
    let specs: Vec<_> = (0..1_000).map(shared).collect();
    let applied = harness.apply(&specs);
    assert_eq!(
        (applied.refusals.len(), applied.plan.handlers.len()),
        (0, 1_000)
    );
    let script = Arc::clone(&harness.runtime.script);
    assert_eq!(script.living(), 0);
    for plan in applied.plan.handlers.iter().take(10) {
        assert_eq!(run_one(plan), [outcome_code::ACK]);
    }
    assert!(script.living() <= 20, "{} instances", script.living());
    drop(applied);
    assert!(
        harness
            .registry
            .shutdown(Instant::now() + Duration::from_secs(20))
    );
    assert_eq!(script.living(), 0);
    assert_eq!(
        relock(&harness.runtime.loaded)[0]
            .shut_down
            .load(Ordering::SeqCst),
        1
    );
}

#[test]
fn a_removed_handler_is_released_and_its_index_is_never_reused() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let both = harness.apply(&[spec("one", "*", "a"), spec("two", "*", "a")]);
    let place = both.plan.handlers[1].ix;
    let one = harness.apply(&[spec("one", "*", "a")]);
    assert_eq!(
        (one.changed, one.plan.handlers.len()),
        (vec!["two".to_owned()], 1)
    );
    drop(both);
    until("its instance is dropped", || {
        harness.runtime.script.living() == 1
    });
    let again = harness.apply(&[spec("three", "*", "a"), spec("two", "*", "a")]);
    assert_eq!(again.plan.handlers[1].ix, place);
    assert_ne!(again.plan.handlers[0].ix, place);
}

#[test]
fn the_code_of_a_rejected_generation_is_shut_down() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let applied = harness.apply(&[spec("one", "*", "refuse")]);
    assert_eq!(applied.refusals.len(), 1);
    until("its code has ended", || {
        relock(&harness.runtime.loaded)[0]
            .shut_down
            .load(Ordering::SeqCst)
            == 1
    });
}
