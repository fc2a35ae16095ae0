//! A node tree as a JSON value, for what has no table: a handler's own config.
//!
//! What came from a reference is always a text here: a password of digits must not turn into a number.

use serde_json::{Map, Number, Value as Json};

use super::{Checker, Node, Plain, Scalar, Value};

/// The value of `node`; what JSON cannot say is reported and becomes null.
pub(crate) fn to_json(node: &Node, path: &str, checker: &mut Checker<'_>) -> Json {
    match &node.value {
        Value::Scalar(scalar) => scalar_to_json(scalar).unwrap_or_else(|reason| {
            checker.report(&node.place, path, reason);
            Json::Null
        }),
        Value::List(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| to_json(item, &format!("{path}[{index}]"), checker))
            .collect(),
        Value::Map(entries) => {
            let members = entries.iter().map(|entry| {
                let path = super::join(path, &entry.key);
                (entry.key.clone(), to_json(&entry.value, &path, checker))
            });
            Json::Object(members.collect::<Map<String, Json>>())
        }
    }
}

fn scalar_to_json(scalar: &Scalar) -> Result<Json, String> {
    if scalar.reference.is_some() {
        return Ok(Json::String(scalar.text.clone()));
    }
    let unfit = || format!("{} does not fit a JSON number; quote it", scalar.describe());
    Ok(match scalar.plain() {
        Plain::Null => Json::Null,
        Plain::Flag(flag) => Json::Bool(flag),
        Plain::Integer(integer) => {
            let number = i64::try_from(integer).map(Number::from);
            let number = number.or_else(|_| u64::try_from(integer).map(Number::from));
            Json::Number(number.map_err(|_| unfit())?)
        }
        Plain::Float(float) => Json::Number(Number::from_f64(float).ok_or_else(unfit)?),
        Plain::Text => Json::String(scalar.text.clone()),
    })
}
