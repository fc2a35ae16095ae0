//! Maps each control key to its path below a store's prefix, by templates, and back.
//!
//! ```text
//!  ControlKey ──path──► path below the prefix ──key──► the same ControlKey, or why the path is not a key
//! ```
//!
//! A map is rejected if two keys could share one path, so the mapping back is exact.

use serde::{Deserialize, Serialize};

use super::key::{BRIDGE_PATH, KeyNameError};
use crate::control::ControlKey;

const NAME: &str = "{name}";

/// The kinds of control keys; the names are the fields of the config block `paths`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// [`ControlKey::Enabled`].
    Enabled,
    /// [`ControlKey::Spec`].
    Spec,
    /// [`ControlKey::Config`].
    Config,
    /// [`ControlKey::Canary`].
    Canary,
    /// [`ControlKey::Rollout`].
    Rollout,
    /// [`ControlKey::Logging`].
    Logging,
    /// [`ControlKey::MetricsLevel`].
    MetricsLevel,
    /// [`ControlKey::Bridge`]; its path is fixed and not configurable.
    #[serde(skip)]
    Bridge,
}

impl KeyKind {
    /// Every configurable kind, with its field name.
    pub const ALL: [(&'static str, Self); 7] = [
        ("enabled", Self::Enabled),
        ("spec", Self::Spec),
        ("config", Self::Config),
        ("canary", Self::Canary),
        ("rollout", Self::Rollout),
        ("logging", Self::Logging),
        ("metrics_level", Self::MetricsLevel),
    ];

    /// The kind of a key.
    #[must_use]
    pub fn of(key: &ControlKey) -> Self {
        match key {
            ControlKey::Enabled(_) => Self::Enabled,
            ControlKey::Spec(_) => Self::Spec,
            ControlKey::Config(_) => Self::Config,
            ControlKey::Canary(_) => Self::Canary,
            ControlKey::Rollout(_) => Self::Rollout,
            ControlKey::Logging => Self::Logging,
            ControlKey::MetricsLevel => Self::MetricsLevel,
            ControlKey::Bridge => Self::Bridge,
        }
    }

    fn is_of_handler(self) -> bool {
        !matches!(self, Self::Logging | Self::MetricsLevel | Self::Bridge)
    }

    /// The key of this kind; `name` is ignored for service keys.
    pub fn key(self, name: &str) -> Result<ControlKey, KeyNameError> {
        match self {
            Self::Enabled => ControlKey::enabled(name),
            Self::Spec => ControlKey::spec(name),
            Self::Config => ControlKey::config(name),
            Self::Canary => ControlKey::canary(name),
            Self::Rollout => ControlKey::rollout(name),
            Self::Logging => Ok(ControlKey::Logging),
            Self::MetricsLevel => Ok(ControlKey::MetricsLevel),
            Self::Bridge => Ok(ControlKey::Bridge),
        }
    }
}

/// Why a path is not that of a control key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A template matches, but not with the name of a handler.
    #[error(transparent)]
    Name(#[from] KeyNameError),
    /// No template matches.
    #[error("not a control key; known paths: {known}")]
    Unknown {
        /// All templates, comma-separated.
        known: String,
    },
}

/// Why a template is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template of a handler's key has no `{name}`, or several.
    #[error("use {{name}} exactly once, as in {{name}}/spec, without a leading slash")]
    NameOnce,
    /// The template of a service's key has a `{name}`.
    #[error("{{name}} is not allowed here: the key does not belong to a handler")]
    Nameless,
    /// An empty segment, or one with other characters.
    #[error("write path segments separated by single slashes, such as {{name}}/spec")]
    Segments,
    /// It can produce the path of the bridges' key.
    #[error(
        "`{0}` can produce the path {path}, which is reserved for bridges; change the template",
        path = BRIDGE_PATH
    )]
    Reserved(String),
    /// It and another template can produce the same path.
    #[error("`{0}` and `{1}` can produce the same path; change one of them")]
    Ambiguous(String, String),
}

