//! Computes the changes that take a running service from one snapshot to another. Pure: no I/O, no clock.
//!
//! ```text
//!  old, new ─► Removed … ─► per handler: Added │ Replaced (code or pool) │ one each of Route, Config, Failure, Gate
//! ```
//!
//! The service logs these changes, one aspect of one handler per line. What a change costs is decided by the handlers'
//! registry, which compares a spec with the generation that serves it: a version requirement that the loaded code still
//! meets needs no new generation, for example, although it is a change here.
//!
//! [`apply`] is the inverse: a property test applies the changes to the old snapshot and expects the new one. A new
//! field of a spec belongs to one aspect; otherwise its change is applied without a line in the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::snapshot::Snapshot;
use crate::spec::{DeadLetter, HandlerConfig, HandlerSpec, OnFailure, Restart, Retry, Route};

/// One change between two snapshots. A handler whose route, config, failure policy and gate changed without its code or pool
/// has one change per aspect.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// New handler: load the plugin, create instances, then route records.
    Added(Arc<HandlerSpec>),
    /// Deleted handler: drain, then release.
    Removed {
        /// Handler name.
        name: String,
    },
    /// Code or pool changed: a new generation replaces the old one and takes the whole new spec.
    Replaced {
        /// The new spec.
        spec: Arc<HandlerSpec>,
        /// The changed fields that require a new generation.
        because: Vec<&'static str>,
    },
    /// Route changed: the routing index is swapped, instances stay.
    Route {
        /// Handler name.
        name: String,
        /// The new route.
        route: Route,
    },
    /// Handler config changed: instances are reconfigured in place if the handler supports it; otherwise a new generation is built
    /// (ADR 0013).
    Config {
        /// Handler name.
        name: String,
        /// The new config.
        config: HandlerConfig,
    },
    /// Failure policy changed: applies from the next settlement. Only a changed `restart` builds a new generation.
    Failure {
        /// Handler name.
        name: String,
        /// The new policy.
        policy: FailurePolicy,
    },
    /// Gate opened or closed.
    Gate {
        /// Handler name.
        name: String,
        /// The new state.
        open: bool,
    },
}

/// The failure settings of a spec: retries, dead letters, restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct FailurePolicy {
    /// Retries of failed attempts.
    pub retry: Retry,
    /// Destination of records whose attempts are exhausted.
    pub dead_letter: DeadLetter,
    /// Treatment of a tripped handler's records.
    pub on_failure: OnFailure,
    /// When the handler trips.
    pub restart: Restart,
}

impl FailurePolicy {
    /// The failure settings of `spec`.
    pub fn of(spec: &HandlerSpec) -> Self {
        Self {
            retry: spec.retry,
            dead_letter: spec.dead_letter.clone(),
            on_failure: spec.on_failure,
            restart: spec.restart,
        }
    }
}

impl Change {
    /// Name of the handler that changes.
    pub fn handler(&self) -> &str {
        match self {
            Self::Added(spec) | Self::Replaced { spec, .. } => &spec.name,
            Self::Removed { name }
            | Self::Route { name, .. }
            | Self::Config { name, .. }
            | Self::Failure { name, .. }
            | Self::Gate { name, .. } => name,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(_) => f.write_str("added"),
            Self::Removed { .. } => f.write_str("removed"),
            Self::Replaced { because, .. } => {
                write!(f, "replaced for its new {}", because.join(", "))
            }
            Self::Route { .. } => f.write_str("route changed"),
            Self::Config { .. } => f.write_str("config changed"),
            Self::Failure { .. } => f.write_str("failure policy changed"),
            Self::Gate { open: true, .. } => f.write_str("gate opened"),
            Self::Gate { open: false, .. } => f.write_str("gate closed"),
        }
    }
}

/// The changes from `old` to `new`, by handler name. Removals come first, so that their resources are released before new
/// handlers are built.
pub fn diff(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
    let removed = old
        .handlers
        .keys()
        .filter(|name| !new.handlers.contains_key(*name))
        .map(|name| Change::Removed { name: name.clone() });
    let mut changes: Vec<Change> = removed.collect();
    for (name, spec) in &new.handlers {
        match old.handlers.get(name) {
            None => changes.push(Change::Added(Arc::clone(spec))),
            Some(before) if Arc::ptr_eq(before, spec) => {}
            Some(before) => changes_of_one(before, spec, &mut changes),
        }
    }
    changes
}

fn changes_of_one(old: &HandlerSpec, new: &Arc<HandlerSpec>, changes: &mut Vec<Change>) {
    let because = rebuilt_fields(old, new);
    if !because.is_empty() {
        changes.push(Change::Replaced {
            spec: Arc::clone(new),
            because,
        });
        return;
    }
    let name = || new.name.clone();
    if old.route != new.route {
        changes.push(Change::Route {
            name: name(),
            route: new.route.clone(),
        });
    }
    if old.config != new.config {
        changes.push(Change::Config {
            name: name(),
            config: new.config.clone(),
        });
    }
    let policy = FailurePolicy::of(new);
    if FailurePolicy::of(old) != policy {
        changes.push(Change::Failure {
            name: name(),
            policy,
        });
    }
    if old.enabled != new.enabled {
        changes.push(Change::Gate {
            name: name(),
            open: new.enabled,
        });
    }
}

/// Changed fields that require a new generation.
fn rebuilt_fields(old: &HandlerSpec, new: &HandlerSpec) -> Vec<&'static str> {
    let compared = [
        ("plugin", old.plugin != new.plugin),
        ("version", old.version != new.version),
        ("order", old.order != new.order),
        ("workers", old.workers != new.workers),
        ("pool", old.pool != new.pool),
        ("max_in_flight", old.max_in_flight != new.max_in_flight),
        ("timeout", old.timeout != new.timeout),
    ];
    compared
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect()
}

/// Applies `changes` to `handlers`. Changes of unknown handlers are ignored.
pub fn apply(handlers: &mut BTreeMap<String, Arc<HandlerSpec>>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Added(spec) | Change::Replaced { spec, .. } => {
                handlers.insert(spec.name.clone(), Arc::clone(spec));
            }
            Change::Removed { name } => {
                handlers.remove(name);
            }
            Change::Route { name, route } => {
                edit(handlers, name, |spec| spec.route = route.clone())
            }
            Change::Config { name, config } => {
                edit(handlers, name, |spec| spec.config = config.clone())
            }
            Change::Gate { name, open } => edit(handlers, name, |spec| spec.enabled = *open),
            Change::Failure { name, policy } => edit(handlers, name, |spec| {
                spec.retry = policy.retry;
                spec.dead_letter = policy.dead_letter.clone();
                spec.on_failure = policy.on_failure;
                spec.restart = policy.restart;
            }),
        }
    }
}

fn edit(
    handlers: &mut BTreeMap<String, Arc<HandlerSpec>>,
    name: &str,
    change: impl FnOnce(&mut HandlerSpec),
) {
    if let Some(spec) = handlers.get_mut(name) {
        change(Arc::make_mut(spec));
    }
}
