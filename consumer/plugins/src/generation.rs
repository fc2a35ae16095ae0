//! One generation of a handler: loaded code, a config, and the pool that runs it, from discovery to release.
//!
//! ```text
//!  Discovered ─► Verified ─► Loaded ─► Compatible ─► Created ─► Healthy ─► Active ─► Draining ─► Quiesced ─► Released
//!       └───────────┴───────────┴──────────┴────────────┴──► Rejected                    └──────────► Quarantined
//! ```
//!
//! All states up to `Healthy` are passed before any pump uses the generation; one that fails earlier leaves the active
//! generation unchanged (G9).

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use semver::Version;
use sluicegate_config::HandlerSpec;
use sluicegate_config::secret::{Redaction, Redactor};
use sluicegate_engine::queue::BUCKETS;
use sluicegate_pool::pool::relock;
use sluicegate_pool::{HandlerPool, HandlerStats, ReleaseWatch};
use sluicegate_runtime::{HandlerInfo, LoadedPlugin};

use super::catalogue::Artefact;
use super::reconcile::{Required, Serving, required};
use super::services::UserMetrics;
use super::table::HandlerTarget;

/// State of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GenerationState {
    /// An artefact that matches the spec was found.
    Discovered,
    /// The artefact may be run.
    Verified,
    /// Its code is loaded.
    Loaded,
    /// It exports the handler with a compatible ABI.
    Compatible,
    /// An instance was built.
    Created,
    /// That instance passed its health check.
    Healthy,
    /// It processes records.
    Active,
    /// Replaced or removed; batches may still be in flight.
    Draining,
    /// No batch is in flight and no instance is left.
    Quiesced,
    /// Its threads have exited.
    Released,
    /// It failed before it became active.
    Rejected,
    /// Some call or cleanup of it hangs: that thread and memory are never freed.
    Quarantined,
}

impl GenerationState {
    /// Whether `next` may directly follow `self`.
    pub fn may_become(self, next: Self) -> bool {
        use GenerationState::{Active, Draining, Healthy, Quarantined, Quiesced, Rejected};
        match next {
            Rejected => self < Healthy,
            Quarantined => matches!(self, Draining | Quiesced),
            // A healthy generation whose revision is superseded never becomes active.
            Draining => matches!(self, Healthy | Active),
            next => self < Rejected && next as u8 == self as u8 + 1,
        }
    }
}

/// The current state of a generation.
#[derive(Debug)]
pub struct GenerationStatus {
    handler: Arc<str>,
    number: u64,
    state: Mutex<GenerationState>,
}

impl GenerationStatus {
    /// A generation that has just been discovered.
    pub fn new(handler: Arc<str>, number: u64) -> Self {
        Self {
            handler,
            number,
            state: Mutex::new(GenerationState::Discovered),
        }
    }

    /// Name of its handler.
    pub fn handler(&self) -> Arc<str> {
        Arc::clone(&self.handler)
    }

    /// Changes the state. An invalid transition is a bug in the registry; it is logged and ignored.
    pub fn advance(&self, next: GenerationState) {
        let mut state = relock(&self.state);
        let (handler, generation) = (&*self.handler, self.number);
        if !state.may_become(next) {
            tracing::error!(handler, generation, from = ?*state, to = ?next, "invalid generation state transition");
            debug_assert!(
                false,
                "{handler}-{generation}: invalid transition from {state:?} to {next:?}"
            );
            return;
        }
        tracing::debug!(handler, generation, from = ?*state, to = ?next, "generation state changed");
        *state = next;
    }

    /// The current state.
    pub fn state(&self) -> GenerationState {
        *relock(&self.state)
    }
}

/// The plugin file whose code a generation runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CodeOrigin {
    /// The plugin's name.
    pub plugin: String,
    /// Its version.
    pub version: Version,
    /// The file; another one may be in its place by now.
    pub path: PathBuf,
    /// SHA-256 of the bytes that run.
    pub sha256: String,
}

impl CodeOrigin {
    pub(super) fn of(artefact: &Artefact) -> Self {
        Self {
            plugin: artefact.identity.name.clone(),
            version: artefact.version.clone(),
            path: artefact.path.clone(),
            sha256: artefact.identity.sha256.clone(),
        }
    }
}

impl fmt::Display for CodeOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            plugin,
            version,
            path,
            sha256,
        } = self;
        write!(
            f,
            "{plugin} {version} from {} (SHA-256 {sha256})",
            path.display()
        )
    }
}

