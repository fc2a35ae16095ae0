//! Turns snapshots into handler tables: which generation of which plugin serves each handler, and which specs were
//! rejected.
//!
//! ```text
//!  Snapshot ─► settle: catalogue.find ─► still served? ─ yes ─► keep the generation, take over the spec
//!                                            │ no: the gate is applied at once, the rest when it is ready
//!                                            ▼
//!               prepare_next: load, create, health ─ failed ─► Refusal; the old generation and spec stay (G9)
//!                                            │ healthy
//!                                            ▼
//!               current: table ─► pumps swap ─► the old generation drains (`release`)
//! ```
//!
//! Settling runs no plugin code and reads no file, so that gate changes apply while another handler is slow to start and while
//! the folder is slow to read. Preparing runs on threads of its own, without the lock; it first scans the folder for plugins that
//! specs lack (`lookup`), and then builds at most once at a time per handler and per shared pool: instances would otherwise get configs in another order than
//! requested. What is ready is installed only if it is still wanted (`ManagedHandler::awaits`); if the spec has
//! changed since, it is released unused.
//!
//! A rejected change is retried with growing delays and not on each snapshot, because a creation that hangs costs a
//! thread. The gate follows the newest spec even if the rest is rejected: an operator must be able to switch off a
//! handler whose spec is broken (ADR 0014).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::partition::trouble::panic_text;
use sluicegate_pool::HandlerPool;
use sluicegate_pool::pool::relock;

use super::applied::{Applied, Refusal, plan, refusals};
use super::build::{GenerationBuilder, PrepareJob};
use super::catalogue::Catalogue;
use super::changes::{self, Settled};
use super::generation::{Generation, GenerationState, VersionCounters};
use super::lookup::Lookup;
use super::managed::{DesiredSpec, ManagedHandler, PendingChange, RefusalKind, reset_in_place};
use super::outputs;
use super::reconcile::{Required, SpecEffect};
use super::release::Releaser;
use super::settings::RegistrySettings;

/// How long the first scan of the plugins folder waits for files that are still being written.
const FIRST_SCAN_TIMEOUT: Duration = Duration::from_secs(2);

/// The declared handlers and their generations.
pub struct Registry {
    pub(super) inner: Mutex<Inner>,
    pub(super) catalogue: Catalogue,
    pub(super) builder: GenerationBuilder,
    pub(super) releaser: Releaser,
}

pub(super) struct Inner {
    pub(super) snapshot: Snapshot,
    pub(super) live: BTreeMap<String, ManagedHandler>,
    pub(super) places: HashMap<String, HandlerIx>,
    /// By handler and version; kept after a generation is released, so that counters never decrease.
    pub(super) counters: BTreeMap<(String, String), CountersEntry>,
    /// Handlers whose generation changed since the last call of [`Registry::current`].
    changed: BTreeSet<String>,
    /// The last revision that was applied completely.
    pub(super) applied_revision: u64,
    /// Running preparations, each on its own thread.
    in_progress: Vec<Preparation>,
    /// Whether the folder is scanned for plugins that specs lack.
    pub(super) lookup: Lookup,
}

/// A running preparation. At most one per handler and per shared pool, so that the instances of a pool get configs in the
/// order in which they were requested.
struct Preparation {
    handler: String,
    pool: Option<(String, String)>,
}

impl Preparation {
    fn of(spec: &HandlerSpec) -> Self {
        let pool = spec.pool.clone();
        Self {
            handler: spec.name.clone(),
            pool: pool.map(|pool| (spec.plugin_name().to_owned(), pool)),
        }
    }

    fn excludes(&self, spec: &HandlerSpec) -> bool {
        let pools = self.pool.as_ref().zip(spec.pool.as_ref());
        let same_pool = pools
            .is_some_and(|((plugin, pool), other)| plugin == spec.plugin_name() && pool == other);
        self.handler == spec.name || same_pool
    }
}

/// Counters of a handler and version, and its latest generation.
pub(super) struct CountersEntry {
    pub(super) counters: Arc<VersionCounters>,
    /// The latest generation of that version.
    pub(super) generation: u64,
}

