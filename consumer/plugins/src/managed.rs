//! State of a declared handler in the registry: the applied spec, the last rejected one, and the pending change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_config::HandlerSpec;

use super::catalogue::Artefact;
use super::generation::Generation;
use super::reconcile::{Required, SpecEffect};

/// Delay before an unchanged rejected change is retried; doubled each time, up to 64 times this delay.
const INITIAL_RETRY_DELAY: Duration = Duration::from_secs(30);

/// A declared handler.
#[derive(Default)]
pub(super) struct ManagedHandler {
    /// The applied spec; `None` before the first generation is active.
    pub(super) applied: Option<Arc<HandlerSpec>>,
    pub(super) generation: Option<Generation>,
    pub(super) refused: Option<RejectedChange>,
    /// A new generation was requested, even if the spec does not need one.
    pub(super) restarting: bool,
    /// Why the last requested restart was refused.
    pub(super) restart_refused: Option<String>,
    pub(super) next: PendingChange,
    /// The plugin that its generation runs is missing from the folder, which was logged.
    pub(super) is_without_file: bool,
}

/// The pending change of a handler.
#[derive(Default)]
pub(super) enum PendingChange {
    #[default]
    Nothing,
    /// Its plugin is missing, and the folder is to be scanned for it.
    Sought,
    Wanted(DesiredSpec),
    /// The generation of that number is being prepared.
    Preparing(DesiredSpec, u64),
}

/// A spec that needs a new generation, and the code to build it from.
#[derive(Clone)]
pub(super) struct DesiredSpec {
    pub(super) spec: Arc<HandlerSpec>,
    pub(super) artefact: Arc<Artefact>,
    pub(super) handler: String,
}

/// The last rejected change. Not retried at once, since a creation that hangs costs a thread.
pub(super) struct RejectedChange {
    spec: Arc<HandlerSpec>,
    sha256: Option<String>,
    pub(super) reason: String,
    pub(super) kind: RefusalKind,
    attempts: u32,
    pub(super) again_at: Instant,
    /// The only obstacle is an unhealthy instance of the active generation.
    unhealthy: bool,
}

/// Why a spec is rejected, as far as that matters for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// It is the fault of the spec or of its plugin.
    Rejected,
    /// What its instances need is away.
    Unavailable,
    /// Nothing was tried: the delay of the next attempt is the initial one.
    NotTried,
}

impl ManagedHandler {
    pub(super) fn take_over(&mut self, spec: &Arc<HandlerSpec>) {
        self.reset_if_opened(spec);
        self.applied = Some(Arc::clone(spec));
        self.refused = None;
    }

    /// Applies a spec like [`Self::take_over`], but opens a closed gate only if no instance is unhealthy.
    pub(super) fn take_over_if_healthy(&mut self, spec: &Arc<HandlerSpec>) {
        let was_closed = self.applied.as_ref().is_some_and(|old| !old.enabled);
        let serving = self
            .generation
            .as_ref()
            .filter(|_| was_closed && spec.enabled);
        let Some(why) = serving.and_then(|generation| generation.pool.unhealthy_reason()) else {
            return self.take_over(spec);
        };
        self.applied = Some(Arc::new(HandlerSpec {
            enabled: false,
            ..HandlerSpec::clone(spec)
        }));
        let reason = format!("gate held closed until its instances are healthy: {why}");
        self.record_refusal(spec, None, reason, RefusalKind::Rejected);
        if let Some(refused) = &mut self.refused {
            refused.unhealthy = true;
        }
    }

