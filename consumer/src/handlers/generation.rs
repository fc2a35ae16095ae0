//! One generation of a handler: loaded code, a config, and the pool that runs it, from discovery to release.
//!
//! ```text
//!  Discovered ─► Verified ─► Loaded ─► Compatible ─► Created ─► Healthy ─► Active ─► Draining ─► Quiesced ─► Released
//!       └───────────┴───────────┴──────────┴────────────┴──► Rejected                    └──────────► Quarantined
//! ```
//!
//! Everything up to `Healthy` happens before a pump hears of it; a generation that fails on the way leaves the one that
//! serves untouched (G9).

use std::fmt;
use std::sync::{Arc, Mutex};

use sluicegate_config::HandlerSpec;
use sluicegate_config::secret::{Redaction, Redactor};
use sluicegate_runtime::{HandlerInfo, LoadedPlugin};

use super::pool::{HandlerPool, ReleaseWatch, relock};
use super::services::UserMetrics;
use super::stats::HandlerStats;

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GenerationState {
    /// An artefact that fits the spec is known.
    Discovered,
    /// Its bytes may be run.
    Verified,
    /// Its code is mapped.
    Loaded,
    /// It exports the handler, in a layout that fits.
    Compatible,
    /// An instance was built.
    Created,
    /// That instance says that it is well.
    Healthy,
    /// It serves.
    Active,
    /// A successor serves or the handler is gone; batches may still be under way.
    Draining,
    /// No batch is under way and no instance is left.
    Quiesced,
    /// Its threads are gone.
    Released,
    /// It failed before it served.
    Rejected,
    /// Some call or clean-up of it hangs: its thread and memory stay.
    Quarantined,
}

impl GenerationState {
    /// Whether it may come right after `self`.
    pub fn may_become(self, next: Self) -> bool {
        use GenerationState::{Active, Draining, Healthy, Quarantined, Quiesced, Rejected};
        match next {
            Rejected => self < Healthy,
            Quarantined => matches!(self, Draining | Quiesced),
            // A generation that is well but whose revision is overtaken never serves.
            Draining => matches!(self, Healthy | Active),
            next => self < Rejected && next as u8 == self as u8 + 1,
        }
    }
}

/// The state, as it moves.
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

    /// Whose generation it is.
    pub fn handler(&self) -> Arc<str> {
        Arc::clone(&self.handler)
    }

    /// Moves on. A step that is not allowed is a bug of the registry; it is reported and not taken.
    pub fn advance(&self, next: GenerationState) {
        let mut state = relock(&self.state);
        let (handler, generation) = (&*self.handler, self.number);
        if !state.may_become(next) {
            tracing::error!(handler, generation, from = ?*state, to = ?next, "generation cannot go there");
            debug_assert!(
                false,
                "{handler}-{generation} cannot go from {state:?} to {next:?}"
            );
            return;
        }
        tracing::debug!(handler, generation, from = ?*state, to = ?next, "generation moves on");
        *state = next;
    }

    /// Where it stands.
    pub fn state(&self) -> GenerationState {
        *relock(&self.state)
    }
}

/// The loaded code of one artefact, shared by all generations that run it.
pub struct Code {
    /// The hash of its bytes.
    pub sha256: String,
    /// The code.
    pub plugin: Arc<dyn LoadedPlugin>,
}

/// What is counted of a handler in one version, over all its generations of that version.
#[derive(Debug, Default)]
pub struct VersionCounters {
    /// Its calls.
    pub stats: Arc<HandlerStats>,
    /// Its own metrics.
    pub metrics: Arc<UserMetrics>,
    /// The secrets of every config that its instances have or had.
    pub redaction: Arc<Redaction>,
}

impl VersionCounters {
    /// Shows these secrets nowhere from now on.
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

/// A generation that serves or is about to.
pub struct Generation {
    /// Its number, counted over the process.
    pub number: u64,
    /// The version of its plugin.
    pub version: Arc<str>,
    /// The spec that it was built from.
    pub spec: Arc<HandlerSpec>,
    /// What the plugin says of the handler.
    pub info: HandlerInfo,
    /// Its code.
    pub code: Arc<Code>,
    /// Who runs it.
    pub pool: Arc<HandlerPool>,
    /// Where it stands.
    pub standing: Arc<GenerationStatus>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} ({})", self.spec.name, self.number, self.version)
    }
}

impl Generation {
    /// Whether it can go on serving under `spec` with the code of hash `sha256`: only what pumps read has changed.
    pub fn serves(&self, spec: &HandlerSpec, sha256: &str) -> bool {
        self.code.sha256 == sha256 && self.is_built_for(spec)
    }

    /// Whether its instances can take the config of `spec`, which is all that keeps it from serving under it. One that is
    /// not well begins anew.
    pub fn takes_config_of(&self, spec: &HandlerSpec, sha256: &str) -> bool {
        let same_config = HandlerSpec {
            config: self.spec.config.clone(),
            ..spec.clone()
        };
        self.info.takes_config
            && self.pool.failure().is_none()
            && self.pool.illness().is_none()
            && self.serves(&same_config, sha256)
    }

    /// Whether it can go on serving under `spec` when no artefact for it is to be found any more.
    pub fn still_fits(&self, spec: &HandlerSpec) -> bool {
        let version = semver::Version::parse(&self.version);
        version.is_ok_and(|version| spec.version.matches(&version)) && self.is_built_for(spec)
    }

    fn is_built_for(&self, spec: &HandlerSpec) -> bool {
        let mine = &*self.spec;
        mine.plugin == spec.plugin
            && mine.order == spec.order
            && mine.workers == spec.workers
            && mine.pool == spec.pool
            && mine.max_in_flight == spec.max_in_flight
            && mine.timeout == spec.timeout
            && mine.restart == spec.restart
            && mine.config == spec.config
    }

    /// Gives it up: pumps keep its pool until their last batch is back, then its instances go.
    pub fn retire(self) -> Retired {
        self.standing.advance(GenerationState::Draining);
        self.discard()
    }

    /// Gives up one that never served.
    pub(super) fn discard(self) -> Retired {
        Retired {
            watch: self.pool.release_watch(),
            name: Arc::from(self.spec.name.as_str()),
            number: self.number,
            code: self.code,
            standing: self.standing,
        }
    }
}

/// A generation on its way out.
pub struct Retired {
    /// The handler.
    pub name: Arc<str>,
    /// Its number.
    pub number: u64,
    pub(super) watch: ReleaseWatch,
    pub(super) code: Arc<Code>,
    /// Where it stands.
    pub standing: Arc<GenerationStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use GenerationState::*;

    #[test]
    fn only_the_drawn_steps_are_allowed() {
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