impl Registry {
    /// A registry without handlers; the plugins folder has been scanned once.
    ///
    /// # Errors
    /// The operating system's error if a thread cannot be started.
    pub fn new(settings: RegistrySettings) -> std::io::Result<Self> {
        let runtimes = settings.runtimes.clone();
        let folder = settings.folder.clone();
        let catalogue = Catalogue::new(folder, settings.allow_unsigned, runtimes);
        let releaser = Releaser::start(settings.drain_timeout)?;
        let builder = GenerationBuilder::new(settings)?;
        let registry = Self {
            inner: Mutex::new(Inner {
                snapshot: Snapshot::default(),
                live: BTreeMap::new(),
                places: HashMap::new(),
                counters: BTreeMap::new(),
                changed: BTreeSet::new(),
                applied_revision: 0,
                in_progress: Vec::new(),
                lookup: Lookup::default(),
            }),
            catalogue,
            builder,
            releaser,
        };
        // Waits for files that are too new to be read, with a limit.
        registry
            .catalogue
            .scan_settled(FIRST_SCAN_TIMEOUT, |_| false);
        Ok(registry)
    }

    /// Applies `snapshot` as far as possible. Blocks while plugins are loaded and instances are built and checked.
    pub fn apply(&self, snapshot: &Snapshot) -> Applied {
        self.settle(snapshot);
        while self.prepare_next() {}
        self.current()
    }

    /// Applies what needs no new generation: gates, routes, removals. Says what changed, and whether generations are left to
    /// prepare with [`Registry::prepare_next`]. Waits for nothing: it neither reads the plugins folder nor runs plugin code.
    pub fn settle(&self, snapshot: &Snapshot) -> Settled {
        let mut inner = relock(&self.inner);
        let before = std::mem::replace(&mut inner.snapshot, snapshot.clone());
        let prepares = self.converge_seeking(&mut inner);
        Settled {
            changes: changes::between(&before, &inner.snapshot, |name| inner.effect_of(name)),
            prepares,
        }
    }

    /// Follows a scan of the plugins folder (`changed`: it found changes), for artefacts that serve the last snapshot better, and
    /// retries rejected specs that are due. Returns whether anything may have changed; call [`Registry::prepare_next`] then. To be
    /// called after every scan on a notification of [`super::FolderWatch`].
    pub fn follow_scan(&self, changed: bool) -> bool {
        let mut inner = relock(&self.inner);
        let now = Instant::now();
        let due =
            |live: &ManagedHandler| live.refused.as_ref().is_some_and(|old| old.again_at <= now);
        if !changed && !inner.live.values().any(due) {
            return false;
        }
        self.converge(&mut inner);
        true
    }

    /// Opens gates that were held closed for unhealthy instances that have recovered. Returns whether any changed.
    pub fn recover(&self) -> bool {
        let mut inner = relock(&self.inner);
        if !inner.live.values().any(ManagedHandler::has_recovered) {
            return false;
        }
        self.converge(&mut inner);
        true
    }

    /// Whether at least `count` generations are wanted and could be prepared now; a scan for missing plugins counts as one.
    pub fn has_waiting(&self, count: usize) -> bool {
        let inner = relock(&self.inner);
        let scans = usize::from(inner.lookup == Lookup::Wanted);
        scans + inner.wanted().take(count).count() >= count
    }

