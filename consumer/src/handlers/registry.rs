//! Turns snapshots into plans: which generation of which plugin serves each handler, and what was refused.
//!
//! ```text
//!  Snapshot ─► settle: catalogue.find ─► still served? ─ yes ─► keep the generation, take over the spec
//!                                            │ no: the gate follows at once, the rest when it is ready
//!                                            ▼
//!               prepare_next: load, create, health ─ failed ─► Refusal; the old generation and spec stay (G9)
//!                                            │ well
//!                                            ▼
//!               current: Plan ─► pumps swap ─► the old generation drains (`release`)
//! ```
//!
//! Settling never waits for a plugin, so that gates act in time while another handler takes long to start.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_config::{HandlerSpec, RejectionEffect, Snapshot};
use sluicegate_runtime::HandlerRuntime;

use super::build::{GenerationBuilder, PrepareJob};
use super::catalogue::Catalogue;
use super::generation::{Generation, GenerationState, VersionCounters};
use super::managed::{DesiredSpec, ManagedHandler, PendingChange};
use super::outputs;
use super::pool::{ConfigNotTaken, HandlerPool, relock};
use super::release::Releaser;
use super::restarting::reset_in_place;
use super::table::{HandlerPlan, HandlerTable};
use crate::dispatch::{HandlerIx, WorkerPool};
use crate::emit::Emitter;
use crate::trouble::panic_text;

/// Longest wait of the first scan of the plugins folder for files that are just being written.
const FIRST_SCAN: Duration = Duration::from_secs(2);
/// Longest wait for a plugin that has only just come when a spec names it.
const JUST_COME: Duration = Duration::from_millis(500);

/// What a registry is made with.
pub struct RegistrySettings {
    /// Folder of artefacts.
    pub folder: PathBuf,
    /// Folder for private copies of what is loaded.
    pub cache: PathBuf,
    /// Load plugins without a signature.
    pub allow_unsigned: bool,
    /// Longest time to build and check an instance.
    pub create_timeout: Duration,
    /// Between two questions to an instance whether it is well.
    pub health_every: Duration,
    /// Longest time to drain and drop an instance, and for a plugin to end what it runs on its own.
    pub drain_timeout: Duration,
    /// The kinds of plugin.
    pub runtimes: Vec<Arc<dyn HandlerRuntime>>,
    /// Where emitted records go.
    pub emitter: Arc<dyn Emitter>,
    /// Whether emitted records say where they come from.
    pub provenance: bool,
}

/// A spec that is not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The handler.
    pub handler: String,
    /// Why, and what to do.
    pub reason: String,
    /// What stays in effect.
    pub effect: RejectionEffect,
}

/// What came of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// What pumps are to run by.
    pub plan: HandlerTable,
    /// What is not in it, or not as declared.
    pub refusals: Vec<Refusal>,
    /// Names of the handlers whose generation changed.
    pub changed: Vec<String>,
    /// The revision of the snapshot that the plan follows, apart from what is being prepared.
    pub settled: u64,
    /// Names of the handlers of which only the gate follows it yet.
    pub preparing: Vec<String>,
}

/// The live handlers.
pub struct Registry {
    pub(super) inner: Mutex<Inner>,
    catalogue: Catalogue,
    workshop: GenerationBuilder,
    pub(super) releaser: Releaser,
}

pub(super) struct Inner {
    snapshot: Snapshot,
    pub(super) live: BTreeMap<String, ManagedHandler>,
    places: HashMap<String, HandlerIx>,
    /// By handler and version; kept when a generation goes, so that counters never go back.
    pub(super) tallies: BTreeMap<(String, String), CountersEntry>,
    /// Handlers whose generation changed since somebody looked.
    changed: BTreeSet<String>,
    /// The last revision of which nothing was or is still being prepared.
    in_force: u64,
    /// What is being prepared now, each by a thread of its own.
    in_hand: Vec<InHand>,
}

/// A generation that is being prepared. Of one handler and of one shared pool there is one at a time: the instances of a
/// pool take configs in the order in which they were wanted.
struct InHand {
    handler: String,
    pool: Option<(String, String)>,
}

impl InHand {
    fn of(spec: &HandlerSpec) -> Self {
        let pool = spec.pool.clone();
        Self {
            handler: spec.name.clone(),
            pool: pool.map(|pool| (spec.plugin.clone(), pool)),
        }
    }

    fn excludes(&self, spec: &HandlerSpec) -> bool {
        let pools = self.pool.as_ref().zip(spec.pool.as_ref());
        let same_pool =
            pools.is_some_and(|((plugin, pool), other)| *plugin == spec.plugin && pool == other);
        self.handler == spec.name || same_pool
    }
}

/// Counts of a handler in one version, and which generation of it came last.
pub(super) struct CountersEntry {
    pub(super) tally: Arc<VersionCounters>,
    /// The latest generation of that version.
    pub(super) generation: u64,
}

