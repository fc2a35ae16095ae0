//! What a new spec requires of a handler: the only place that says so (G9).
//!
//! ```text
//!  spec ─► differences to the spec that the serving generation was built from, each by who reads the field
//!             │ none, or only pumps ─► Nothing        the next handler table has it
//!             │ the config as well ──► Reconfigure    the running instances take it in place (ADR 0013)
//!             └ anything else, or other code, or no generation ─► Generation
//! ```
//!
//! The registry acts on the answer, and log, status and member report are derived from what it did. A new field of a
//! spec does not compile until [`differences`] says who reads it.

use std::fmt;

use sluicegate_config::HandlerSpec;

/// Who reads a field of a spec while the handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReadBy {
    /// The catalogue, to find the artefact: the field matters only if it finds another one.
    Catalogue,
    /// The pumps, from the handler table.
    Pumps,
    /// The instances, as their config.
    Instances,
    /// The threads and queues of a generation, which are built for one value.
    Generation,
}

/// A field in which two specs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The field, as in the spec.
    pub(crate) field: &'static str,
    /// Who reads it.
    pub(crate) read_by: ReadBy,
}

/// The fields in which two specs of a handler differ.
pub(crate) fn differences(old: &HandlerSpec, new: &HandlerSpec) -> Vec<Difference> {
    use ReadBy::{Catalogue, Generation, Instances, Pumps};
    let HandlerSpec {
        // Specs are compared by name.
        name: _,
        plugin,
        version,
        enabled,
        route,
        order,
        workers,
        pool,
        max_in_flight,
        timeout,
        retry,
        dead_letter,
        on_failure,
        restart,
        config,
    } = old;
    let compared = [
        ("plugin", Generation, *plugin != new.plugin),
        ("version", Catalogue, *version != new.version),
        ("enabled", Pumps, *enabled != new.enabled),
        ("route", Pumps, *route != new.route),
        ("order", Generation, *order != new.order),
        ("workers", Generation, *workers != new.workers),
        ("pool", Generation, *pool != new.pool),
        (
            "max_in_flight",
            Generation,
            *max_in_flight != new.max_in_flight,
        ),
        ("timeout", Generation, *timeout != new.timeout),
        ("retry", Pumps, *retry != new.retry),
        ("dead_letter", Pumps, *dead_letter != new.dead_letter),
        ("on_failure", Pumps, *on_failure != new.on_failure),
        ("restart", Generation, *restart != new.restart),
        ("config", Instances, *config != new.config),
    ];
    compared
        .into_iter()
        .filter(|(_, _, differs)| *differs)
        .map(|(field, read_by, _)| Difference { field, read_by })
        .collect()
}

/// What a spec requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    /// Nothing but a new handler table: the serving generation runs the spec.
    Nothing,
    /// The running instances take the new config.
    Reconfigure,
    /// A new generation.
    Generation,
}

/// What serves a handler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving<'a> {
    /// The spec that its generation was built from, with the config that its instances have taken since.
    pub(crate) spec: &'a HandlerSpec,
    /// Hash of its code.
    pub(crate) sha256: &'a str,
    /// Version of its plugin.
    pub(crate) version: &'a str,
    /// Whether its instances take a config in place now: they say so, and none has failed or is unhealthy.
    pub(crate) takes_config: bool,
}

/// What `spec` requires while `serving` serves. `found` is the hash of the artefact that the catalogue finds for it;
/// `None` if the folder has none any more: loaded code stays usable without its file.
pub(crate) fn required(
    serving: Option<Serving<'_>>,
    spec: &HandlerSpec,
    found: Option<&str>,
) -> Required {
    let Some(serving) = serving else {
        return Required::Generation;
    };
    let same_code = match found {
        Some(sha256) => sha256 == serving.sha256,
        None => semver::Version::parse(serving.version)
            .is_ok_and(|version| spec.version.matches(&version)),
    };
    if !same_code {
        return Required::Generation;
    }
    let differences = differences(serving.spec, spec);
    match differences.iter().map(|one| one.read_by).max() {
        None | Some(ReadBy::Catalogue | ReadBy::Pumps) => Required::Nothing,
        Some(ReadBy::Instances) if serving.takes_config => Required::Reconfigure,
        Some(ReadBy::Instances | ReadBy::Generation) => Required::Generation,
    }
}