    /// Prepares one wanted generation and activates it if it is still wanted once it is ready. Blocks while its code is loaded
    /// and its instance is built and checked; other threads may prepare other generations concurrently. `false` if there is
    /// none left to prepare. Before that, it scans the folder for the plugins of specs that lack theirs.
    pub fn prepare_next(&self) -> bool {
        if self.seek_missing() {
            return true;
        }
        let Some((job, name)) = self.take_wanted() else {
            return false;
        };
        {
            let _guard = PreparationGuard {
                inner: &self.inner,
                handler: &name,
            };
            let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare(&job, &name)));
            if let Err(panic) = prepared {
                // Otherwise the handler would count as being prepared forever, without a report.
                let message = job
                    .counters
                    .redaction
                    .redact(panic_text(&*panic))
                    .into_owned();
                let reason = format!(
                    "preparing the generation panicked: {message}; this is a bug in the plugin or in the service: report it. It is \
                     retried later, or at once by `sluicegate handlers restart {name}`"
                );
                refuse(
                    &mut relock(&self.inner),
                    &name,
                    &job,
                    reason,
                    RefusalKind::Rejected,
                );
            }
        }
        true
    }

    fn prepare(&self, job: &PrepareJob, name: &str) {
        if let Some(pool) = self.pool_that_takes_config(name, job) {
            match self.builder.reconfigure(&pool, job) {
                // Build a new generation, which need not wait for the calls of the old one.
                Ok(false) => {}
                Err(error) => {
                    refuse(
                        &mut relock(&self.inner),
                        name,
                        job,
                        error.to_string(),
                        error.kind(),
                    );
                    return;
                }
                Ok(true) => {
                    self.take_config(name, job);
                    return;
                }
            }
        }
        let prepared = self.builder.prepare(job);
        let mut inner = relock(&self.inner);
        match prepared {
            Ok(generation) => self.install(&mut inner, name, generation, job),
            Err(error) => {
                if let Some(leftover) = error.leftover {
                    self.releaser.follow(*leftover);
                }
                let error = error.error;
                refuse(&mut inner, name, job, error.to_string(), error.kind());
            }
        }
    }

    /// The handler's active pool, if only the config changes and its instances can take one.
    fn pool_that_takes_config(&self, name: &str, job: &PrepareJob) -> Option<Arc<HandlerPool>> {
        let inner = relock(&self.inner);
        let live = inner.live.get(name).filter(|live| !live.restarting)?;
        let generation = live.generation.as_ref()?;
        let found = Some(job.artefact.identity.sha256.as_str());
        let takes = generation.required(&job.spec, found) == Required::Reconfigure
            && outputs::refusal(&generation.info, &job.spec).is_none();
        takes.then(|| Arc::clone(&generation.pool))
    }

    /// Records that the running instances have taken the config of `job`.
    fn take_config(&self, name: &str, job: &PrepareJob) {
        let mut inner = relock(&self.inner);
        let Some(live) = inner.live.get_mut(name) else {
            return;
        };
        if let Some(generation) = &mut live.generation {
            generation.spec = Arc::clone(&job.spec);
        }
        if live.awaits(job.number) {
            live.next = PendingChange::Nothing;
            live.take_over(&job.spec);
            inner.changed.insert(name.to_owned());
            return;
        }
        // The spec has changed since, perhaps back to the previous config.
        self.converge(&mut inner);
    }

    /// The current handler table, and what changed since the last call.
    pub fn current(&self) -> Applied {
        let mut inner = relock(&self.inner);
        Applied {
            plan: plan(&mut inner),
            refusals: refusals(&inner),
            changed: std::mem::take(&mut inner.changed).into_iter().collect(),
            settled: inner.snapshot.revision,
            preparing: inner.preparing(),
        }
    }

    /// The current rejections.
    pub fn refusals(&self) -> Vec<Refusal> {
        refusals(&relock(&self.inner))
    }

    /// The plugins folder.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Retires all generations and blocks until they are released; `false` if some are not by the deadline. Pumps must drop
    /// their tables for that.
    pub fn shutdown(&self, deadline: Instant) -> bool {
        let mut inner = relock(&self.inner);
        for (_, live) in std::mem::take(&mut inner.live) {
            self.retire(live.generation);
        }
        drop(inner);
        self.releaser.wait(deadline)
    }

    /// Brings every handler as close to its spec as possible without a new generation; returns whether one is wanted.
    pub(super) fn converge(&self, inner: &mut Inner) -> bool {
        let specs = inner.snapshot.handlers.clone();
        let seeks = inner.lookup != Lookup::Done;
        let stays = |name: &String| specs.contains_key(name);
        let (live, gone) = std::mem::take(&mut inner.live)
            .into_iter()
            .partition(|(name, _)| stays(name));
        inner.live = live;
        for (name, live) in gone {
            self.retire(live.generation);
            inner.changed.insert(name);
        }
        let mut wanted = false;
        for (name, spec) in specs {
            let live = inner.live.entry(name).or_default();
            live.next = match (
                self.step(live, &spec, seeks),
                std::mem::take(&mut live.next),
            ) {
                // Already being prepared.
                (PendingChange::Wanted(new), PendingChange::Preparing(old, number))
                    if new.is_same(&old) =>
                {
                    PendingChange::Preparing(old, number)
                }
                (next, _) => next,
            };
            wanted |= matches!(live.next, PendingChange::Wanted(_) | PendingChange::Sought);
        }
        wanted
    }

    /// Brings one handler to its spec, or returns what this needs. `seeks`: a scan for missing plugins is to come or running.
    fn step(
        &self,
        live: &mut ManagedHandler,
        spec: &Arc<HandlerSpec>,
        seeks: bool,
    ) -> PendingChange {
        if !spec.enabled && live.generation.is_none() {
            live.take_over(spec);
            return PendingChange::Nothing;
        }
        let serving = live.generation.as_ref();
        let (artefact, handler) = match self.catalogue.find(&spec.plugin, &spec.version) {
            Ok(found) => {
                live.is_without_file = false;
                found
            }
            // The file may have been removed from the folder while its code stays active.
            Err(error) if runs(serving, spec, None) => {
                if !std::mem::replace(&mut live.is_without_file, true) {
                    tracing::warn!(
                        handler = %spec.name,
                        reason = %error,
                        "the code of this handler runs on, but its plugin is missing: a start of the service would fail"
                    );
                }
                reset_in_place(live, spec);
                take_over(live, spec);
                return PendingChange::Nothing;
            }
            // Its file may have been written just before the spec. What was missing for this spec before is not waited for again.
            Err(_) if seeks && spec.enabled && !live.was_refused_unbuilt(spec) => {
                live.follow_gate(spec);
                return PendingChange::Sought;
            }
            Err(error) => {
                live.end_restart(Some(&error.to_string()));
                live.refuse(spec, None, error.to_string(), RefusalKind::Rejected);
                return PendingChange::Nothing;
            }
        };
        let sha256 = &artefact.identity.sha256;
        if runs(serving, spec, Some(sha256)) && !live.restarting {
            take_over(live, spec);
            return PendingChange::Nothing;
        }
        live.follow_gate(spec);
        if live.was_just_refused(spec, sha256) {
            return PendingChange::Nothing;
        }
        PendingChange::Wanted(DesiredSpec {
            spec: Arc::clone(spec),
            artefact,
            handler,
        })
    }

    /// The next generation to prepare, and its handler's name.
    fn take_wanted(&self) -> Option<(PrepareJob, String)> {
        let mut inner = relock(&self.inner);
        let (name, wanted) = inner.wanted().next()?;
        let (name, wanted) = (name.clone(), wanted.clone());
        let spec = &wanted.spec;
        let key = (name.clone(), wanted.artefact.version.to_string());
        let counters = inner
            .counters
            .get(&key)
            .map(|entry| Arc::clone(&entry.counters));
        let sharing = inner.snapshot.handlers.values().filter(|other| {
            spec.pool.is_some()
                && other.pool == spec.pool
                && other.plugin_name() == spec.plugin_name()
        });
        let workers = sharing
            .map(|other| other.workers)
            .fold(spec.workers, usize::max);
        let job = PrepareJob {
            number: self.builder.next_number(),
            spec: Arc::clone(spec),
            artefact: Arc::clone(&wanted.artefact),
            handler: wanted.handler.clone(),
            counters: counters.unwrap_or_default(),
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
        };
        inner.in_progress.push(Preparation::of(&job.spec));
        if let Some(live) = inner.live.get_mut(&name) {
            live.next = PendingChange::Preparing(wanted, job.number);
        }
        Some((job, name))
    }

    fn install(&self, inner: &mut Inner, name: &str, generation: Generation, job: &PrepareJob) {
        let live = inner.live.get_mut(name);
        let Some(live) = live.filter(|live| live.awaits(job.number)) else {
            // The handler was removed or its spec has changed since.
            self.retire(Some(generation));
            return;
        };
        generation.status.advance(GenerationState::Active);
        tracing::info!(
            handler = name,
            generation = generation.number,
            version = &*generation.version,
            plugin = %generation.origin,
            "a new generation serves"
        );
        live.next = PendingChange::Nothing;
        live.end_restart(None);
        let old = live.generation.replace(generation);
        live.take_over(&job.spec);
        self.retire(old);
        inner.changed.insert(name.to_owned());
        let entry = CountersEntry {
            counters: Arc::clone(&job.counters),
            generation: job.number,
        };
        let key = (name.to_owned(), job.artefact.version.to_string());
        inner.counters.insert(key, entry);
    }

    fn retire(&self, generation: Option<Generation>) {
        if let Some(generation) = generation {
            self.releaser.follow(generation.retire());
        }
    }
}