impl Registry {
    /// A registry that runs nothing yet; the folder has been read once.
    ///
    /// # Errors
    /// The system's, when it has no threads to give.
    pub fn new(settings: RegistrySettings) -> std::io::Result<Self> {
        let runtimes = settings.runtimes.clone();
        let folder = settings.folder.clone();
        let catalogue = Catalogue::new(folder, settings.allow_unsigned, runtimes);
        let releaser = Releaser::start(settings.drain_timeout)?;
        let workshop = GenerationBuilder::new(settings)?;
        let registry = Self {
            inner: Mutex::new(Inner {
                snapshot: Snapshot::default(),
                live: BTreeMap::new(),
                places: HashMap::new(),
                tallies: BTreeMap::new(),
                changed: BTreeSet::new(),
                in_force: 0,
                in_hand: Vec::new(),
            }),
            catalogue,
            workshop,
            releaser,
        };
        // It waits, but not for ever, for files that are too fresh to be read.
        registry.catalogue.scan_settled(FIRST_SCAN, |_| false);
        Ok(registry)
    }

    /// Makes `snapshot` run as far as it can. Blocks while plugins load and instances are built and checked.
    pub fn apply(&self, snapshot: &Snapshot) -> Applied {
        self.settle(snapshot);
        while self.prepare_next() {}
        self.current()
    }

    /// Takes over what needs no new generation: gates, routes, removals. `true` when something else is wanted, for
    /// [`Registry::prepare_next`]. Does not wait for plugins, but half a second at most for a file that has only just come
    /// where a spec names a plugin that is not there: it may be that one.
    pub fn settle(&self, snapshot: &Snapshot) -> bool {
        self.catalogue.scan_settled(JUST_COME, |catalogue| {
            let is_there = |spec: &Arc<HandlerSpec>| {
                !spec.enabled || catalogue.find(&spec.plugin, &spec.version).is_ok()
            };
            snapshot.handlers.values().all(is_there)
        });
        let mut inner = relock(&self.inner);
        inner.snapshot = snapshot.clone();
        self.converge(&mut inner)
    }

    /// Reads the plugins folder again and looks for what now serves the last snapshot better, and for what was refused
    /// a while ago. `true` when something may have come of it; call [`Registry::prepare_next`] then. Call it when
    /// [`super::FolderWatch`] says so.
    pub fn rescan(&self) -> bool {
        let changed = self.catalogue.scan().changed;
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

    /// Opens the gates that were kept shut for an illness that is over; `true` when there are any.
    pub fn recover(&self) -> bool {
        let mut inner = relock(&self.inner);
        if !inner.live.values().any(ManagedHandler::is_well_again) {
            return false;
        }
        self.converge(&mut inner);
        true
    }

    /// Whether as many generations are wanted that could be prepared now.
    pub fn has_waiting(&self, count: usize) -> bool {
        relock(&self.inner).wanted().take(count).count() == count
    }

    /// Prepares one generation that is wanted, and lets it serve if it still is when it is ready. Blocks while it loads
    /// and its instance is built and checked; other threads can prepare others meanwhile. `false` when none is wanted that
    /// nobody prepares.
    pub fn prepare_next(&self) -> bool {
        let Some((job, name)) = self.take_wanted() else {
            return false;
        };
        {
            let _out_of_hand = OutOfHand {
                inner: &self.inner,
                handler: &name,
            };
            let prepared = catch_unwind(AssertUnwindSafe(|| self.prepare(&job, &name)));
            if let Err(panic) = prepared {
                // Left as it is, it would be prepared for ever, and nothing would say so.
                let said = job.tally.redaction.redact(panic_text(&*panic)).into_owned();
                let reason = format!(
                    "preparing it panicked: {said}; that is a fault of its plugin or of the service: report it. It is tried \
                     again later, and at once by `sluicegate handlers restart {name}`"
                );
                refuse(&mut relock(&self.inner), &name, &job, reason);
            }
        }
        true
    }

    fn prepare(&self, job: &PrepareJob, name: &str) {
        if let Some(pool) = self.pool_that_takes_config(name, job) {
            match self.workshop.reconfigure(&pool, job) {
                // A new generation need not wait for the calls of the old one.
                Err(ConfigNotTaken::Busy) => {}
                Err(ConfigNotTaken::Refused(reason)) => {
                    refuse(&mut relock(&self.inner), name, job, reason);
                    return;
                }
                Ok(()) => {
                    self.take_config(name, job);
                    return;
                }
            }
        }
        let prepared = self.workshop.prepare(job);
        let mut inner = relock(&self.inner);
        match prepared {
            Ok(generation) => self.install(&mut inner, name, generation, job),
            Err(unfit) => {
                if let Some(remains) = unfit.remains {
                    self.releaser.follow(remains);
                }
                refuse(&mut inner, name, job, unfit.reason);
            }
        }
    }

    /// The pool that serves the handler, when all that is wanted is another config and its instances take one.
    fn pool_that_takes_config(&self, name: &str, job: &PrepareJob) -> Option<Arc<HandlerPool>> {
        let inner = relock(&self.inner);
        let live = inner.live.get(name).filter(|live| !live.restarting)?;
        let generation = live.generation.as_ref()?;
        let sha256 = &job.artefact.identity.sha256;
        let takes = generation.takes_config_of(&job.spec, sha256)
            && outputs::refusal(&generation.info, &job.spec).is_none();
        takes.then(|| Arc::clone(&generation.pool))
    }

    /// Takes note that the instances which serve have taken the config of `job`.
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
        // Something else is wanted by now, which may be the config of before.
        self.converge(&mut inner);
    }

