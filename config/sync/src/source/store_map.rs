//! Maps a store's tree to a snapshot. Pure: the result depends on the tree, the member id and the last good values.
//!
//! ```text
//!  each key ─► valid? ─ yes ─► this value ─┐
//!                └ no ─► last good value ───┴► spec (or that of a rollout for this member)
//!                        (none: not running)    + config key + gate key ─► HandlerSpec
//! ```
//!
//! A rejected spec, or one that conflicts with others, leaves its handler unchanged, except for the gate: the gate closes if the
//! rejected text closes it without a gate key.
//!
//! Values are parsed once and cached with their result, so that a changed key does not cause the others to be parsed again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluicegate_config::Environment;
use sluicegate_config::control::{
    ControlKey, Rollout, read_level, read_rollout, read_spec_of, read_switch, read_text,
};
use sluicegate_config::document::Lookup;
use sluicegate_config::problem::{Problem, Problems};
use sluicegate_config::service::References;
use sluicegate_config::snapshot::{
    MetricsLevel, Rejection, RejectionEffect, RuntimeSettings, Snapshot,
};
use sluicegate_config::spec::{HandlerConfig, HandlerSpec, LocatedSpec, Origin, read_config};
use sluicegate_store::{Entry, Tree};

use super::dead_letters::{circle_problem, closing};
use super::gate_edit::RefusedText;
use super::parsed_key::ParsedKey;
use super::pools::{DeclaredPool, pool_conflicts};

/// Returns the full path of a key, for messages.
pub(super) type Locate<'a> = &'a dyn Fn(&ControlKey) -> String;

/// The parse state of all keys across successive trees.
pub(super) struct StoreMap {
    environment: Environment,
    references: References,
    /// This process's member id, which selects rollouts.
    member: String,
    handlers: BTreeMap<String, HandlerKeys>,
    record_log: ParsedKey<bool>,
    metrics: ParsedKey<MetricsLevel>,
    last: Arc<Snapshot>,
}

/// The keys of one handler.
#[derive(Default)]
struct HandlerKeys {
    spec: ParsedKey<Arc<LocatedSpec>>,
    config: ParsedKey<HandlerConfig>,
    gate: ParsedKey<bool>,
    rollout: ParsedKey<Arc<RolloutState>>,
    canary: ParsedKey<()>,
    /// Whether the current spec is rejected and closes the gate.
    spec_closes: bool,
    /// The same for the spec of a rollout for this member.
    rollout_closes: bool,
    /// The last version without conflicts, and whether its spec declared the gate open.
    accepted: Option<(Arc<HandlerSpec>, bool)>,
    /// All keys combined; `None` if the handler does not run.
    combined: Option<Arc<HandlerSpec>>,
}

/// The spec and config of a rollout, if it applies to this member.
struct RolloutState {
    spec: Option<Arc<LocatedSpec>>,
    config: Option<HandlerConfig>,
}

impl StoreMap {
    pub(super) fn new(environment: Environment, references: References, member: String) -> Self {
        Self {
            environment,
            references,
            member,
            handlers: BTreeMap::new(),
            record_log: ParsedKey::default(),
            metrics: ParsedKey::default(),
            last: Arc::default(),
        }
    }

    /// Sets the member id. If it changed, rollouts are parsed again with the next tree.
    pub(super) fn set_member(&mut self, id: &str) {
        if self.member != id {
            id.clone_into(&mut self.member);
            for keys in self.handlers.values_mut() {
                keys.rollout.forget();
            }
        }
    }

    /// The active snapshot.
    pub(super) fn last(&self) -> Arc<Snapshot> {
        Arc::clone(&self.last)
    }

    /// Updates to `tree` and returns the new snapshot.
    pub(super) fn settle(&mut self, tree: &Tree, locate: Locate<'_>) -> Arc<Snapshot> {
        self.read(tree, locate);
        let mut rejections = self.refused(locate);
        let mut conflicting = self.conflicting_specs(locate);
        self.refuse_circles(&mut conflicting, locate);
        let mut handlers = BTreeMap::new();
        for (name, keys) in &mut self.handlers {
            let spec = match conflicting.get(name) {
                // The other handlers of its pool or cycle are unchanged, so it keeps its earlier version, too.
                Some(_) => keys.as_accepted(self.last.handlers.get(name)),
                None => keys.accept(),
            };
            if let Some(spec) = spec {
                handlers.insert(name.clone(), spec);
            }
        }
        for (name, problem) in conflicting {
            let mut problems = Problems::new();
            problems.push(problem);
            let key = locate(&ControlKey::Spec(name.clone()));
            rejections.push((Some(name), key, problems));
        }
        let mut rejections: Vec<Rejection> = rejections
            .into_iter()
            .map(|(name, origin, problems)| {
                let Some(name) = name else {
                    return ignored(origin, problems);
                };
                let runs_on = handlers.contains_key(&name);
                Rejection::of_one(origin, Some(&name), runs_on, problems)
            })
            .collect();
        rejections.extend(unrecognized_keys(tree));
        rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.last = Arc::new(Snapshot {
            revision: tree.revision,
            handlers,
            rejections,
            switches: RuntimeSettings {
                record_log: self.record_log.in_effect().copied().unwrap_or_default(),
                metrics: self.metrics.in_effect().copied().unwrap_or_default(),
            },
        });
        self.last()
    }