/// Removes a preparation when it ends, also by a panic.
struct PreparationGuard<'r> {
    inner: &'r Mutex<Inner>,
    handler: &'r str,
}

impl Drop for PreparationGuard<'_> {
    fn drop(&mut self) {
        let mut inner = relock(self.inner);
        inner.in_progress.retain(|one| one.handler != self.handler);
    }
}

impl Inner {
    /// Generations that are wanted and can be prepared now, by handler.
    fn wanted(&self) -> impl Iterator<Item = (&String, &DesiredSpec)> {
        self.live.iter().filter_map(|(name, live)| {
            let PendingChange::Wanted(wanted) = &live.next else {
                return None;
            };
            let excludes = |in_progress: &Preparation| in_progress.excludes(&wanted.spec);
            let is_free = !self.in_progress.iter().any(excludes);
            is_free.then_some((name, wanted))
        })
    }

    /// What happens to the spec of a declared handler.
    fn effect_of(&self, name: &str) -> SpecEffect {
        let live = self.live.get(name);
        live.map_or(SpecEffect::Refused, ManagedHandler::effect)
    }

    /// Handlers that are not yet as the snapshot declares them.
    fn preparing(&self) -> Vec<String> {
        let waits = |(name, live): (&String, &ManagedHandler)| {
            (!matches!(live.next, PendingChange::Nothing)).then(|| name.clone())
        };
        self.live.iter().filter_map(waits).collect()
    }
}