/// Why a template or a whole map is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{template}: {reason}")]
pub struct PathMapError {
    /// The field name of the template, such as `enabled`.
    pub template: &'static str,
    /// The kind of key whose path it is.
    pub kind: KeyKind,
    /// The problem and the remedy.
    #[source]
    pub reason: TemplateError,
}

/// The path of each control key below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMap {
    templates: Vec<(KeyKind, Template)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Fixed(String),
    Named { before: String, after: String },
}

impl PathMap {
    /// The layout for etcd: every key has its own path.
    ///
    /// # Panics
    /// Never: a test reads the table.
    #[must_use]
    pub fn etcd() -> Self {
        Self::new(etcd_template).expect("the layout of etcd is injective, as tested")
    }

    /// The layout for ZooKeeper: a gate is the data of the handler's own node.
    ///
    /// # Panics
    /// Never: a test reads the table.
    #[must_use]
    pub fn zookeeper() -> Self {
        Self::new(zookeeper_template).expect("the layout of ZooKeeper is injective, as tested")
    }

    /// Builds a map from the templates that `template` returns.
    ///
    /// # Errors
    /// [`PathMapError`] for an invalid template, and for two that can produce the same path.
    pub fn new<'a>(template: impl Fn(KeyKind) -> &'a str) -> Result<Self, PathMapError> {
        let mut templates: Vec<(KeyKind, Template)> = Vec::new();
        for (word, kind) in KeyKind::ALL {
            let refused = |reason| PathMapError {
                template: word,
                kind,
                reason,
            };
            let read = Template::read(template(kind), kind.is_of_handler()).map_err(refused)?;
            if read.can_equal(&Template::fixed(BRIDGE_PATH)) {
                return Err(refused(TemplateError::Reserved(read.text)));
            }
            let earlier = templates.iter().find(|(_, other)| other.can_equal(&read));
            if let Some((_, other)) = earlier {
                let other = other.text.clone();
                return Err(refused(TemplateError::Ambiguous(read.text, other)));
            }
            templates.push((kind, read));
        }
        Ok(Self { templates })
    }

    /// The path of `key` below the prefix, without a slash at either end.
    #[must_use]
    pub fn path(&self, key: &ControlKey) -> String {
        let kind = KeyKind::of(key);
        if kind == KeyKind::Bridge {
            return BRIDGE_PATH.to_owned();
        }
        let template = self.templates.iter().find(|(of, _)| *of == kind);
        let text = template.map_or("", |(_, template)| template.text.as_str());
        text.replace(NAME, key.handler().unwrap_or_default())
    }

    /// The differences of this map from the default layout `usual`, as part of a store's identity: with a different map
    /// the same store holds different keys, and missing ones were not deleted.
    pub fn differences(&self, usual: &Self) -> String {
        let mut text = String::new();
        for (word, kind) in KeyKind::ALL {
            let template = |map: &Self| {
                let found = map.templates.iter().find(|(of, _)| *of == kind);
                found.map(|(_, template)| template.text.clone())
            };
            let own = template(self);
            if own != template(usual) {
                text.push_str(&format!(" {word}={}", own.unwrap_or_default()));
            }
        }
        text
    }

    /// Number of segments in the longest path.
    pub fn depth(&self) -> usize {
        let depths = self
            .templates
            .iter()
            .map(|(_, template)| template.segments.len());
        depths.max().unwrap_or(0)
    }

    /// The key at `path`.
    pub fn key(&self, path: &str) -> Result<ControlKey, PathError> {
        if path == BRIDGE_PATH {
            return Ok(ControlKey::Bridge);
        }
        let mut invalid = None;
        for (kind, template) in &self.templates {
            let Some(name) = template.captures(path) else {
                continue;
            };
            match kind.key(name) {
                Ok(key) => return Ok(key),
                Err(error) => invalid = invalid.or(Some(error)),
            }
        }
        Err(invalid.map(PathError::Name).unwrap_or_else(|| {
            let known = self.templates.iter();
            let known: Vec<&str> = known.map(|(_, template)| template.text.as_str()).collect();
            let known = known.join(", ");
            PathError::Unknown { known }
        }))
    }
}

