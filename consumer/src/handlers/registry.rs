//! Turns snapshots into plans: which generation of which plugin serves each handler, and what was refused.
//!
//! ```text
//!  Snapshot ─► for each spec: catalogue.find ─► still served? ─ yes ─► keep the generation, take over the spec
//!                                                  │ no
//!                                                  ▼
//!                        prepare: load, create, health ─ failed ─► Refusal; the old generation and spec stay (G9)
//!                                                  │ well
//!                                                  ▼
//!                        Plan ─► pumps swap ─► the old generation drains (`release`)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_config::{HandlerSpec, RejectionEffect, Snapshot};
use sluicegate_runtime::HandlerRuntime;

use super::catalogue::{Artefact, Catalogue, Scan};
use super::generation::{Generation, GenerationState, Tally};
use super::plan::{HandlerPlan, Plan};
use super::pool::relock;
use super::prepare::Workshop;
use super::release::Releaser;
use crate::dispatch::{HandlerIx, WorkerPool};
use crate::emit::Emitter;

/// How soon what was refused is tried again as it is; doubled each time, up to 64 times as long.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

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
    /// Longest time to drain and drop an instance, and for a plugin to end what it runs on its own.
    pub drain_timeout: Duration,
    /// The kinds of plugin.
    pub runtimes: Vec<Arc<dyn HandlerRuntime>>,
    /// Where emitted records go.
    pub emitter: Arc<dyn Emitter>,
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
    pub plan: Plan,
    /// What is not in it, or not as declared.
    pub refusals: Vec<Refusal>,
    /// Names of the handlers whose generation changed.
    pub changed: Vec<String>,
}

/// The live handlers.
pub struct Registry {
    pub(super) inner: Mutex<Inner>,
    catalogue: Catalogue,
    workshop: Workshop,
    pub(super) releaser: Releaser,
}

pub(super) struct Inner {
    snapshot: Snapshot,
    pub(super) live: BTreeMap<String, Live>,
    places: HashMap<String, HandlerIx>,
    /// By handler and version; kept when a generation goes, so that counters never go back.
    pub(super) tallies: BTreeMap<(String, String), TallyEntry>,
}

/// Counts of a handler in one version, and which generation of it came last.
pub(super) struct TallyEntry {
    pub(super) tally: Arc<Tally>,
    /// The latest generation of that version.
    pub(super) generation: u64,
}

/// A declared handler.
#[derive(Default)]
pub(super) struct Live {
    /// What is in force; `None` when it was refused from the start.
    pub(super) applied: Option<Arc<HandlerSpec>>,
    pub(super) generation: Option<Generation>,
    pub(super) refused: Option<Refused>,
}

