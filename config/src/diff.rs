//! What has to change in the running service to get from one snapshot to another. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::snapshot::Snapshot;
use crate::spec::{DeadLetter, HandlerConfig, HandlerSpec, OnFailure, Restart, Retry, Route};

/// One step from an older snapshot to a newer one. A handler has several steps when several light aspects changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new handler: load, create, then route.
    Added(Arc<HandlerSpec>),
    /// Gone: drain, then release.
    Removed {
        /// The handler.
        name: String,
    },
    /// Its code or its pool changes: a new generation takes the old one's place, with all that the new spec says.
    Replaced {
        /// The new spec.
        spec: Arc<HandlerSpec>,
        /// Names of the fields that ask for it.
        because: Vec<&'static str>,
    },
    /// Only which records it gets: the routing index is swapped, instances stay.
    Route {
        /// The handler.
        name: String,
        /// The new route.
        route: Route,
    },
    /// Its own config: instances take it over or are rebuilt; code and pool stay.
    Config {
        /// The handler.
        name: String,
        /// The new config.
        config: HandlerConfig,
    },
    /// How its failures are treated: read at the next settlement, nothing is rebuilt.
    Failure {
        /// The handler.
        name: String,
        /// The new treatment.
        policy: FailurePolicy,
    },
    /// Its gate.
    Gate {
        /// The handler.
        name: String,
        /// Whether it is open from now on.
        open: bool,
    },
}

/// The part of a spec that says how failures are treated.
#[derive(Clone, Debug, PartialEq)]
pub struct FailurePolicy {
    /// How failed attempts are repeated.
    pub retry: Retry,
    /// Where what was given up goes.
    pub dead_letter: DeadLetter,
    /// What becomes of a tripped handler's records.
    pub on_failure: OnFailure,
    /// What trips it.
    pub restart: Restart,
}

impl FailurePolicy {
    /// The part of `spec`.
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
    /// The handler that it concerns.
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
            Self::Route { .. } => f.write_str("routed anew"),
            Self::Config { .. } => f.write_str("configured anew"),
            Self::Failure { .. } => f.write_str("failures treated anew"),
            Self::Gate { open: true, .. } => f.write_str("gate opened"),
            Self::Gate { open: false, .. } => f.write_str("gate shut"),
        }
    }
}

/// The steps from `old` to `new`, by handler name; removals come first, so that what they hold is free again.
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

/// The fields whose change needs a new generation.
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

/// `handlers` after `changes`: what a service that follows them runs. Changes of unknown handlers do nothing.
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