/// Whether the serving generation runs `spec`, with at most another handler table.
fn runs(serving: Option<&Generation>, spec: &HandlerSpec, found: Option<&str>) -> bool {
    serving.is_some_and(|generation| generation.required(spec, found) == Required::Nothing)
}

/// Rejects the spec of `job`, if it is still wanted.
fn refuse(inner: &mut Inner, name: &str, job: &PrepareJob, reason: String, kind: RefusalKind) {
    let live = inner.live.get_mut(name);
    if let Some(live) = live.filter(|live| live.awaits(job.number)) {
        live.next = PendingChange::Nothing;
        live.end_restart(Some(&reason));
        let sha256 = job.artefact.identity.sha256.clone();
        live.refuse(&job.spec, Some(sha256), reason, kind);
    }
}

/// Applies a spec that the active generation can run, unless its route matches a topic that the handler emits to.
fn take_over(live: &mut ManagedHandler, spec: &Arc<HandlerSpec>) {
    // Gate changes pass through here too: an unchanged route and config are not checked again.
    let same = live
        .applied
        .as_ref()
        .is_some_and(|old| old.route.topics == spec.route.topics && old.config == spec.config);
    let serving = live.generation.as_ref().filter(|_| !same);
    match serving.and_then(|generation| outputs::refusal(&generation.info, spec)) {
        None => live.take_over_if_healthy(spec),
        Some(reason) => live.refuse(spec, None, reason, RefusalKind::Rejected),
    }
}