    /// What pumps are to run by now, and what changed since the last call.
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

    /// What is refused now.
    pub fn refusals(&self) -> Vec<Refusal> {
        refusals(&relock(&self.inner))
    }

    /// The plugins folder.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Retires everything and blocks until all is released; `false` when something was still on its way at the
    /// deadline. Pumps must have dropped their plans by then.
    pub fn shutdown(&self, deadline: Instant) -> bool {
        let mut inner = relock(&self.inner);
        for (_, live) in std::mem::take(&mut inner.live) {
            self.retire(live.generation);
        }
        drop(inner);
        self.releaser.wait(deadline)
    }

    /// Brings every handler as near to its spec as can be without a new generation; `true` when one is wanted.
    pub(super) fn converge(&self, inner: &mut Inner) -> bool {
        let specs = inner.snapshot.handlers.clone();
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
            live.next = match (self.step(live, &spec), std::mem::take(&mut live.next)) {
                // It is being prepared already.
                (Some(new), PendingChange::Preparing(old, number)) if new.is_same(&old) => {
                    PendingChange::Preparing(old, number)
                }
                (Some(new), _) => PendingChange::Wanted(new),
                (None, _) => PendingChange::Nothing,
            };
            wanted |= matches!(live.next, PendingChange::Wanted(_));
        }
        wanted
    }

    /// Brings one handler to its spec, or says what it needs for that.
    fn step(&self, live: &mut ManagedHandler, spec: &Arc<HandlerSpec>) -> Option<DesiredSpec> {
        if !spec.enabled && live.generation.is_none() {
            live.take_over(spec);
            return None;
        }
        let serving = live.generation.as_ref();
        let (artefact, handler) = match self.catalogue.find(&spec.plugin, &spec.version) {
            Ok(found) => found,
            // The file may be gone from the folder while its code goes on serving.
            Err(_) if serving.is_some_and(|generation| generation.still_fits(spec)) => {
                reset_in_place(live, spec);
                take_over(live, spec);
                return None;
            }
            Err(error) => {
                live.end_restart(Some(&error.to_string()));
                live.refuse(spec, None, error.to_string());
                return None;
            }
        };
        let sha256 = &artefact.identity.sha256;
        let serves = serving.is_some_and(|generation| generation.serves(spec, sha256));
        if serves && !live.restarting {
            take_over(live, spec);
            return None;
        }
        live.follow_gate(spec);
        if live.was_just_refused(spec, sha256) {
            return None;
        }
        Some(DesiredSpec {
            spec: Arc::clone(spec),
            artefact,
            handler,
        })
    }

    /// The next generation to prepare, and whose it is.
    fn take_wanted(&self) -> Option<(PrepareJob, String)> {
        let mut inner = relock(&self.inner);
        let (name, wanted) = inner.wanted().next()?;
        let (name, wanted) = (name.clone(), wanted.clone());
        let spec = &wanted.spec;
        let key = (name.clone(), wanted.artefact.version.to_string());
        let tally = inner
            .tallies
            .get(&key)
            .map(|entry| Arc::clone(&entry.tally));
        let sharing = inner.snapshot.handlers.values().filter(|other| {
            spec.pool.is_some() && other.pool == spec.pool && other.plugin == spec.plugin
        });
        let workers = sharing
            .map(|other| other.workers)
            .fold(spec.workers, usize::max);
        let job = PrepareJob {
            number: self.workshop.next_number(),
            spec: Arc::clone(spec),
            artefact: Arc::clone(&wanted.artefact),
            handler: wanted.handler.clone(),
            tally: tally.unwrap_or_default(),
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
        };
        inner.in_hand.push(InHand::of(&job.spec));
        if let Some(live) = inner.live.get_mut(&name) {
            live.next = PendingChange::Preparing(wanted, job.number);
        }
        Some((job, name))
    }

    fn install(&self, inner: &mut Inner, name: &str, generation: Generation, job: &PrepareJob) {
        let live = inner.live.get_mut(name);
        let Some(live) = live.filter(|live| live.awaits(job.number)) else {
            // The handler is gone or wants something else by now.
            self.retire(Some(generation));
            return;
        };
        generation.standing.advance(GenerationState::Active);
        live.next = PendingChange::Nothing;
        live.end_restart(None);
        let old = live.generation.replace(generation);
        live.take_over(&job.spec);
        self.retire(old);
        inner.changed.insert(name.to_owned());
        let entry = CountersEntry {
            tally: Arc::clone(&job.tally),
            generation: job.number,
        };
        let key = (name.to_owned(), job.artefact.version.to_string());
        inner.tallies.insert(key, entry);
    }

    fn retire(&self, generation: Option<Generation>) {
        if let Some(generation) = generation {
            self.releaser.follow(generation.retire());
        }
    }
}