/// Counters of a handler and version, shared by all generations of that version.
#[derive(Debug, Default)]
pub struct VersionCounters {
    /// Its calls.
    pub stats: Arc<HandlerStats>,
    /// Its own metrics.
    pub metrics: Arc<UserMetrics>,
    /// Secrets of all past and current configs of its instances.
    pub redaction: Arc<Redaction>,
}

impl VersionCounters {
    /// Redacts these secrets everywhere from now on.
    pub fn hide(&self, secrets: &Redactor) {
        if secrets.is_empty() {
            return;
        }
        self.redaction.add(secrets);
        self.metrics.hide(secrets);
        let redaction = Arc::clone(&self.redaction);
        let shown = move |topic: &str| redaction.redact(topic).into_owned();
        self.stats.emitted().show_by(Arc::new(shown));
    }
}

/// A generation that is active or being prepared.
pub struct Generation {
    /// Its number, counted over the process.
    pub number: u64,
    /// The version of its plugin.
    pub version: Arc<str>,
    /// The spec that it was built from.
    pub spec: Arc<HandlerSpec>,
    /// The plugin's description of the handler.
    pub info: Arc<HandlerInfo>,
    /// Its use of the loaded code.
    pub plugin: Arc<dyn LoadedPlugin>,
    /// Where its code is from.
    pub origin: Arc<CodeOrigin>,
    /// The pool that runs it.
    pub pool: Arc<HandlerPool>,
    /// Its state.
    pub status: Arc<GenerationStatus>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} ({})", self.spec.name, self.number, self.version)
    }
}

impl Generation {
    /// What `spec` requires while it serves; `found` as for `reconcile::required`.
    pub fn required(&self, spec: &HandlerSpec, found: Option<&str>) -> Required {
        // A tripped or unhealthy generation is replaced instead of reconfigured.
        let takes_config = self.info.takes_config
            && self.pool.failure().is_none()
            && self.pool.unhealthy_reason().is_none();
        let serving = Serving {
            spec: &self.spec,
            sha256: &self.origin.sha256,
            version: &self.version,
            takes_config,
        };
        required(Some(serving), spec, found)
    }

    /// It as the target of all keys of its handler.
    pub fn target(&self) -> HandlerTarget {
        HandlerTarget {
            generation: self.number,
            version: Arc::clone(&self.version),
            origin: Arc::clone(&self.origin),
            info: Arc::clone(&self.info),
            pool: Arc::clone(&self.pool) as _,
            buckets: BUCKETS,
        }
    }

    /// Retires it: its instances are dropped once their last batch has been returned.
    pub fn retire(self) -> Retired {
        self.status.advance(GenerationState::Draining);
        self.discard()
    }

    /// Discards a generation that never became active.
    pub(super) fn discard(self) -> Retired {
        Retired {
            watch: self.pool.release_watch(),
            name: Arc::from(self.spec.name.as_str()),
            number: self.number,
            plugin: self.plugin,
            status: self.status,
        }
    }
}

/// A generation being released.
pub struct Retired {
    /// The handler.
    pub name: Arc<str>,
    /// Its number.
    pub number: u64,
    pub(super) watch: ReleaseWatch,
    pub(super) plugin: Arc<dyn LoadedPlugin>,
    /// Its state.
    pub status: Arc<GenerationStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use GenerationState::*;

    #[test]
    fn only_the_documented_transitions_are_allowed() {
        let way = [
            Discovered, Verified, Loaded, Compatible, Created, Healthy, Active, Draining, Quiesced,
            Released,
        ];
        for (at, &from) in way.iter().enumerate() {
            for (to, &next) in way.iter().enumerate() {
                let allowed = to == at + 1 || (from == Healthy && next == Draining);
                assert_eq!(from.may_become(next), allowed, "{from:?} to {next:?}");
            }
            assert_eq!(from.may_become(Rejected), at < 5, "{from:?} rejected");
            let quarantined = matches!(from, Draining | Quiesced);
            assert_eq!(from.may_become(Quarantined), quarantined, "{from:?}");
        }
        for end in [Rejected, Quarantined, Released] {
            for next in way.into_iter().chain([Rejected, Quarantined]) {
                assert!(!end.may_become(next), "{end:?} to {next:?}");
            }
        }
    }
}