    /// Whether its gate was held closed for unhealthy instances that have all recovered.
    pub(super) fn has_recovered(&self) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|refused| refused.unhealthy)
            && self
                .generation
                .as_ref()
                .is_some_and(|generation| generation.pool.unhealthy_reason().is_none())
    }

    /// What happens to its newest spec.
    pub(super) fn effect(&self) -> SpecEffect {
        match (&self.next, &self.refused) {
            (PendingChange::Nothing, None) => SpecEffect::Applied(Required::Nothing),
            (PendingChange::Nothing, Some(refused)) if refused.unhealthy => SpecEffect::Held,
            (PendingChange::Nothing, Some(_)) => SpecEffect::Refused,
            (PendingChange::Sought, _) => SpecEffect::Applied(Required::Generation),
            (PendingChange::Wanted(wanted) | PendingChange::Preparing(wanted, _), _) => {
                let found = Some(wanted.artefact.identity.sha256.as_str());
                // A restart builds a new generation, whatever the spec requires.
                let serving = self.generation.as_ref().filter(|_| !self.restarting);
                SpecEffect::Applied(serving.map_or(Required::Generation, |serving| {
                    serving.required(&wanted.spec, found)
                }))
            }
        }
    }

    /// Whether generation `number` is the one being prepared for it.
    pub(super) fn awaits(&self, number: u64) -> bool {
        matches!(self.next, PendingChange::Preparing(_, awaited) if awaited == number)
    }

    /// Applies the gate of the newest spec, even if the rest of the spec is rejected.
    pub(super) fn follow_gate(&mut self, spec: &HandlerSpec) {
        self.reset_if_opened(spec);
        if let Some(applied) = &mut self.applied
            && applied.enabled != spec.enabled
        {
            Arc::make_mut(applied).enabled = spec.enabled;
        }
        if self.generation.is_none() {
            // An open handler without a generation is not in the plan.
            self.applied = None;
        }
    }

    /// Resets a tripped handler when its gate is opened again: closing and opening the gate requests another try.
    fn reset_if_opened(&self, spec: &HandlerSpec) {
        let was_closed = self.applied.as_ref().is_some_and(|old| !old.enabled);
        if let Some(generation) = &self.generation
            && was_closed
            && spec.enabled
        {
            generation.pool.reset();
        }
    }

    /// Rejects a spec: the applied one stays, except for its gate.
    pub(super) fn refuse(
        &mut self,
        spec: &Arc<HandlerSpec>,
        sha256: Option<String>,
        reason: String,
        kind: RefusalKind,
    ) {
        self.follow_gate(spec);
        self.record_refusal(spec, sha256, reason, kind);
    }

    fn record_refusal(
        &mut self,
        spec: &Arc<HandlerSpec>,
        sha256: Option<String>,
        reason: String,
        kind: RefusalKind,
    ) {
        let same = self
            .refused
            .as_ref()
            .filter(|old| old.is_of(spec, sha256.as_deref()));
        let before = same.map_or(0, |old| old.attempts);
        let (attempts, wait) = match kind {
            RefusalKind::NotTried => (before, INITIAL_RETRY_DELAY),
            RefusalKind::Rejected | RefusalKind::Unavailable => {
                (before + 1, INITIAL_RETRY_DELAY * (1 << before.min(6)))
            }
        };
        self.refused = Some(RejectedChange {
            spec: Arc::clone(spec),
            sha256,
            reason,
            kind,
            attempts,
            again_at: Instant::now() + wait,
            unhealthy: false,
        });
    }

    /// Whether this spec was rejected before there was anything to build.
    pub(super) fn was_refused_unbuilt(&self, spec: &HandlerSpec) -> bool {
        let refused = self.refused.as_ref();
        refused.is_some_and(|old| old.is_of(spec, None))
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

impl ManagedHandler {
    /// Completes a requested restart, if there is one; `refused`: why it failed.
    pub(super) fn end_restart(&mut self, refused: Option<&str>) {
        if std::mem::take(&mut self.restarting) {
            self.restart_refused = refused.map(str::to_owned);
        }
    }
}

/// Restart without the artefact: resets the existing generation, since a new one cannot be built.
pub(super) fn reset_in_place(live: &mut ManagedHandler, spec: &Arc<HandlerSpec>) {
    if std::mem::take(&mut live.restarting)
        && let Some(generation) = &live.generation
    {
        tracing::warn!(
            handler = spec.name,
            "artefact no longer in the plugins folder; resetting the current generation instead of building a new one"
        );
        generation.pool.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry::spec;

    #[test]
    fn only_what_was_tried_delays_the_next_attempt_for_longer() {
        let mut handler = ManagedHandler::default();
        let wanted = Arc::new(spec("one", "*", "a"));
        let mut delays = Vec::new();
        let kinds = [RefusalKind::Rejected; 9]
            .into_iter()
            .chain([RefusalKind::NotTried; 2])
            .chain([RefusalKind::Rejected]);
        for kind in kinds {
            let before = Instant::now();
            handler.refuse(&wanted, None, "why".to_owned(), kind);
            let refused = handler.refused.as_ref().expect("it was refused");
            delays.push(refused.again_at.duration_since(before).as_secs() / 30);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 64, 64, 1, 1, 64]);
        let other = Arc::new(spec("one", "*", "b"));
        handler.refuse(&other, None, "why".to_owned(), RefusalKind::Rejected);
        let refused = handler.refused.as_ref().expect("it was refused");
        assert!(refused.again_at <= Instant::now() + INITIAL_RETRY_DELAY);
    }
}
