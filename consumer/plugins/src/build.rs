//! Builds generations: load, create, health check, all before any pump uses them.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use semver::Version;
use sluicegate_config::HandlerSpec;
use sluicegate_config::secret::Redaction;
use sluicegate_engine::emit::Emitter;
use sluicegate_pool::pool::relock;
use sluicegate_pool::{
    CallWatchdog, ConfigNotTaken, HandlerPool, HandlerSetup, HungThreads, ProbeError,
    RestartPolicy, ThreadPool, ThreadPoolSettings,
};
use sluicegate_runtime::{HandlerInfo, LoadError, LoadedPlugin, VerifiedArtefact};

use super::catalogue::Artefact;
use super::generation::{
    CodeOrigin, Generation, GenerationState, GenerationStatus, Retired, VersionCounters,
};
use super::managed::RefusalKind;
use super::outputs;
use super::redaction::Redacted;
use super::services::HandlerServices;
use super::settings::RegistrySettings;
use super::trial::{Candidate, Trial};

/// Builds generations; shares thread pools by name.
pub(super) struct GenerationBuilder {
    cache: PathBuf,
    create_timeout: Duration,
    health_interval: Duration,
    health_timeout: Duration,
    /// The abandoned threads of all thread pools.
    pub(super) hung: HungThreads,
    drain_timeout: Duration,
    emitter: Arc<dyn Emitter>,
    /// Of all handlers, also of those that are gone.
    secrets: Arc<Redaction>,
    provenance: bool,
    trial: Option<Trial>,
    watchdog: CallWatchdog,
    numbers: AtomicU64,
    thread_pools: Mutex<ThreadPools>,
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
    pub(super) error: PrepareError,
    pub(super) leftover: Option<Box<Retired>>,
}

impl<E: Into<PrepareError>> From<E> for BuildError {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            leftover: None,
        }
    }
}

/// Why a spec cannot be served: by a new generation, or by running instances with its config.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// The runtime does not load the artefact.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The artefact ended the process that tried it.
    #[error(
        "{user}: its code ended the process in which it was tried ({how}), as it was loaded, built an instance or checked the health of that: \
         `{}` is damaged, or has a fault that would end the service; replace the file",
        .path.display()
    )]
    Crashed {
        user: Box<PluginUser>,
        path: PathBuf,
        how: ExitStatus,
    },
    /// The plugin's descriptor and its description differ.
    #[error(
        "plugin `{}` {} announces the handler `{}` but does not export it; rebuild it",
        .0.plugin,
        .0.version,
        .0.handler
    )]
    NotExported(Box<PluginUser>),
    /// The spec would make the handler's own output its input.
    #[error("{user}: {reason}")]
    EmitLoop {
        user: Box<PluginUser>,
        reason: String,
    },
    /// Threads of the handler hang, and so many of all handlers that it may not cost another one.
    #[error(
        "{user}: {own} threads of this handler's and {all} in this process are stuck in calls, creations, health checks or other \
         lifecycle calls of handlers: another generation could hang like these and is not built. Fix what they wait for: it is retried \
         later, or at once by `sluicegate handlers restart {}`; or restart the service",
        .user.handler
    )]
    TooManyHung {
        user: Box<PluginUser>,
        own: usize,
        all: usize,
    },
    /// No instance works with the spec's config.
    #[error("{user}: {source}")]
    Instance {
        user: Box<PluginUser>,
        source: ProbeError,
    },
}

impl PrepareError {
    /// What it means for the next attempt.
    pub(super) fn kind(&self) -> RefusalKind {
        match self {
            Self::TooManyHung { .. } => RefusalKind::NotTried,
            Self::Load(LoadError::Unreadable { .. }) => RefusalKind::Unavailable,
            Self::Instance { source, .. } if source.may_heal() => RefusalKind::Unavailable,
            _ => RefusalKind::Rejected,
        }
    }
}

