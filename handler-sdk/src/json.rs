//! Reads JSON: structs from objects only, and numbers given as JSON numbers or as numeric strings.
//!
//! Fields of a type: `#[serde(deserialize_with = "sluicegate_sdk::json::number")]`, or `optional_number` for fields
//! that can be null, empty or missing (then with `#[serde(default)]`).

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

use crate::objects;

/// As `serde_json::from_slice`, but structs are read from objects only: serde would also accept a list of the fields in
/// order.
///
/// # Errors
/// When it is not JSON or does not match the type.
pub fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> serde_json::Result<T> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let value = objects::read(&mut from)?;
    from.end()?;
    Ok(value)
}

/// A value of any deserializer, with structs from objects only.
///
/// # Errors
/// The deserializer's error.
pub fn read<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    objects::read(from)
}

/// As `serde_json::from_value`, with structs from objects only.
///
/// # Errors
/// When it does not match the type.
pub fn from_value<'a, T: Deserialize<'a>>(value: &'a Value) -> serde_json::Result<T> {
    objects::read(value)
}

/// A finite number, given as a number or as a numeric string.
pub fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        _ => None,
    }
}

/// For `#[serde(deserialize_with = …)]`: a number, or a numeric string.
///
/// # Errors
/// When it is neither.
pub fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let value = Value::deserialize(from)?;
    as_number(&value).ok_or_else(|| D::Error::custom("expected a number or a numeric string"))
}

/// For `#[serde(default, deserialize_with = …)]`: as [`number`]; null, an empty string and `NA` are `None`.
///
/// # Errors
/// When it is something else.
pub fn optional_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() || text == "NA" => Ok(None),
        value => as_number(&value)
            .map(Some)
            .ok_or_else(|| D::Error::custom("expected a number, a numeric string or null")),
    }
}