/// Ends that a handler is in hand.
struct OutOfHand<'r> {
    inner: &'r Mutex<Inner>,
    handler: &'r str,
}

impl Drop for OutOfHand<'_> {
    fn drop(&mut self) {
        let mut inner = relock(self.inner);
        inner.in_hand.retain(|one| one.handler != self.handler);
    }
}

impl Inner {
    /// What is wanted and can be prepared now, by handler.
    fn wanted(&self) -> impl Iterator<Item = (&String, &DesiredSpec)> {
        self.live.iter().filter_map(|(name, live)| {
            let PendingChange::Wanted(wanted) = &live.next else {
                return None;
            };
            let excludes = |in_hand: &InHand| in_hand.excludes(&wanted.spec);
            let is_free = !self.in_hand.iter().any(excludes);
            is_free.then_some((name, wanted))
        })
    }

    /// Handlers that are not as the snapshot wants them yet.
    fn preparing(&self) -> Vec<String> {
        let waits = |(name, live): (&String, &ManagedHandler)| {
            (!matches!(live.next, PendingChange::Nothing)).then(|| name.clone())
        };
        self.live.iter().filter_map(waits).collect()
    }
}

/// The spec of `job` is refused, if it is still wanted.
fn refuse(inner: &mut Inner, name: &str, job: &PrepareJob, reason: String) {
    let live = inner.live.get_mut(name);
    if let Some(live) = live.filter(|live| live.awaits(job.number)) {
        live.next = PendingChange::Nothing;
        live.end_restart(Some(&reason));
        let sha256 = job.artefact.identity.sha256.clone();
        live.refuse(&job.spec, Some(sha256), reason);
    }
}

/// Takes over a spec that the generation which serves can run, unless its route brings back what the handler emits.
fn take_over(live: &mut ManagedHandler, spec: &Arc<HandlerSpec>) {
    // Gates move through here too: what has not changed is not looked at again.
    let same = live
        .applied
        .as_ref()
        .is_some_and(|old| old.route.topics == spec.route.topics && old.config == spec.config);
    let serving = live.generation.as_ref().filter(|_| !same);
    match serving.and_then(|generation| outputs::refusal(&generation.info, spec)) {
        None => live.take_over_if_well(spec),
        Some(reason) => live.refuse(spec, None, reason),
    }
}

fn refusals(inner: &Inner) -> Vec<Refusal> {
    let refusal = |(name, live): (&String, &ManagedHandler)| {
        live.refused.as_ref().map(|refused| Refusal {
            handler: name.clone(),
            reason: refused.reason.clone(),
            effect: match live.generation {
                Some(_) => RejectionEffect::LastGoodSpec,
                None => RejectionEffect::NotRunning,
            },
        })
    };
    inner.live.iter().filter_map(refusal).collect()
}

fn plan(inner: &mut Inner) -> HandlerTable {
    let ready = |live: &ManagedHandler| matches!(live.next, PendingChange::Nothing);
    if inner.live.values().all(ready) {
        inner.in_force = inner.snapshot.revision;
    }
    let mut plan = HandlerTable {
        revision: inner.in_force,
        handlers: Vec::new(),
    };
    for (name, live) in &inner.live {
        let Some(spec) = &live.applied else {
            continue;
        };
        let next = HandlerIx(inner.places.len() as u32);
        let ix = *inner.places.entry(name.clone()).or_insert(next);
        let generation = live.generation.as_ref();
        plan.handlers.push(HandlerPlan {
            ix,
            name: name.as_str().into(),
            generation: generation.map_or(0, |g| g.number),
            version: generation.map_or_else(|| "".into(), |g| Arc::clone(&g.version)),
            spec: Arc::clone(spec),
            pool: generation.map(|g| Arc::clone(&g.pool) as Arc<dyn WorkerPool>),
            takes_batches: generation.is_some_and(|g| g.info.takes_batches),
            keeps_key_state: generation.is_some_and(|g| g.info.keeps_key_state),
        });
    }
    plan
}