/// A handler and the plugin that it runs on, for messages.
#[derive(Debug)]
pub(super) struct PluginUser {
    handler: String,
    plugin: String,
    version: Version,
}

impl PluginUser {
    fn of(job: &PrepareJob) -> Box<Self> {
        Box::new(Self {
            handler: job.spec.name.clone(),
            plugin: job.spec.plugin.clone(),
            version: job.artefact.version.clone(),
        })
    }
}

impl fmt::Display for PluginUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            handler,
            plugin,
            version,
        } = self;
        write!(f, "handler `{handler}` on plugin `{plugin}` {version}")
    }
}

/// Thread pools by pool name, hash of the code, and number of workers.
type ThreadPools = HashMap<(String, String, u32), Weak<ThreadPool>>;

impl GenerationBuilder {
    pub(super) fn new(settings: RegistrySettings) -> std::io::Result<Self> {
        Ok(Self {
            cache: settings.cache,
            create_timeout: settings.create_timeout,
            health_interval: settings.health_interval,
            health_timeout: settings.health_timeout,
            hung: settings.hung,
            drain_timeout: settings.drain_timeout,
            emitter: settings.emitter,
            secrets: settings.secrets,
            provenance: settings.provenance,
            trial: settings.trial,
            watchdog: CallWatchdog::start()?,
            numbers: AtomicU64::new(1),
            thread_pools: Mutex::default(),
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
        self.check_hung(job)?;
        // Signatures are not supported yet, so every artefact that the catalogue returns was allowed explicitly.
        status.advance(GenerationState::Verified);
        let verified = VerifiedArtefact::new(&artefact.path, &artefact.identity);
        self.try_out(job, &verified)?;
        let plugin = artefact.runtime.load(&verified, &self.cache, *number)?;
        status.advance(GenerationState::Loaded);
        let infos = plugin.handlers();
        let info = infos.iter().find(|info| info.name == *handler).cloned();
        let info = info.ok_or_else(|| {
            PrepareError::NotExported(Box::new(PluginUser {
                handler: handler.clone(),
                plugin: artefact.identity.name.clone(),
                version: artefact.version.clone(),
            }))
        })?;
        let info = Arc::new(info);
        if let Some(reason) = outputs::refusal(&info, spec) {
            let user = PluginUser::of(job);
            return Err(PrepareError::EmitLoop { user, reason }.into());
        }
        status.advance(GenerationState::Compatible);
        let pool = self.join(job, self.setup(job, &info, &plugin, status));
        // A shared pool may serve a thousand handlers: their instances are built on first use.
        let keep = spec.pool.is_none();
        let timeout = self.create_timeout + Duration::from_secs(1);
        let generation = Generation {
            number: *number,
            version: artefact.version.to_string().into(),
            spec: Arc::clone(spec),
            info,
            plugin,
            origin: Arc::new(CodeOrigin::of(artefact)),
            pool,
            status: Arc::clone(status),
        };
        if let Err(source) = generation.pool.probe(keep, timeout) {
            let user = PluginUser::of(job);
            counters.stats.failed(&source.to_string());
            return Err(BuildError {
                error: PrepareError::Instance { user, source },
                leftover: Some(Box::new(generation.discard())),
            });
        }
        status.advance(GenerationState::Created);
        status.advance(GenerationState::Healthy);
        Ok(generation)
    }

    /// Refuses code that ends the process that runs it.
    fn try_out(&self, job: &PrepareJob, artefact: &VerifiedArtefact) -> Result<(), PrepareError> {
        let runtime = job.artefact.runtime.as_ref();
        let Some(trial) = self.trial.as_ref().filter(|_| runtime.runs_in_process()) else {
            return Ok(());
        };
        let config = job.spec.config.expose().to_string();
        let candidate = Candidate {
            runtime,
            artefact,
            cache: &self.cache,
            handler: &job.handler,
            config: &config,
        };
        trial.of(&candidate).map_err(|how| PrepareError::Crashed {
            user: PluginUser::of(job),
            path: artefact.path.clone(),
            how,
        })
    }

    /// Every generation can cost threads before it is tripped or rejected: from the maximum on, none is built of a handler that has
    /// shown that it hangs. Others keep their way to change (G14).
    fn check_hung(&self, job: &PrepareJob) -> Result<(), PrepareError> {
        let (own, all) = (self.hung.of(&job.spec.name), self.hung.count());
        if own == 0 || !self.hung.is_full() {
            return Ok(());
        }
        let user = PluginUser::of(job);
        Err(PrepareError::TooManyHung { user, own, all })
    }

    /// Applies the config of `job` to the instances of an active pool. Returns `false` without effect if no worker was free
    /// in time.
    pub(super) fn reconfigure(
        &self,
        pool: &HandlerPool,
        job: &PrepareJob,
    ) -> Result<bool, PrepareError> {
        let timeout = self.create_timeout + Duration::from_secs(1);
        let spec = &job.spec;
        self.hide(job);
        match pool.reconfigure(&spec.config.expose().to_string(), timeout) {
            Ok(()) => {
                tracing::info!(handler = %spec.name, "running instances reconfigured");
                Ok(true)
            }
            Err(ConfigNotTaken::Busy) => Ok(false),
            Err(ConfigNotTaken::Refused(source)) => {
                job.counters.stats.failed(&source.to_string());
                let user = PluginUser::of(job);
                Err(PrepareError::Instance { user, source })
            }
        }
    }

    /// Redacts the secrets of the job's config everywhere; called before instances get the config.
    fn hide(&self, job: &PrepareJob) {
        let secrets = job.spec.config.redactor();
        job.counters.hide(secrets);
        self.secrets.add(secrets);
    }

    fn setup(
        &self,
        job: &PrepareJob,
        info: &Arc<HandlerInfo>,
        plugin: &Arc<dyn LoadedPlugin>,
        status: &GenerationStatus,
    ) -> HandlerSetup {
        let (spec, counters) = (&job.spec, &job.counters);
        self.hide(job);
        let redaction = Arc::clone(&counters.redaction);
        let metrics = Arc::clone(&counters.metrics);
        let services = HandlerServices::new(
            status.handler(),
            metrics,
            Arc::clone(&redaction),
            Arc::clone(&self.secrets),
        );
        let provenance = || format!("{}@{}", spec.name, job.artefact.version).into();
        HandlerSetup {
            name: status.handler(),
            info: Arc::clone(info),
            generation: job.number,
            plugin: Arc::new(Redacted {
                plugin: Arc::clone(plugin),
                redaction,
            }),
            config: spec.config.expose().to_string().into(),
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

    /// Joins the shared pool that the spec names, or a new thread pool of its own.
    fn join(&self, job: &PrepareJob, setup: HandlerSetup) -> Arc<HandlerPool> {
        let settings = |name: &str| ThreadPoolSettings {
            name: name.to_owned(),
            generation: job.number,
            workers: job.workers,
            create_timeout: self.create_timeout,
            drain_timeout: self.drain_timeout,
            health_interval: self.health_interval,
            health_timeout: self.health_timeout,
            hung: self.hung.clone(),
        };
        let Some(pool) = &job.spec.pool else {
            return ThreadPool::new(settings(&job.spec.name), &self.watchdog).join_first(setup);
        };
        let mut thread_pools = relock(&self.thread_pools);
        let sha256 = job.artefact.identity.sha256.clone();
        let key = (pool.clone(), sha256, job.workers);
        let known = thread_pools.get(&key).and_then(Weak::upgrade);
        let setup = match known {
            None => setup,
            Some(threads) => match threads.join(setup) {
                Ok(pool) => return pool,
                Err(setup) => setup,
            },
        };
        let threads = ThreadPool::new(settings(pool), &self.watchdog);
        thread_pools.retain(|_, threads| threads.strong_count() > 0);
        thread_pools.insert(key, Arc::downgrade(&threads));
        threads.join_first(setup)
    }
}