    /// Problems that block startup: a declared handler that would not run, or whose gate value is unknown. A handler whose gate
    /// is known to be closed never blocks startup.
    pub(super) fn blocking_problems(&self) -> Problems {
        let mut problems = Problems::new();
        for rejection in &self.last.rejections {
            let left_out = |name: &String| {
                let keys = self.handlers.get(name);
                keys.is_some_and(|keys| keys.spec.has_value() && !keys.is_closed())
            };
            if rejection.effect == RejectionEffect::NotRunning
                && rejection.handlers.iter().any(left_out)
            {
                problems.merge(rejection.problems.clone());
            }
        }
        problems
    }

    /// The last good value of every key, from which the next start can derive the active snapshot.
    pub(super) fn good_values(&self) -> BTreeMap<ControlKey, Arc<[u8]>> {
        let mut good = BTreeMap::new();
        let mut add = |key: ControlKey, value: Option<&Arc<[u8]>>| {
            if let Some(value) = value {
                good.insert(key, Arc::clone(value));
            }
        };
        for (name, keys) in &self.handlers {
            add(ControlKey::Spec(name.clone()), keys.spec.good_value());
            add(ControlKey::Config(name.clone()), keys.config.good_value());
            let closed: Arc<[u8]> = b"false".as_slice().into();
            let gate = match keys.gate.in_effect() {
                // The rejected text that closes it is not cached.
                None if keys.is_closed() => Some(&closed),
                _ => keys.gate.good_value(),
            };
            add(ControlKey::Enabled(name.clone()), gate);
            add(ControlKey::Rollout(name.clone()), keys.rollout.good_value());
        }
        add(ControlKey::Logging, self.record_log.good_value());
        add(ControlKey::MetricsLevel, self.metrics.good_value());
        good
    }

    /// Referenced files and variables may have changed: values with references are parsed again with the next tree.
    pub(super) fn forget_references(&mut self) {
        for keys in self.handlers.values_mut() {
            keys.spec.forget_references();
            keys.config.forget_references();
            keys.rollout.forget_references();
        }
    }

    fn read(&mut self, tree: &Tree, locate: Locate<'_>) {
        let named: BTreeSet<&str> = tree
            .entries
            .keys()
            .filter_map(ControlKey::handler)
            .collect();
        self.handlers
            .retain(|name, _| named.contains(name.as_str()));
        for name in named {
            let keys = match self.handlers.get_mut(name) {
                Some(keys) => keys,
                None => self.handlers.entry(name.to_owned()).or_default(),
            };
            let reader = Reader {
                environment: &self.environment,
                references: &self.references,
                member: &self.member,
                tree,
                locate,
            };
            if reader.read(name, keys) {
                keys.combined = keys.combine(self.last.handlers.get(name));
            }
        }
        let key = ControlKey::Logging;
        self.record_log.read(value_at(tree, &key), |value| {
            read_switch(value, &locate(&key))
        });
        let key = ControlKey::MetricsLevel;
        self.metrics.read(value_at(tree, &key), |value| {
            read_level(value, &locate(&key))
        });
    }

    /// Every rejected key: its handler, its path, its problems.
    fn refused(&self, locate: Locate<'_>) -> Vec<(Option<String>, String, Problems)> {
        let mut refused = Vec::new();
        let mut add = |key: ControlKey, problems: Option<&Problems>| {
            if let Some(problems) = problems {
                let name = key.handler().map(str::to_owned);
                refused.push((name, locate(&key), problems.clone()));
            }
        };
        for (name, keys) in &self.handlers {
            add(ControlKey::Spec(name.clone()), keys.spec.problems());
            add(ControlKey::Config(name.clone()), keys.config.problems());
            add(ControlKey::Enabled(name.clone()), keys.gate.problems());
            add(ControlKey::Rollout(name.clone()), keys.rollout.problems());
            add(ControlKey::Canary(name.clone()), keys.canary.problems());
        }
        add(ControlKey::Logging, self.record_log.problems());
        add(ControlKey::MetricsLevel, self.metrics.problems());
        refused
    }