pub(crate) const fn etcd_template(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Enabled => "{name}/enabled",
        KeyKind::Spec => "{name}/spec",
        KeyKind::Config => "{name}/config",
        KeyKind::Canary => "{name}/canary",
        KeyKind::Rollout => "{name}/rollout",
        KeyKind::Logging => "logging/enabled",
        KeyKind::MetricsLevel => "metrics/level",
        KeyKind::Bridge => BRIDGE_PATH,
    }
}

pub(crate) const fn zookeeper_template(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Enabled => "{name}",
        KeyKind::Logging => "logging",
        KeyKind::MetricsLevel => "metrics",
        _ => etcd_template(kind),
    }
}

/// Validates a single template, for the config table.
pub(crate) fn check_template(text: &str, of_handler: bool) -> Result<(), TemplateError> {
    Template::read(text, of_handler).map(drop)
}

impl Template {
    fn read(text: &str, of_handler: bool) -> Result<Self, TemplateError> {
        let names = text.matches(NAME).count();
        if of_handler && names != 1 {
            return Err(TemplateError::NameOnce);
        }
        if !of_handler && names != 0 {
            return Err(TemplateError::Nameless);
        }
        let mut segments = Vec::new();
        for part in text.split('/') {
            let segment = match part.split_once(NAME) {
                Some((before, after)) => Segment::Named {
                    before: before.to_owned(),
                    after: after.to_owned(),
                },
                None => Segment::Fixed(part.to_owned()),
            };
            let literal = part.replace(NAME, "x");
            let is_invalid = |c: char| c.is_control() || c.is_whitespace() || "{}\\".contains(c);
            if literal.is_empty()
                || literal == "."
                || literal == ".."
                || literal.contains(is_invalid)
            {
                return Err(TemplateError::Segments);
            }
            segments.push(segment);
        }
        Ok(Self {
            text: text.to_owned(),
            segments,
        })
    }

    /// A fixed path, independent of the config.
    fn fixed(path: &str) -> Self {
        Self {
            text: path.to_owned(),
            segments: vec![Segment::Fixed(path.to_owned())],
        }
    }

    /// The value of `{name}` if `path` matches; empty for a template without a name.
    fn captures<'p>(&self, path: &'p str) -> Option<&'p str> {
        let mut found = "";
        let mut parts = path.split('/');
        for segment in &self.segments {
            let part = parts.next()?;
            match segment {
                Segment::Fixed(text) if text == part => {}
                Segment::Fixed(_) => return None,
                Segment::Named { before, after } => {
                    found = part.strip_prefix(before.as_str())?;
                    found = found.strip_suffix(after.as_str())?;
                }
            }
        }
        parts.next().is_none().then_some(found)
    }

    /// Whether some handler names could give both the same path.
    fn can_equal(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self
                .segments
                .iter()
                .zip(&other.segments)
                .all(|(one, two)| one.can_equal(two))
    }
}

