//! A handler's own config as a JSON value, from a node tree or from JSON text.
//!
//! A value from a reference is always a string: a password of digits must not become a number.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value as Json};

use super::{Checker, MAX_DEPTH, MAX_NODES, Node, Plain, Scalar, Trail, Value, shortened};

/// Converts `node`. Values that JSON cannot represent are reported and become null.
pub fn to_json(node: &Node, path: &Trail<'_>, checker: &mut Checker<'_>) -> Json {
    match &node.value {
        Value::Scalar(scalar) => scalar_to_json(scalar).unwrap_or_else(|| {
            let message = format!("{} is not a valid JSON number; quote it", scalar.describe());
            checker.report(&node.place, &path.to_string(), message);
            Json::Null
        }),
        Value::List(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| to_json(item, &Trail::Index(path, index), checker))
            .collect(),
        Value::Map(entries) => {
            let members = entries.iter().map(|entry| {
                let path = Trail::Key(path, &entry.key);
                (entry.key.clone(), to_json(&entry.value, &path, checker))
            });
            Json::Object(members.collect::<Map<String, Json>>())
        }
    }
}

/// `None` for a number that JSON cannot represent.
fn scalar_to_json(scalar: &Scalar) -> Option<Json> {
    if scalar.reference.is_some() {
        return Some(Json::String(scalar.text.clone()));
    }
    Some(match scalar.plain() {
        Plain::Null => Json::Null,
        Plain::Flag(flag) => Json::Bool(flag),
        Plain::Integer(integer) => {
            let number = i64::try_from(integer).map(Number::from);
            let number = number.or_else(|_| u64::try_from(integer).map(Number::from));
            Json::Number(number.ok()?)
        }
        Plain::Float(float) => Json::Number(Number::from_f64(float)?),
        Plain::Text => Json::String(scalar.text.clone()),
    })
}

/// Why a text is not a JSON object within the bounds.
#[derive(Debug, thiserror::Error)]
pub enum JsonObjectError {
    /// Another JSON value.
    #[error("is not a JSON object")]
    Other,
    /// Not JSON, a duplicate key, or beyond a bound. Displays without the position.
    #[error("is not a JSON object: {}", cause(.0))]
    Syntax(#[source] serde_json::Error),
}

impl JsonObjectError {
    /// Line and column, from 1; 0 for the whole text.
    pub fn position(&self) -> (u32, u32) {
        let place = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        match self {
            Self::Other => (0, 0),
            Self::Syntax(error) => (place(error.line()), place(error.column())),
        }
    }
}

fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Parses a JSON object within the same bounds as YAML. Duplicate keys are rejected.
pub fn read_json_object(text: &str) -> Result<Map<String, Json>, JsonObjectError> {
    let nodes = Cell::new(0);
    let seed = Bounded {
        nodes: &nodes,
        depth: 0,
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = seed.deserialize(&mut json);
    match read.and_then(|value| json.end().map(|()| value)) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(JsonObjectError::Other),
        Err(error) => Err(JsonObjectError::Syntax(error)),
    }
}

/// Parses a value that the service itself has written. Requires an object, since serde would also accept a list of the fields.
pub fn from_object<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => Err(serde_json::Error::custom(
            "a list where an object is expected",
        )),
        _ => serde_json::from_slice(bytes),
    }
}

/// Deserialises a value and counts its levels and nodes.
#[derive(Clone, Copy)]
struct Bounded<'n> {
    nodes: &'n Cell<usize>,
    depth: usize,
}

impl<'n> Bounded<'n> {
    fn below<E: Error>(self) -> Result<Bounded<'n>, E> {
        match self.depth < MAX_DEPTH {
            true => Ok(Bounded {
                depth: self.depth + 1,
                ..self
            }),
            false => Err(E::custom(format!("more than {MAX_DEPTH} levels"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        self.nodes.set(self.nodes.get() + 1);
        match self.nodes.get() <= MAX_NODES {
            true => deserializer.deserialize_any(self),
            false => Err(D::Error::custom(format!("more than {MAX_NODES} values"))),
        }
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Json, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                let key = shortened(&key);
                return Err(A::Error::custom(format!("`{key}` is duplicated")));
            }
            let value = members.next_value_seed(below)?;
            object.insert(key, value);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_common_json_writers_is_accepted() {
        // An emoji as a pair of escapes, tabs, a number beyond 64 bits.
        let text = "{\"a\":\t\"\\ud83d\\ude00\", \"b\": 123456789012345678901234567890, \"c\": [null, true, -1.5]}";
        let object = read_json_object(text).unwrap();
        assert_eq!(object["a"], "\u{1f600}");
        assert_eq!(object["b"].as_f64(), Some(1.2345678901234568e29));
        assert_eq!(object["c"], serde_json::json!([null, true, -1.5]));
    }

    #[test]
    fn anything_but_one_object_within_the_bounds_is_rejected_with_its_position() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(70), "]".repeat(70));
        let many = format!("{{\"a\":[{}0]}}", "0,".repeat(MAX_NODES));
        for (text, place, words) in [
            ("", (1, 0), "EOF"),
            ("[1]", (0, 0), "is not a JSON object"),
            ("3", (0, 0), "is not a JSON object"),
            ("{\"a\": 1,\n \"a\": 2}", (2, 4), "`a` is duplicated"),
            ("{\"a\": 1} x", (1, 10), "trailing characters"),
            ("a: 1", (1, 1), "expected value"),
            (&deep, (1, 69), "more than 64 levels"),
            (&many, (1, 100_002), "more than 50000 values"),
        ] {
            let error = read_json_object(text).unwrap_err();
            let message = error.to_string();
            let shown: String = text.chars().take(20).collect();
            assert!(message.contains(words), "{shown}: {message}");
            assert_eq!(error.position(), place, "{shown}: {message}");
        }
    }
}
