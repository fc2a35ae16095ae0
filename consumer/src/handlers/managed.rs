//! A declared handler as the registry keeps it: what is in force, what was refused, what is to come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_config::HandlerSpec;

use super::catalogue::Artefact;
use super::generation::Generation;

/// How soon what was refused is tried again as it is; doubled each time, up to 64 times as long.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A declared handler.
#[derive(Default)]
pub(super) struct ManagedHandler {
    /// What is in force; `None` before the first generation serves.
    pub(super) applied: Option<Arc<HandlerSpec>>,
    pub(super) generation: Option<Generation>,
    pub(super) refused: Option<RejectedChange>,
    /// A new generation was asked for, whether the spec needs one or not.
    pub(super) restarting: bool,
    /// Why the last restart that was asked for did not take place.
    pub(super) restart_refused: Option<String>,
    pub(super) next: PendingChange,
}

/// What is to come for a handler.
#[derive(Default)]
pub(super) enum PendingChange {
    #[default]
    Nothing,
    Wanted(DesiredSpec),
    /// The generation of that number is being prepared.
    Preparing(DesiredSpec, u64),
}

/// A spec that needs a generation of its own, and the code that fits it.
#[derive(Clone)]
pub(super) struct DesiredSpec {
    pub(super) spec: Arc<HandlerSpec>,
    pub(super) artefact: Arc<Artefact>,
    pub(super) handler: String,
}

/// The last thing that was refused, so that it is not tried again at once: a creation that hangs costs a thread.
pub(super) struct RejectedChange {
    spec: Arc<HandlerSpec>,
    sha256: Option<String>,
    pub(super) reason: String,
    attempts: u32,
    pub(super) again_at: Instant,
    /// Only an illness of the instances that serve stands in the way.
    ill: bool,
}

impl ManagedHandler {
    pub(super) fn take_over(&mut self, spec: &Arc<HandlerSpec>) {
        self.reset_if_opened(spec);
        self.applied = Some(Arc::clone(spec));
        self.refused = None;
    }

    /// The same, but a gate that was shut opens only to instances that say that they are well.
    pub(super) fn take_over_if_well(&mut self, spec: &Arc<HandlerSpec>) {
        let was_shut = self.applied.as_ref().is_some_and(|old| !old.enabled);
        let serving = self
            .generation
            .as_ref()
            .filter(|_| was_shut && spec.enabled);
        let Some(why) = serving.and_then(|generation| generation.pool.illness()) else {
            return self.take_over(spec);
        };
        self.applied = Some(Arc::new(HandlerSpec {
            enabled: false,
            ..HandlerSpec::clone(spec)
        }));
        let reason = format!("its gate stays shut until its instances are well: {why}");
        self.note_refusal(spec, None, reason);
        if let Some(refused) = &mut self.refused {
            refused.ill = true;
        }
    }

    /// Whether what kept its gate shut was an illness that is over.
    pub(super) fn is_well_again(&self) -> bool {
        self.refused.as_ref().is_some_and(|refused| refused.ill)
            && self
                .generation
                .as_ref()
                .is_some_and(|generation| generation.pool.illness().is_none())
    }

    /// Whether the generation of that number is the one that it waits for.
    pub(super) fn awaits(&self, number: u64) -> bool {
        matches!(self.next, PendingChange::Preparing(_, awaited) if awaited == number)
    }

    /// The gate follows the newest spec, whatever becomes of the rest of it.
    pub(super) fn follow_gate(&mut self, spec: &HandlerSpec) {
        self.reset_if_opened(spec);
        if let Some(applied) = &mut self.applied
            && applied.enabled != spec.enabled
        {
            Arc::make_mut(applied).enabled = spec.enabled;
        }
        if self.generation.is_none() {
            // An open handler that nobody runs is not in the plan.
            self.applied = None;
        }
    }

    /// An operator who shuts a tripped handler's gate and opens it again wants it to try again.
    fn reset_if_opened(&self, spec: &HandlerSpec) {
        let was_shut = self.applied.as_ref().is_some_and(|old| !old.enabled);
        if let Some(generation) = &self.generation
            && was_shut
            && spec.enabled
        {
            generation.pool.reset();
        }
    }

    /// Keeps what is in force, except for the gate.
    pub(super) fn refuse(
        &mut self,
        spec: &Arc<HandlerSpec>,
        sha256: Option<String>,
        reason: String,
    ) {
        self.follow_gate(spec);
        self.note_refusal(spec, sha256, reason);
    }

    fn note_refusal(&mut self, spec: &Arc<HandlerSpec>, sha256: Option<String>, reason: String) {
        let same = self
            .refused
            .as_ref()
            .filter(|old| old.is_of(spec, sha256.as_deref()));
        let attempts = same.map_or(0, |old| old.attempts) + 1;
        let wait = TRY_AGAIN_AFTER * (1 << (attempts - 1).min(6));
        self.refused = Some(RejectedChange {
            spec: Arc::clone(spec),
            sha256,
            reason,
            attempts,
            again_at: Instant::now() + wait,
            ill: false,
        });
    }

    pub(super) fn was_just_refused(&self, spec: &HandlerSpec, sha256: &str) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|old| old.is_of(spec, Some(sha256)) && Instant::now() < old.again_at)
    }
}

impl DesiredSpec {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.spec == other.spec
            && self.handler == other.handler
            && self.artefact.identity.sha256 == other.artefact.identity.sha256
    }
}

impl RejectedChange {
    pub(super) fn is_of(&self, spec: &HandlerSpec, sha256: Option<&str>) -> bool {
        *self.spec == *spec && self.sha256.as_deref() == sha256
    }
}
