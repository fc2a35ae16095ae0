//! Makes a generation ready to serve before anybody relies on it: load, create, health check.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluicegate_config::HandlerSpec;

use super::catalogue::Artefact;
use super::crew::{Crew, CrewSettings};
use super::generation::{
    Code, Generation, GenerationState, GenerationStatus, Retired, VersionCounters,
};
use super::outputs;
use super::overrun::OverrunWatch;
use super::pool::{ConfigNotTaken, HandlerPool, HandlerSetup, LiveConfig, relock};
use super::redaction::Redacted;
use super::registry::RegistrySettings;
use super::restart::RestartPolicy;
use super::services::HandlerServices;
use crate::emit::Emitter;

/// Builds generations, sharing loaded code by its hash and crews by their pool's name.
pub(super) struct GenerationBuilder {
    cache: PathBuf,
    create_timeout: Duration,
    health_every: Duration,
    drain_timeout: Duration,
    emitter: Arc<dyn Emitter>,
    provenance: bool,
    watch: OverrunWatch,
    numbers: AtomicU64,
    shared: Mutex<Shared>,
}

/// What a generation is made of.
pub(super) struct PrepareJob {
    pub(super) number: u64,
    pub(super) spec: Arc<HandlerSpec>,
    pub(super) artefact: Arc<Artefact>,
    /// The name under which the plugin exports the handler.
    pub(super) handler: String,
    pub(super) tally: Arc<VersionCounters>,
    /// Threads of its pool.
    pub(super) workers: u32,
}

/// Why a generation does not serve, and what of it is to be cleared away.
pub(super) struct BuildError {
    pub(super) reason: String,
    pub(super) remains: Option<Retired>,
}

impl From<String> for BuildError {
    fn from(reason: String) -> Self {
        Self {
            reason,
            remains: None,
        }
    }
}

#[derive(Default)]
struct Shared {
    code: HashMap<String, Weak<Code>>,
    /// By pool name, hash and number of workers.
    crews: HashMap<(String, String, u32), Weak<Crew>>,
}

impl GenerationBuilder {
    pub(super) fn new(settings: RegistrySettings) -> std::io::Result<Self> {
        Ok(Self {
            cache: settings.cache,
            create_timeout: settings.create_timeout,
            health_every: settings.health_every,
            drain_timeout: settings.drain_timeout,
            emitter: settings.emitter,
            provenance: settings.provenance,
            watch: OverrunWatch::start()?,
            numbers: AtomicU64::new(1),
            shared: Mutex::default(),
        })
    }

    /// The number of the next generation.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A generation that is healthy, or the reason why there is none.
    pub(super) fn prepare(&self, job: &PrepareJob) -> Result<Generation, BuildError> {
        let name: Arc<str> = job.spec.name.as_str().into();
        let standing = Arc::new(GenerationStatus::new(name, job.number));
        let prepared = self.build(job, &standing);
        if prepared.is_err() {
            standing.advance(GenerationState::Rejected);
        }
        prepared
    }

    fn build(
        &self,
        job: &PrepareJob,
        standing: &Arc<GenerationStatus>,
    ) -> Result<Generation, BuildError> {
        let PrepareJob {
            number,
            spec,
            artefact,
            handler,
            tally,
            ..
        } = job;
        // Signed plugins are not known yet, so whatever the catalogue gives out was let through on purpose.
        standing.advance(GenerationState::Verified);
        let code = self.load(artefact, *number)?;
        standing.advance(GenerationState::Loaded);
        let infos = code.plugin.handlers();
        let info = infos.iter().find(|info| info.name == *handler).cloned();
        let info = info.ok_or_else(|| {
            let (plugin, version) = (&artefact.identity.name, &artefact.version);
            format!("plugin `{plugin}` {version} announces the handler `{handler}` but does not export it; rebuild it")
        })?;
        if let Some(reason) = outputs::refusal(&info, spec) {
            let (name, plugin, version) = (&spec.name, &spec.plugin, &artefact.version);
            return Err(
                format!("handler `{name}` on plugin `{plugin}` {version}: {reason}").into(),
            );
        }
        standing.advance(GenerationState::Compatible);
        let pool = self.join(job, &code, self.setup(job, &code, standing));
        // A shared pool may serve a thousand handlers: their instances are built when they are first needed.
        let keep = spec.pool.is_none();
        let patience = self.create_timeout + Duration::from_secs(1);
        let generation = Generation {
            number: *number,
            version: artefact.version.to_string().into(),
            spec: Arc::clone(spec),
            info,
            code,
            pool,
            standing: Arc::clone(standing),
        };
        if let Err(reason) = generation.pool.probe(keep, patience) {
            let (name, plugin, version) = (&spec.name, &spec.plugin, &artefact.version);
            tally.stats.failed(&reason);
            return Err(BuildError {
                reason: format!("handler `{name}` on plugin `{plugin}` {version}: {reason}"),
                remains: Some(generation.discard()),
            });
        }
        standing.advance(GenerationState::Created);
        standing.advance(GenerationState::Healthy);
        Ok(generation)
    }