/// What happens to a changed spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecEffect {
    /// It is applied, or will be once what it requires is ready.
    Applied(Required),
    /// It is applied, except that its gate stays closed until its instances are healthy.
    Held,
    /// It is refused, for the reason that was logged; only its gate is followed.
    Refused,
}

/// How a spec changed between two snapshots, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecChange {
    /// The handler is new.
    Added,
    /// The handler is not declared any more.
    Removed,
    /// Its spec differs.
    Changed {
        /// In which fields.
        fields: Vec<&'static str>,
        /// Whether its gate opens (`true`) or closes.
        gate: Option<bool>,
        /// What happens to it.
        effect: SpecEffect,
    },
}

impl SpecChange {
    /// The change of a spec; `None` if the specs are equal.
    pub(crate) fn between(
        old: &HandlerSpec,
        new: &HandlerSpec,
        effect: SpecEffect,
    ) -> Option<Self> {
        let mut fields: Vec<&str> = differences(old, new).iter().map(|one| one.field).collect();
        let gate = (old.enabled != new.enabled).then_some(new.enabled);
        if fields.is_empty() {
            return None;
        }
        fields.retain(|field| *field != "enabled");
        Some(Self::Changed {
            fields,
            gate,
            effect,
        })
    }
}

impl fmt::Display for SpecChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Changed {
            fields,
            gate,
            effect,
        } = self
        else {
            return f.write_str(match self {
                Self::Added => "added",
                _ => "removed",
            });
        };
        let gate = gate.map(|open| match open {
            true => "gate opened",
            false => "gate closed",
        });
        let changed = match fields.is_empty() {
            true => None,
            false => Some(format!("{} changed", fields.join(", "))),
        };
        let all: Vec<&str> = gate.into_iter().chain(changed.as_deref()).collect();
        f.write_str(&all.join(", "))?;
        f.write_str(match effect {
            SpecEffect::Applied(Required::Nothing) => "",
            SpecEffect::Applied(Required::Reconfigure) => {
                "; the running instances are offered the config"
            }
            SpecEffect::Applied(Required::Generation) => "; needs a new generation",
            SpecEffect::Held => "; the gate is held until its instances are healthy",
            SpecEffect::Refused => "; refused, only the gate is followed",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluicegate_config::spec::{
        DeadLetter, HandlerConfig, InFlightLimit, OnFailure, Order, Restart, Retry, TopicPattern,
    };
    use sluicegate_config::{Environment, read_spec};

    use super::*;

    fn base() -> HandlerSpec {
        let text = "name: a\nplugin: relay\nversion: \"1\"\nroute: { topics: [t] }\n";
        read_spec(text, None, &Environment::default()).expect("it is a spec")
    }

    type Edit = fn(&mut HandlerSpec);

    /// Every field that can differ, with a change of it and what that requires of instances that take a config.
    const EDITS: [(&str, Edit, Required); 14] = [
        (
            "plugin",
            |spec| spec.plugin = "other".into(),
            Required::Generation,
        ),
        (
            "version",
            |spec| spec.version = "1.2".parse().expect("a requirement"),
            Required::Nothing,
        ),
        (
            "enabled",
            |spec| spec.enabled = !spec.enabled,
            Required::Nothing,
        ),
        (
            "route",
            |spec| spec.route.topics = vec![TopicPattern::Exact("u".into())],
            Required::Nothing,
        ),
        (
            "order",
            |spec| spec.order = Order::Partition,
            Required::Generation,
        ),
        ("workers", |spec| spec.workers += 1, Required::Generation),
        (
            "pool",
            |spec| spec.pool = Some("p".into()),
            Required::Generation,
        ),
        (
            "max_in_flight",
            |spec| {
                spec.max_in_flight = InFlightLimit {
                    records: 1,
                    bytes: 1,
                }
            },
            Required::Generation,
        ),
        (
            "timeout",
            |spec| spec.timeout += Duration::from_secs(1),
            Required::Generation,
        ),
        (
            "retry",
            |spec| {
                spec.retry = Retry {
                    max_attempts: spec.retry.max_attempts + 1,
                    ..spec.retry
                }
            },
            Required::Nothing,
        ),
        (
            "dead_letter",
            |spec| {
                spec.dead_letter = DeadLetter {
                    topic: "dead".into(),
                    ..spec.dead_letter.clone()
                }
            },
            Required::Nothing,
        ),
        (
            "on_failure",
            |spec| spec.on_failure = OnFailure::DeadLetter,
            Required::Nothing,
        ),
        (
            "restart",
            |spec| {
                spec.restart = Restart {
                    max_restarts: spec.restart.max_restarts + 1,
                    ..spec.restart
                }
            },
            Required::Generation,
        ),
        (
            "config",
            |spec| spec.config = HandlerConfig::new(serde_json::json!({ "x": 1 })),
            Required::Reconfigure,
        ),
    ];

    fn serving(spec: &HandlerSpec) -> Serving<'_> {
        Serving {
            spec,
            sha256: "code",
            version: "1.2.3",
            takes_config: true,
        }
    }

    #[test]
    fn each_field_is_a_difference_of_its_own_and_requires_what_its_reader_needs() {
        for (field, edit, wanted) in EDITS {
            let (old, mut new) = (base(), base());
            edit(&mut new);
            let found = differences(&old, &new);
            assert_eq!(found.len(), 1, "{field}: {found:?}");
            assert_eq!(found[0].field, field);
            let of = |serving| required(Some(serving), &new, Some("code"));
            assert_eq!(of(serving(&old)), wanted, "{field}");
            let busy = Serving {
                takes_config: false,
                ..serving(&old)
            };
            let instead = match wanted {
                Required::Reconfigure => Required::Generation,
                other => other,
            };
            assert_eq!(of(busy), instead, "{field}");
        }
    }

    #[test]
    fn of_two_changes_the_one_that_requires_more_decides() {
        for (one, edit_one, wanted_one) in EDITS {
            for (other, edit_other, wanted_other) in EDITS {
                let (old, mut new) = (base(), base());
                edit_one(&mut new);
                edit_other(&mut new);
                if differences(&old, &new).len() < 2 {
                    // The same field twice.
                    continue;
                }
                let weight = |required| match required {
                    Required::Nothing => 0,
                    Required::Reconfigure => 1,
                    Required::Generation => 2,
                };
                let wanted = weight(wanted_one).max(weight(wanted_other));
                let found = required(Some(serving(&old)), &new, Some("code"));
                assert_eq!(weight(found), wanted, "{one} and {other}");
            }
        }
    }

    #[test]
    fn other_code_requires_a_new_generation_and_a_missing_file_does_not() {
        let (old, mut new) = (base(), base());
        let of = |new: &HandlerSpec, found| required(Some(serving(&old)), new, found);
        assert_eq!(of(&new, Some("code")), Required::Nothing);
        assert_eq!(of(&new, Some("other code")), Required::Generation);
        assert_eq!(of(&new, None), Required::Nothing, "it is loaded");
        new.version = "2".parse().expect("a requirement");
        assert_eq!(of(&new, None), Required::Generation, "it is 1.2.3");
        assert_eq!(required(None, &old, Some("code")), Required::Generation);
    }

    #[test]
    fn a_changed_secret_is_another_config() {
        let read = |password: &str| {
            let environment: Environment = [("P", password)].into_iter().collect();
            let text = "name: a\nplugin: relay\nroute: { topics: [t] }\nconfig: { password: \"${env:P}\" }\n";
            read_spec(text, None, &environment).expect("it is a spec")
        };
        let of = |new: &HandlerSpec| required(Some(serving(&read("one"))), new, Some("code"));
        assert_eq!(of(&read("one")), Required::Nothing);
        assert_eq!(of(&read("two")), Required::Reconfigure);
    }

    #[test]
    fn a_change_says_its_fields_its_gate_and_what_it_requires() {
        let (old, mut new) = (base(), base());
        let said = |new: &HandlerSpec, required: Required| {
            let change = SpecChange::between(&old, new, SpecEffect::Applied(required));
            change.map(|change| change.to_string())
        };
        assert_eq!(said(&new, Required::Nothing), None);
        new.enabled = false;
        assert_eq!(
            said(&new, Required::Nothing).as_deref(),
            Some("gate closed")
        );
        new.workers += 1;
        new.order = Order::Partition;
        assert_eq!(
            said(&new, Required::Generation).as_deref(),
            Some("gate closed, order, workers changed; needs a new generation")
        );
        let refused = SpecChange::between(&old, &new, SpecEffect::Refused).expect("it differs");
        assert_eq!(
            refused.to_string(),
            "gate closed, order, workers changed; refused, only the gate is followed"
        );
        let mut closed = base();
        closed.enabled = false;
        let held = SpecChange::between(&closed, &old, SpecEffect::Held).expect("it differs");
        assert_eq!(
            held.to_string(),
            "gate opened; the gate is held until its instances are healthy"
        );
    }
}
