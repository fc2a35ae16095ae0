//! Makes a generation ready to serve before anybody relies on it: load, create, health check.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluicegate_config::HandlerSpec;

use super::catalogue::Artefact;
use super::crew::{Crew, CrewSettings};
use super::generation::{Code, Generation, GenerationState, Standing, Tally};
use super::overrun::OverrunWatch;
use super::pool::{HandlerPool, HandlerSetup, relock};
use super::registry::RegistrySettings;
use super::restart::RestartPolicy;
use super::services::HandlerServices;
use crate::emit::Emitter;

/// Builds generations, sharing loaded code by its hash and crews by their pool's name.
pub(super) struct Workshop {
    cache: PathBuf,
    create_timeout: Duration,
    drain_timeout: Duration,
    emitter: Arc<dyn Emitter>,
    watch: OverrunWatch,
    numbers: AtomicU64,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    code: HashMap<String, Weak<Code>>,
    /// By pool name, hash and number of workers.
    crews: HashMap<(String, String, u32), Weak<Crew>>,
}

impl Workshop {
    pub(super) fn new(settings: RegistrySettings) -> std::io::Result<Self> {
        Ok(Self {
            cache: settings.cache,
            create_timeout: settings.create_timeout,
            drain_timeout: settings.drain_timeout,
            emitter: settings.emitter,
            watch: OverrunWatch::start()?,
            numbers: AtomicU64::new(1),
            shared: Mutex::default(),
        })
    }

    /// The number of the next generation.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A generation that is healthy, or the reason why there is none; then nothing of it stays.
    pub(super) fn prepare(
        &self,
        number: u64,
        spec: &Arc<HandlerSpec>,
        artefact: &Arc<Artefact>,
        handler: &str,
        tally: &Tally,
        workers: u32,
    ) -> Result<Generation, String> {
        let name: Arc<str> = spec.name.as_str().into();
        let standing = Arc::new(Standing::new(Arc::clone(&name), number));
        let prepared = self.build(number, spec, artefact, handler, tally, workers, &standing);
        if prepared.is_err() {
            standing.advance(GenerationState::Rejected);
        }
        prepared
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "everything that makes a generation what it is"
    )]
    fn build(
        &self,
        number: u64,
        spec: &Arc<HandlerSpec>,
        artefact: &Arc<Artefact>,
        handler: &str,
        tally: &Tally,
        workers: u32,
        standing: &Arc<Standing>,
    ) -> Result<Generation, String> {
        // Signed plugins are not known yet, so whatever the catalogue gives out was let through on purpose.
        standing.advance(GenerationState::Verified);
        let code = self.load(artefact, number)?;
        standing.advance(GenerationState::Loaded);
        let infos = code.plugin.handlers();
        let info = infos.iter().find(|info| info.name == handler).cloned();
        let info = info.ok_or_else(|| {
            let (plugin, version) = (&artefact.identity.name, &artefact.version);
            format!("plugin `{plugin}` {version} announces the handler `{handler}` but does not export it; rebuild it")
        })?;
        standing.advance(GenerationState::Compatible);
        let services = HandlerServices::new(standing.handler(), Arc::clone(&tally.metrics));
        let setup = HandlerSetup {
            name: standing.handler(),
            exported_as: handler.to_owned(),
            plugin: Arc::clone(&code.plugin),
            config_json: spec.config.expose().to_string(),
            timeout: spec.timeout,
            restart: RestartPolicy {
                max_restarts: spec.restart.max_restarts,
                restart_window: spec.restart.restart_window,
            },
            services: Arc::new(services),
            emitter: Arc::clone(&self.emitter),
            stats: Arc::clone(&tally.stats),
        };
        let pool = self.join(number, spec, &code.sha256, workers, setup);
        // A shared pool may serve a thousand handlers: their instances are built when they are first needed.
        let keep = spec.pool.is_none();
        let patience = self.create_timeout + Duration::from_secs(1);
        pool.probe(keep, patience).map_err(|reason| {
            let version = &artefact.version;
            format!(
                "handler `{}` on plugin `{}` {version}: {reason}",
                spec.name, spec.plugin
            )
        })?;
        standing.advance(GenerationState::Created);
        standing.advance(GenerationState::Healthy);
        Ok(Generation {
            number,
            version: artefact.version.to_string().into(),
            spec: Arc::clone(spec),
            info,
            code,
            pool,
            standing: Arc::clone(standing),
        })
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
    fn join(
        &self,
        number: u64,
        spec: &HandlerSpec,
        sha256: &str,
        workers: u32,
        setup: HandlerSetup,
    ) -> Arc<HandlerPool> {
        let settings = |name: &str| CrewSettings {
            name: name.to_owned(),
            generation: number,
            workers,
            create_timeout: self.create_timeout,
            drain_timeout: self.drain_timeout,
        };
        let Some(pool) = &spec.pool else {
            return Crew::new(settings(&spec.name), &self.watch).found(setup);
        };
        let mut shared = relock(&self.shared);
        let key = (pool.clone(), sha256.to_owned(), workers);
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