    /// Gives the config of `job` to the instances of a pool that serves.
    pub(super) fn reconfigure(
        &self,
        pool: &HandlerPool,
        job: &PrepareJob,
    ) -> Result<(), ConfigNotTaken> {
        let patience = self.create_timeout + Duration::from_secs(1);
        let spec = &job.spec;
        self.hide(job);
        let taken = pool.reconfigure(&spec.config.expose().to_string(), patience);
        taken.map_err(|not_taken| match not_taken {
            ConfigNotTaken::Busy => ConfigNotTaken::Busy,
            ConfigNotTaken::Refused(reason) => {
                job.tally.stats.failed(&reason);
                let (name, plugin, version) = (&spec.name, &spec.plugin, &job.artefact.version);
                let reason = format!("handler `{name}` on plugin `{plugin}` {version}: {reason}");
                ConfigNotTaken::Refused(reason)
            }
        })?;
        tracing::info!(handler = %spec.name, "new config taken by the running instances");
        Ok(())
    }

    /// The secrets of the config that instances are about to be given show in nothing that is said of them.
    fn hide(&self, job: &PrepareJob) {
        let secrets = job.spec.config.redactor();
        job.tally.hide(secrets);
        self.emitter.hide(secrets);
    }

    fn setup(&self, job: &PrepareJob, code: &Code, standing: &GenerationStatus) -> HandlerSetup {
        let (spec, tally) = (&job.spec, &job.tally);
        self.hide(job);
        let redaction = Arc::clone(&tally.redaction);
        let metrics = Arc::clone(&tally.metrics);
        let services = HandlerServices::new(standing.handler(), metrics, Arc::clone(&redaction));
        let provenance = || format!("{}@{}", spec.name, job.artefact.version).into();
        HandlerSetup {
            name: standing.handler(),
            exported_as: job.handler.clone(),
            plugin: Arc::new(Redacted {
                plugin: Arc::clone(&code.plugin),
                redaction,
            }),
            config: LiveConfig::new(spec.config.expose().to_string()),
            provenance: self.provenance.then(provenance),
            timeout: spec.timeout,
            restart: RestartPolicy {
                max_restarts: spec.restart.max_restarts,
                restart_window: spec.restart.restart_window,
            },
            services: Arc::new(services),
            emitter: Arc::clone(&self.emitter),
            stats: Arc::clone(&tally.stats),
        }
    }

    /// The artefact's code: what is loaded already, or a load of exactly the bytes that the catalogue read (G11).
    fn load(&self, artefact: &Artefact, number: u64) -> Result<Arc<Code>, String> {
        let sha256 = &artefact.identity.sha256;
        let mut shared = relock(&self.shared);
        if let Some(code) = shared.code.get(sha256).and_then(Weak::upgrade) {
            return Ok(code);
        }
        let plugin = artefact
            .runtime
            .load(&artefact.path, &self.cache, number)
            .map_err(|error| error.to_string())?;
        if plugin.identity().sha256 != *sha256 {
            return Err(format!(
                "plugin `{}` changed while it was loaded; it is tried again when the folder is read next",
                artefact.path.display()
            ));
        }
        let code = Arc::new(Code {
            sha256: sha256.clone(),
            plugin,
        });
        shared.code.retain(|_, code| code.strong_count() > 0);
        shared.code.insert(sha256.clone(), Arc::downgrade(&code));
        Ok(code)
    }

    /// A place in the pool that the spec names, or in a crew of its own.
    fn join(&self, job: &PrepareJob, code: &Code, setup: HandlerSetup) -> Arc<HandlerPool> {
        let settings = |name: &str| CrewSettings {
            name: name.to_owned(),
            generation: job.number,
            workers: job.workers,
            create_timeout: self.create_timeout,
            drain_timeout: self.drain_timeout,
            health_every: self.health_every,
        };
        let Some(pool) = &job.spec.pool else {
            return Crew::new(settings(&job.spec.name), &self.watch).found(setup);
        };
        let mut shared = relock(&self.shared);
        let key = (pool.clone(), code.sha256.clone(), job.workers);
        let known = shared.crews.get(&key).and_then(Weak::upgrade);
        let setup = match known {
            None => setup,
            Some(crew) => match crew.join(setup) {
                Ok(pool) => return pool,
                Err(setup) => setup,
            },
        };
        let crew = Crew::new(settings(pool), &self.watch);
        shared.crews.retain(|_, crew| crew.strong_count() > 0);
        shared.crews.insert(key, Arc::downgrade(&crew));
        crew.found(setup)
    }
}