    /// Valid specs whose limits differ from those of the majority in their pool.
    fn conflicting_specs(&self, locate: Locate<'_>) -> BTreeMap<String, Problem> {
        let pooled: Vec<(PathBuf, &LocatedSpec)> = self
            .handlers
            .iter()
            .filter_map(|(name, keys)| {
                let located = keys.located()?;
                located.spec.pool.as_ref()?;
                Some((locate(&ControlKey::Spec(name.clone())).into(), located))
            })
            .collect();
        let declared = pooled
            .iter()
            .map(|(file, located)| DeclaredPool { file, located });
        pool_conflicts(declared)
            .into_iter()
            .map(|(one, problem)| (one.located.spec.name.clone(), problem))
            .collect()
    }

    /// Adds specs that would close a dead-letter cycle to `conflicting`, the specs that keep their earlier version.
    fn refuse_circles(&self, conflicting: &mut BTreeMap<String, Problem>, locate: Locate<'_>) {
        let before = &self.last.handlers;
        let wanted = self.handlers.iter().filter_map(|(name, keys)| {
            let spec = match conflicting.contains_key(name) {
                true => before.get(name).cloned(),
                false => keys.combined.clone(),
            };
            Some((name.clone(), spec?))
        });
        for (name, circle) in closing(wanted.collect(), before) {
            let Some(located) = self.handlers.get(&name).and_then(HandlerKeys::located) else {
                continue;
            };
            let file = PathBuf::from(locate(&ControlKey::Spec(name.clone())));
            let declared = DeclaredPool {
                file: &file,
                located,
            };
            conflicting
                .entry(name)
                .or_insert_with(|| circle_problem(&circle, &file, declared));
        }
    }
}

impl HandlerKeys {
    /// The spec that applies to this member.
    fn located(&self) -> Option<&LocatedSpec> {
        let staged = self
            .rollout
            .in_effect()
            .and_then(|staged| staged.spec.as_deref());
        let spec = self.spec.in_effect()?;
        Some(staged.unwrap_or(spec.as_ref()))
    }

    /// Combines all keys; returns `before` itself if nothing changed. `None`: the handler does not run.
    fn combine(&self, before: Option<&Arc<HandlerSpec>>) -> Option<Arc<HandlerSpec>> {
        let spec = &self.located()?.spec;
        // Without a known config or gate the handler cannot run.
        if !self.config.is_known() || !self.gate.is_known() {
            return None;
        }
        let staged = self
            .rollout
            .in_effect()
            .and_then(|staged| staged.config.as_ref());
        let config = staged.or(self.config.in_effect()).unwrap_or(&spec.config);
        let enabled = self.gate(spec.enabled);
        if let Some(before) = before
            && before.enabled == enabled
            && before.config == *config
            && is_same_apart_from_keys(before, spec)
        {
            return Some(Arc::clone(before));
        }
        Some(Arc::new(HandlerSpec {
            enabled,
            config: config.clone(),
            ..spec.clone()
        }))
    }

    /// The gate, given the active spec's `declared` value.
    fn gate(&self, declared: bool) -> bool {
        let key = self.gate.in_effect().copied();
        key.unwrap_or(declared && !self.closes_gate())
    }

    /// Whether a rejected text that applies to this member closes the gate.
    fn closes_gate(&self) -> bool {
        let staged = self.rollout.in_effect();
        let is_staged = staged.is_some_and(|staged| staged.spec.is_some());
        self.rollout_closes || (self.spec_closes && !is_staged)
    }

    /// Whether the gate is closed regardless of the spec.
    fn is_closed(&self) -> bool {
        !self.gate(true)
    }

    /// Makes the combined keys active.
    fn accept(&mut self) -> Option<Arc<HandlerSpec>> {
        let declared = self.located().is_some_and(|located| located.spec.enabled);
        let accepted = self.combined.clone().map(|combined| (combined, declared));
        self.accepted = accepted;
        self.combined.clone()
    }

    /// The last accepted version with the current gate; returns `before` itself if nothing changed.
    fn as_accepted(&self, before: Option<&Arc<HandlerSpec>>) -> Option<Arc<HandlerSpec>> {
        let (accepted, declared) = self.accepted.as_ref()?;
        // The current spec is rejected only for its conflict with others, so its `enabled` is valid.
        let wants = self.located().is_none_or(|located| located.spec.enabled);
        let enabled = self.gate(*declared && wants);
        let same = |one: &&Arc<HandlerSpec>| {
            one.enabled == enabled
                && is_same_apart_from_keys(one, accepted)
                && one.config == accepted.config
        };
        if let Some(before) = before.filter(same) {
            return Some(Arc::clone(before));
        }
        Some(Arc::new(HandlerSpec {
            enabled,
            ..HandlerSpec::clone(accepted)
        }))
    }
}

