//! Overrides of the config file: `SLUICEGATE__KAFKA__GROUP_ID=x` and `--set kafka.group_id=x`.

use std::sync::Arc;

use super::ServiceConfig;
use super::client_keys::is_sensitive;
use crate::document::{
    Checker, Entry, FieldType, Node, Place, Reserved, SectionFields, SectionType, Value,
    did_you_mean, parse,
};
use crate::environment::Environment;
use crate::problem::Problems;

const PREFIX: &str = "SLUICEGATE__";

/// Applies all `SLUICEGATE__…` variables. In `kafka.client` and `kafka.producer`, `_` is translated to the `.` of librdkafka keys.
pub(crate) fn from_environment(
    root: &mut Node,
    environment: &Environment,
    checker: &mut Checker<'_>,
) {
    for (name, value) in environment.with_prefix(PREFIX) {
        let set_by: Arc<str> = format!("the environment variable {PREFIX}{name}").into();
        let lower = name.to_lowercase();
        let segments: Vec<&str> = lower.split("__").collect();
        set(root, &segments, Rest::Underscores, value, &set_by, checker);
    }
}

/// Applies every `path=value`, in order.
pub(crate) fn from_sets(root: &mut Node, sets: &[String], checker: &mut Checker<'_>) {
    for text in sets {
        let (path, value) = text.split_once('=').unwrap_or((text, ""));
        let set_by: Arc<str> = format!("--set {path}").into();
        if !text.contains('=') {
            let place = place_of(&set_by);
            checker.report(
                &place,
                path,
                "has no value: write --set path=value, such as --set kafka.group_id=x",
            );
            continue;
        }
        let segments: Vec<&str> = path.trim().split('.').collect();
        if let Some(key) = shows_secret(path, value) {
            let message = format!(
                "exposes the secret `{key}` in the process list; reference it with ${{env:NAME}} or ${{file:PATH}}, or set it in the file or with an environment variable"
            );
            checker.report(&place_of(&set_by), path, message);
            continue;
        }
        set(root, &segments, Rest::Dots, value, &set_by, checker);
    }
}

/// The secret key whose value an argument contains literally instead of by reference.
fn shows_secret(path: &str, value: &str) -> Option<String> {
    let is_shown =
        |text: &str| !text.is_empty() && !text.contains("${env:") && !text.contains("${file:");
    if is_sensitive(path) {
        return is_shown(value).then(|| path.to_owned());
    }
    let node = value_node(value, &Place::default()).ok()?;
    fn within(node: &Node, is_shown: &dyn Fn(&str) -> bool) -> Option<String> {
        match &node.value {
            Value::Scalar(_) => None,
            Value::List(items) => items.iter().find_map(|item| within(item, is_shown)),
            Value::Map(entries) => entries.iter().find_map(|entry| match &entry.value.value {
                Value::Scalar(scalar) => {
                    let secret = is_sensitive(&entry.key) && is_shown(&scalar.text);
                    secret.then(|| entry.key.clone())
                }
                Value::List(_) | Value::Map(_) => within(&entry.value, is_shown),
            }),
        }
    }
    within(&node, &is_shown)
}

/// How segments after a free-form map are joined to one key.
#[derive(Clone, Copy)]
enum Rest {
    Dots,
    Underscores,
}

fn place_of(set_by: &Arc<str>) -> Place {
    Place {
        set_by: Some(Arc::clone(set_by)),
        ..Place::default()
    }
}

fn set(
    root: &mut Node,
    segments: &[&str],
    rest: Rest,
    value: &str,
    set_by: &Arc<str>,
    checker: &mut Checker<'_>,
) {
    let place = place_of(set_by);
    let path = segments.join(".");
    let keys = keys_of(segments, rest);
    match keys.and_then(|keys| Ok((keys, value_node(value, &place)?))) {
        Ok((keys, node)) => insert(root, &keys, node, &place),
        Err(error) => checker.report(&place, &path, error),
    }
}

/// Why an override is not applied.
#[derive(Debug, thiserror::Error)]
enum OverrideError {
    #[error("`{segment}` is unknown{hint}")]
    Unknown { segment: String, hint: String },
    #[error("{0}")]
    Reserved(&'static Reserved),
    #[error("`{segment}` has no fields below it")]
    NoFields { segment: String },
    #[error("{}", messages(.0))]
    Value(Problems),
}

fn messages(problems: &Problems) -> String {
    let messages: Vec<&str> = problems.iter().map(|one| one.message.as_str()).collect();
    messages.join("; ")
}

/// The keys from the root to the field, resolved by the table so that misspelt ones are reported.
fn keys_of(segments: &[&str], rest: Rest) -> Result<Vec<String>, OverrideError> {
    let mut object: &'static SectionType = ServiceConfig::TYPE;
    let mut keys = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let Some(field) = object.field(segment) else {
            if let Some(later) = object.later.iter().find(|later| later.name == *segment) {
                return Err(OverrideError::Reserved(later));
            }
            let (segment, hint) = (segment.to_string(), did_you_mean(segment, object.names()));
            return Err(OverrideError::Unknown { segment, hint });
        };
        keys.push(field.name.to_owned());
        let behind = &segments[index + 1..];
        match &field.kind {
            FieldType::Object(inner) => object = inner,
            FieldType::Custom { .. } if !behind.is_empty() => {
                keys.push(match rest {
                    Rest::Dots => behind.join("."),
                    Rest::Underscores => behind.join("_").replace('_', "."),
                });
                return Ok(keys);
            }
            _ if behind.is_empty() => return Ok(keys),
            _ => {
                let segment = segment.to_string();
                return Err(OverrideError::NoFields { segment });
            }
        }
    }
    Ok(keys)
}

/// Parses a list or map in YAML flow style; anything else takes the type of its field.
fn value_node(value: &str, place: &Place) -> Result<Node, OverrideError> {
    if !value.trim_start().starts_with(['[', '{']) {
        return Ok(Node::untyped(value, place.clone()));
    }
    let parsed = parse(value, None);
    let mut node = match parsed.root {
        Some(node) if parsed.problems.is_empty() => node,
        _ => return Err(OverrideError::Value(parsed.problems)),
    };
    move_to(&mut node, place);
    Ok(node)
}

fn move_to(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.value {
        Value::Scalar(_) => {}
        Value::List(items) => items.iter_mut().for_each(|item| move_to(item, place)),
        Value::Map(entries) => {
            for entry in entries {
                entry.key_place = place.clone();
                move_to(&mut entry.value, place);
            }
        }
    }
}

/// Inserts `value` at `keys` and creates missing maps.
fn insert(node: &mut Node, keys: &[String], value: Node, place: &Place) {
    let Some((key, below)) = keys.split_first() else {
        *node = value;
        return;
    };
    if !matches!(node.value, Value::Map(_)) {
        *node = Node::empty_map(place.clone());
    }
    let Value::Map(entries) = &mut node.value else {
        return;
    };
    let at = entries.iter().position(|entry| entry.key == *key);
    let at = at.unwrap_or_else(|| {
        entries.push(Entry {
            key: key.clone(),
            key_place: place.clone(),
            value: Node::empty_map(place.clone()),
        });
        entries.len() - 1
    });
    insert(&mut entries[at].value, below, value, place);
}