impl Segment {
    fn can_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(one), Self::Fixed(two)) => one == two,
            (Self::Fixed(text), Self::Named { before, after })
            | (Self::Named { before, after }, Self::Fixed(text)) => text
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(|name| ControlKey::enabled(name).is_ok()),
            (
                Self::Named { before, after },
                Self::Named {
                    before: before_two,
                    after: after_two,
                },
            ) => {
                let starts = before.starts_with(before_two) || before_two.starts_with(before);
                let ends = after.ends_with(after_two) || after_two.ends_with(after);
                starts && ends
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(names: &[&str]) -> Vec<ControlKey> {
        let of_handlers = names.iter().flat_map(|name| {
            KeyKind::ALL
                .iter()
                .filter(|(_, kind)| kind.is_of_handler())
                .map(|(_, kind)| kind.key(name).expect("a name"))
        });
        of_handlers
            .chain([
                ControlKey::Logging,
                ControlKey::MetricsLevel,
                ControlKey::Bridge,
            ])
            .collect()
    }

    fn is_exact(map: &PathMap, keys: &[ControlKey]) {
        for key in keys {
            let path = map.path(key);
            assert_eq!(map.key(&path).as_ref(), Ok(key), "{path}");
        }
    }

    #[test]
    fn the_default_layouts_map_back_exactly() {
        let keys = keys(&["auditor", "a", "spec", "enabled", "0", "config"]);
        is_exact(&PathMap::etcd(), &keys);
        is_exact(&PathMap::zookeeper(), &keys);
        let gate = ControlKey::Enabled("auditor".to_owned());
        assert_eq!(PathMap::etcd().path(&gate), "auditor/enabled");
        assert_eq!(PathMap::zookeeper().path(&gate), "auditor");
        assert_eq!(PathMap::zookeeper().path(&ControlKey::Logging), "logging");
    }

    #[test]
    fn an_unrecognized_path_is_explained() {
        let map = PathMap::etcd();
        let why = |path: &str| map.key(path).expect_err("no key").to_string();
        assert!(why("auditor/enable").contains("known paths: {name}/enabled"));
        assert!(why("Auditor/spec").contains("`Auditor` is not a valid handler name"));
        assert!(
            why("metrics/spec").contains("metrics"),
            "{}",
            why("metrics/spec")
        );
        assert!(why("").contains("not a control key"));
        assert!(PathMap::zookeeper().key("auditor/enabled").is_err());
    }

    #[test]
    fn an_ambiguous_map_or_an_invalid_template_is_rejected() {
        let with = |kind: KeyKind, text: &'static str| {
            PathMap::new(move |of| if of == kind { text } else { etcd_template(of) })
                .expect_err("refused")
                .to_string()
        };
        assert!(with(KeyKind::Spec, "{name}/enabled").contains("can produce the same path"));
        assert!(with(KeyKind::Logging, "auditor/spec").contains("can produce the same path"));
        for text in [
            "",
            "spec",
            "{name}/{name}",
            "/{name}",
            "{name}/",
            "a//{name}",
            "../{name}",
        ] {
            assert!(with(KeyKind::Spec, text).starts_with("spec: "), "{text}");
        }
        assert!(with(KeyKind::Logging, "{name}/x").contains("does not belong to a handler"));
        for (kind, text) in [(KeyKind::Logging, ".bridge"), (KeyKind::Spec, ".{name}")] {
            assert!(with(kind, text).contains("reserved for bridges"));
        }
    }

    prop_compose! {
        fn template(of_handler: bool)(
            parts in proptest::collection::vec("(a|b|c|spec)", 0..3),
            before in "(|a|b-)",
            after in "(|a|-b)",
            at in 0usize..3,
        ) -> String {
            let mut parts = parts;
            if of_handler {
                let at = at.min(parts.len());
                parts.insert(at, format!("{before}{{name}}{after}"));
            } else {
                parts.push("logging".to_owned());
            }
            parts.join("/")
        }
    }

    proptest! {
        #[test]
        fn an_accepted_map_maps_back_exactly(
            handlers in proptest::collection::vec(template(true), 5),
            services in proptest::collection::vec(template(false), 2),
            names in proptest::collection::vec("[ab][ab-]{0,3}[ab]", 1..6),
        ) {
            let texts: Vec<&str> = handlers.iter().chain(&services).map(String::as_str).collect();
            let map = PathMap::new(|kind| {
                let at = KeyKind::ALL.iter().position(|(_, of)| *of == kind).expect("a kind");
                texts[at]
            });
            if let Ok(map) = map {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                is_exact(&map, &keys(&names));
            }
        }
    }
}