/// Whether two specs are equal except for gate and config, which have their own keys.
fn is_same_apart_from_keys(one: &HandlerSpec, two: &HandlerSpec) -> bool {
    let two = HandlerSpec {
        enabled: one.enabled,
        config: one.config.clone(),
        ..two.clone()
    };
    *one == two
}

/// Parses the keys of a handler.
struct Reader<'a> {
    environment: &'a Environment,
    references: &'a References,
    member: &'a str,
    tree: &'a Tree,
    locate: Locate<'a>,
}

impl Reader<'_> {
    /// Returns whether a key changed.
    fn read(&self, name: &str, keys: &mut HandlerKeys) -> bool {
        let value = |key: &ControlKey| value_at(self.tree, key);
        let place = |key: &ControlKey| (self.locate)(key);
        let key = ControlKey::Spec(name.to_owned());
        let mut changed = keys.spec.read(value(&key), |value| {
            read_spec_of(name, value, self.origin(Path::new(&place(&key)))).map(Arc::new)
        });
        if changed {
            let refused = keys.spec.problems().and(value(&key));
            keys.spec_closes = refused.is_some_and(|value| closes_gate(value));
        }
        let key = ControlKey::Config(name.to_owned());
        changed |= keys.config.read(value(&key), |value| {
            let place = place(&key);
            read_config(read_text(value, &place)?, self.origin(Path::new(&place)))
        });
        let key = ControlKey::Enabled(name.to_owned());
        changed |= keys
            .gate
            .read(value(&key), |value| read_switch(value, &place(&key)));
        let key = ControlKey::Rollout(name.to_owned());
        let staged = keys.rollout.read(value(&key), |value| {
            let place = place(&key);
            let rollout = read_rollout(value, &place)?;
            self.staged(name, &rollout, Path::new(&place)).map(Arc::new)
        });
        if staged {
            let refused = keys.rollout.problems().and(value(&key));
            keys.rollout_closes = refused.is_some_and(|value| self.closes_here(value));
        }
        changed |= staged;
        let key = ControlKey::Canary(name.to_owned());
        keys.canary.read(value(&key), |_| {
            let message = "canaries are not available yet; delete the key";
            Err(Problems::of_file(Some(Path::new(&place(&key))), message))
        });
        changed
    }

    /// The spec and config of a rollout, if it applies to this member.
    fn staged(
        &self,
        name: &str,
        rollout: &Rollout,
        place: &Path,
    ) -> Result<RolloutState, Problems> {
        if !rollout.is_for(self.member) {
            return Ok(RolloutState {
                spec: None,
                config: None,
            });
        }
        let origin = self.origin(place);
        let spec = rollout.spec.as_deref();
        let spec = spec.map(|text| read_spec_of(name, text.as_bytes(), origin).map(Arc::new));
        let config = rollout.config.as_ref();
        let config = config.map(|config| read_config(&config.to_string(), origin));
        Ok(RolloutState {
            spec: spec.transpose()?,
            config: config.transpose()?,
        })
    }

    /// Whether a rejected rollout has a spec for this member that closes the gate.
    fn closes_here(&self, value: &[u8]) -> bool {
        let rollout = read_rollout(value, "").ok();
        let rollout = rollout.filter(|rollout| rollout.is_for(self.member));
        let spec = rollout.and_then(|rollout| rollout.spec);
        spec.is_some_and(|text| closes_gate(text.as_bytes()))
    }

    fn origin<'o>(&'o self, place: &'o Path) -> Origin<'o> {
        Origin {
            place: Some(place),
            lookup: Lookup::Listed {
                environment: self.environment,
                references: self.references,
            },
        }
    }
}

fn value_at<'t>(tree: &'t Tree, key: &ControlKey) -> Option<&'t Arc<[u8]>> {
    tree.get(key).map(|Entry { value, .. }| value)
}

/// Whether a rejected spec closes its gate.
fn closes_gate(value: &[u8]) -> bool {
    read_text(value, "").is_ok_and(|text| RefusedText::read(text).closes_gate)
}

fn ignored(origin: String, problems: Problems) -> Rejection {
    Rejection {
        origin,
        handlers: Vec::new(),
        effect: RejectionEffect::Ignored,
        problems,
    }
}

/// Rejections of paths that are not control keys.
fn unrecognized_keys(tree: &Tree) -> impl Iterator<Item = Rejection> + '_ {
    tree.unrecognized_keys.iter().map(|(path, why)| {
        let problems = Problems::of_file(Some(Path::new(path)), why.clone());
        ignored(path.clone(), problems)
    })
}
