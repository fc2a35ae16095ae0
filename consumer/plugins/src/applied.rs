//! What is applied: the handler table of the registry, and its rejections.

use std::sync::Arc;

use sluicegate_config::RejectionEffect;
use sluicegate_engine::dispatch::HandlerIx;

use super::generation::Generation;
use super::managed::{ManagedHandler, PendingChange, RefusalKind};
use super::registry::Inner;
use super::table::{HandlerPlan, HandlerTable};

/// A rejected spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The handler.
    pub handler: String,
    /// Why, and the remedy.
    pub reason: String,
    /// What stays in effect.
    pub effect: RejectionEffect,
    /// Nothing is known to be wrong with the spec or its plugin: it may be served once what it needs is available.
    pub may_heal: bool,
}

/// Result of applying a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The handler table for the pumps.
    pub plan: HandlerTable,
    /// Handlers that are missing from the table, or not as declared.
    pub refusals: Vec<Refusal>,
    /// Names of the handlers whose generation changed.
    pub changed: Vec<String>,
    /// Revision of the snapshot that the table reflects, apart from pending preparations.
    pub settled: u64,
    /// Names of the handlers of which only the gate is applied so far.
    pub preparing: Vec<String>,
}

/// The current rejections.
pub(super) fn refusals(inner: &Inner) -> Vec<Refusal> {
    let refusal = |(name, live): (&String, &ManagedHandler)| {
        live.refused.as_ref().map(|refused| Refusal {
            handler: name.clone(),
            reason: refused.reason.clone(),
            effect: match live.generation {
                Some(_) => RejectionEffect::LastGoodSpec,
                None => RejectionEffect::NotRunning,
            },
            may_heal: refused.kind != RefusalKind::Rejected,
        })
    };
    inner.live.iter().filter_map(refusal).collect()
}

/// The handler table of what is applied.
pub(super) fn plan(inner: &mut Inner) -> HandlerTable {
    let ready = |live: &ManagedHandler| matches!(live.next, PendingChange::Nothing);
    if inner.live.values().all(ready) {
        inner.applied_revision = inner.snapshot.revision;
    }
    let mut plan = HandlerTable {
        revision: inner.applied_revision,
        handlers: Vec::new(),
    };
    for (name, live) in &inner.live {
        let Some(spec) = &live.applied else {
            continue;
        };
        let next = HandlerIx(inner.places.len() as u32);
        let ix = *inner.places.entry(name.clone()).or_insert(next);
        let targets = live.generation.iter().map(Generation::target);
        plan.handlers.push(HandlerPlan {
            ix,
            name: name.as_str().into(),
            spec: Arc::clone(spec),
            targets: targets.collect(),
        });
    }
    plan
}
