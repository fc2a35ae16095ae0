//! Builds generations: load, create, health check, all before any pump uses them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluicegate_config::HandlerSpec;
use sluicegate_engine::emit::Emitter;
use sluicegate_pool::pool::{ConfigNotTaken, relock};
use sluicegate_pool::{
    CallWatchdog, Crew, CrewSettings, HandlerPool, HandlerSetup, LiveConfig, RestartPolicy,
};

use super::catalogue::Artefact;
use super::generation::{
    Code, Generation, GenerationState, GenerationStatus, Retired, VersionCounters,
};
use super::outputs;
use super::redaction::Redacted;
use super::services::HandlerServices;
use super::settings::RegistrySettings;

/// Builds generations; shares loaded code by hash, and crews by pool name.
pub(super) struct GenerationBuilder {
    cache: PathBuf,
    create_timeout: Duration,
    health_interval: Duration,
    drain_timeout: Duration,
    emitter: Arc<dyn Emitter>,
    provenance: bool,
    watchdog: CallWatchdog,
    numbers: AtomicU64,
    shared: Mutex<Shared>,
}

/// Input for one generation.
pub(super) struct PrepareJob {
    pub(super) number: u64,
    pub(super) spec: Arc<HandlerSpec>,
    pub(super) artefact: Arc<Artefact>,
    /// The name under which the plugin exports the handler.
    pub(super) handler: String,
    pub(super) counters: Arc<VersionCounters>,
    /// Number of threads of its pool.
    pub(super) workers: u32,
}

/// Why a generation could not be built, and what remains to be released.
pub(super) struct BuildError {
    pub(super) reason: String,
    pub(super) leftover: Option<Retired>,
}

impl From<String> for BuildError {
    fn from(reason: String) -> Self {
        Self {
            reason,
            leftover: None,
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
            health_interval: settings.health_interval,
            drain_timeout: settings.drain_timeout,
            emitter: settings.emitter,
            provenance: settings.provenance,
            watchdog: CallWatchdog::start()?,
            numbers: AtomicU64::new(1),
            shared: Mutex::default(),
        })
    }

    /// The number of the next generation.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Builds a healthy generation, or returns the reason of the failure.
    pub(super) fn prepare(&self, job: &PrepareJob) -> Result<Generation, BuildError> {
        let name: Arc<str> = job.spec.name.as_str().into();
        let status = Arc::new(GenerationStatus::new(name, job.number));
        let prepared = self.build(job, &status);
        if prepared.is_err() {
            status.advance(GenerationState::Rejected);
        }
        prepared
    }

    fn build(
        &self,
        job: &PrepareJob,
        status: &Arc<GenerationStatus>,
    ) -> Result<Generation, BuildError> {
        let PrepareJob {
            number,
            spec,
            artefact,
            handler,
            counters,
            ..
        } = job;
        // Signatures are not supported yet, so every artefact that the catalogue returns was allowed explicitly.
        status.advance(GenerationState::Verified);
        let code = self.load(artefact, *number)?;
        status.advance(GenerationState::Loaded);
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
        status.advance(GenerationState::Compatible);
        let pool = self.join(job, &code, self.setup(job, &code, status));
        // A shared pool may serve a thousand handlers: their instances are built on first use.
        let keep = spec.pool.is_none();
        let timeout = self.create_timeout + Duration::from_secs(1);
        let generation = Generation {
            number: *number,
            version: artefact.version.to_string().into(),
            spec: Arc::clone(spec),
            info,
            code,
            pool,
            status: Arc::clone(status),
        };
        if let Err(reason) = generation.pool.probe(keep, timeout) {
            let (name, plugin, version) = (&spec.name, &spec.plugin, &artefact.version);
            counters.stats.failed(&reason);
            return Err(BuildError {
                reason: format!("handler `{name}` on plugin `{plugin}` {version}: {reason}"),
                leftover: Some(generation.discard()),
            });
        }
        status.advance(GenerationState::Created);
        status.advance(GenerationState::Healthy);
        Ok(generation)
    }

    /// Applies the config of `job` to the instances of an active pool.
    pub(super) fn reconfigure(
        &self,
        pool: &HandlerPool,
        job: &PrepareJob,
    ) -> Result<(), ConfigNotTaken> {
        let timeout = self.create_timeout + Duration::from_secs(1);
        let spec = &job.spec;
        self.hide(job);
        let taken = pool.reconfigure(&spec.config.expose().to_string(), timeout);
        taken.map_err(|not_taken| match not_taken {
            ConfigNotTaken::Busy => ConfigNotTaken::Busy,
            ConfigNotTaken::Refused(reason) => {
                job.counters.stats.failed(&reason);
                let (name, plugin, version) = (&spec.name, &spec.plugin, &job.artefact.version);
                let reason = format!("handler `{name}` on plugin `{plugin}` {version}: {reason}");
                ConfigNotTaken::Refused(reason)
            }
        })?;
        tracing::info!(handler = %spec.name, "running instances reconfigured");
        Ok(())
    }

    /// Redacts the secrets of the job's config everywhere; called before instances get the config.
    fn hide(&self, job: &PrepareJob) {
        let secrets = job.spec.config.redactor();
        job.counters.hide(secrets);
        self.emitter.hide(secrets);
    }

    fn setup(&self, job: &PrepareJob, code: &Code, status: &GenerationStatus) -> HandlerSetup {
        let (spec, counters) = (&job.spec, &job.counters);
        self.hide(job);
        let redaction = Arc::clone(&counters.redaction);
        let metrics = Arc::clone(&counters.metrics);
        let services = HandlerServices::new(status.handler(), metrics, Arc::clone(&redaction));
        let provenance = || format!("{}@{}", spec.name, job.artefact.version).into();
        HandlerSetup {
            name: status.handler(),
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
            stats: Arc::clone(&counters.stats),
        }
    }

    /// The artefact's code: already loaded, or loaded now from exactly the bytes that the catalogue has read (G11).
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
                "plugin `{}` changed while it was loaded; loading is retried after the next scan of the folder",
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

    /// Joins the shared pool that the spec names, or a new crew of its own.
    fn join(&self, job: &PrepareJob, code: &Code, setup: HandlerSetup) -> Arc<HandlerPool> {
        let settings = |name: &str| CrewSettings {
            name: name.to_owned(),
            generation: job.number,
            workers: job.workers,
            create_timeout: self.create_timeout,
            drain_timeout: self.drain_timeout,
            health_interval: self.health_interval,
        };
        let Some(pool) = &job.spec.pool else {
            return Crew::new(settings(&job.spec.name), &self.watchdog).join_first(setup);
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
        let crew = Crew::new(settings(pool), &self.watchdog);
        shared.crews.retain(|_, crew| crew.strong_count() > 0);
        shared.crews.insert(key, Arc::downgrade(&crew));
        crew.join_first(setup)
    }
}