/// The last thing that was refused, so that it is not tried again at once: a creation that hangs costs a thread.
pub(super) struct Refused {
    spec: Arc<HandlerSpec>,
    sha256: Option<String>,
    pub(super) reason: String,
    attempts: u32,
    again_at: Instant,
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
        let workshop = Workshop::new(settings)?;
        let registry = Self {
            inner: Mutex::new(Inner {
                snapshot: Snapshot::default(),
                live: BTreeMap::new(),
                places: HashMap::new(),
                tallies: BTreeMap::new(),
            }),
            catalogue,
            workshop,
            releaser,
        };
        registry.scan_settled();
        Ok(registry)
    }

    /// Makes `snapshot` run as far as it can. Blocks while plugins load and instances are built and checked: call it on
    /// a control thread, and hand the plan to the pumps before the next call.
    pub fn apply(&self, snapshot: &Snapshot) -> Applied {
        let mut inner = relock(&self.inner);
        inner.snapshot = snapshot.clone();
        self.catalogue.scan();
        self.converge(&mut inner)
    }

    /// Reads the plugins folder again, takes what now serves the last snapshot better, and tries again what was refused
    /// a while ago. `None` when nothing changed. Call it when [`super::FolderWatch`] says so.
    pub fn refresh(&self) -> Option<Applied> {
        let changed = self.scan_settled().changed;
        let mut inner = relock(&self.inner);
        let now = Instant::now();
        let due = |live: &Live| live.refused.as_ref().is_some_and(|old| old.again_at <= now);
        if !changed && !inner.live.values().any(due) {
            return None;
        }
        let before = refusals(&inner);
        let applied = self.converge(&mut inner);
        let differs = !applied.changed.is_empty() || applied.refusals != before;
        differs.then_some(applied)
    }

    /// What is refused now.
    pub fn refusals(&self) -> Vec<Refusal> {
        refusals(&relock(&self.inner))
    }

    /// The plugins folder.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Lets a tripped handler run again; `false` when there is none of this name.
    pub fn reset(&self, handler: &str) -> bool {
        let inner = relock(&self.inner);
        let live = inner.live.get(handler);
        let Some(generation) = live.and_then(|live| live.generation.as_ref()) else {
            return false;
        };
        generation.pool.reset();
        true
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

    /// Scans until no file is too fresh to be read.
    fn scan_settled(&self) -> Scan {
        let mut found = self.catalogue.scan();
        for _ in 0..20 {
            if !found.unsettled {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            let again = self.catalogue.scan();
            found.changed |= again.changed;
            found.unsettled = again.unsettled;
        }
        found
    }

    fn converge(&self, inner: &mut Inner) -> Applied {
        let specs = inner.snapshot.handlers.clone();
        let mut changed = Vec::new();
        let gone: Vec<String> = inner
            .live
            .keys()
            .filter(|name| !specs.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(live) = inner.live.remove(&name) {
                self.retire(live.generation);
                changed.push(name);
            }
        }
        for (name, spec) in &specs {
            let mut live = inner.live.remove(name).unwrap_or_default();
            if self.converge_one(inner, &mut live, spec) {
                changed.push(name.clone());
            }
            inner.live.insert(name.clone(), live);
        }
        Applied {
            plan: plan(inner),
            refusals: refusals(inner),
            changed,
        }
    }

    /// Brings one handler to its spec; `true` when its generation changed.
    fn converge_one(&self, inner: &mut Inner, live: &mut Live, spec: &Arc<HandlerSpec>) -> bool {
        if !spec.enabled && live.generation.is_none() {
            live.applied = Some(Arc::clone(spec));
            live.refused = None;
            return false;
        }
        let found = self.catalogue.find(&spec.plugin, &spec.version);
        let (artefact, handler) = match found {
            Ok(found) => found,
            Err(error) => {
                // The file may be gone from the folder while its code goes on serving.
                let serving = live.generation.as_ref();
                if serving.is_some_and(|generation| generation.still_fits(spec)) {
                    live.take_over(spec);
                } else {
                    live.refuse(spec, None, error.to_string());
                }
                return false;
            }
        };
        let sha256 = &artefact.identity.sha256;
        let serving = live.generation.as_ref();
        if serving.is_some_and(|generation| generation.serves(spec, sha256)) {
            live.take_over(spec);
            return false;
        }
        if live.was_just_refused(spec, sha256) {
            return false;
        }
        match self.prepare(inner, spec, &artefact, &handler) {
            Ok(generation) => {
                generation.standing.advance(GenerationState::Active);
                let old = live.generation.replace(generation);
                live.take_over(spec);
                self.retire(old);
                true
            }
            Err(reason) => {
                tracing::error!(handler = %spec.name, %reason, "handler refused");
                live.refuse(spec, Some(sha256.clone()), reason);
                false
            }
        }
    }

    fn prepare(
        &self,
        inner: &mut Inner,
        spec: &Arc<HandlerSpec>,
        artefact: &Arc<Artefact>,
        handler: &str,
    ) -> Result<Generation, String> {
        let number = self.workshop.next_number();
        let key = (spec.name.clone(), artefact.version.to_string());
        let known = inner
            .tallies
            .get(&key)
            .map(|entry| Arc::clone(&entry.tally));
        let tally = known.unwrap_or_default();
        let sharing = inner.snapshot.handlers.values();
        let workers = sharing
            .filter(|other| {
                spec.pool.is_some() && other.pool == spec.pool && other.plugin == spec.plugin
            })
            .map(|other| other.workers)
            .fold(spec.workers, usize::max);
        let generation =
            self.workshop
                .prepare(number, spec, artefact, handler, &tally, workers as u32)?;
        let entry = TallyEntry {
            tally,
            generation: number,
        };
        inner.tallies.insert(key, entry);
        Ok(generation)
    }

    fn retire(&self, generation: Option<Generation>) {
        if let Some(generation) = generation {
            self.releaser.follow(generation.retire());
        }
    }
}

impl Live {
    fn take_over(&mut self, spec: &Arc<HandlerSpec>) {
        self.applied = Some(Arc::clone(spec));
        self.refused = None;
    }

    /// Keeps what is in force, except for the gate: that one always follows the newest spec.
    fn refuse(&mut self, spec: &Arc<HandlerSpec>, sha256: Option<String>, reason: String) {
        if let Some(applied) = &mut self.applied
            && applied.enabled != spec.enabled
        {
            Arc::make_mut(applied).enabled = spec.enabled;
        }
        if self.generation.is_none() {
            self.applied = None;
        }
        let same = self
            .refused
            .as_ref()
            .filter(|old| old.is_of(spec, sha256.as_deref()));
        let attempts = same.map_or(0, |old| old.attempts) + 1;
        let wait = TRY_AGAIN_AFTER * (1 << (attempts - 1).min(6));
        self.refused = Some(Refused {
            spec: Arc::clone(spec),
            sha256,
            reason,
            attempts,
            again_at: Instant::now() + wait,
        });
    }

    fn was_just_refused(&self, spec: &HandlerSpec, sha256: &str) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|old| old.is_of(spec, Some(sha256)) && Instant::now() < old.again_at)
    }
}

impl Refused {
    fn is_of(&self, spec: &HandlerSpec, sha256: Option<&str>) -> bool {
        *self.spec == *spec && self.sha256.as_deref() == sha256
    }
}

fn refusals(inner: &Inner) -> Vec<Refusal> {
    let refusal = |(name, live): (&String, &Live)| {
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

fn plan(inner: &mut Inner) -> Plan {
    let mut plan = Plan {
        revision: inner.snapshot.revision,
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
