//! The condition of a rule, written as the `when` of a route, evaluated without an index.

use std::cell::Cell;

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use sluicegate_sdk::Record;

/// One node of the tree: a branch, or a subject with its tests.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    all: Option<Vec<When>>,
    any: Option<Vec<When>>,
    not: Option<Box<When>>,
    header: Option<String>,
    key: Option<bool>,
    partition: Option<bool>,
    /// Holds for the last of every `one_in` records that reach an instance: one rebuilt after a panic starts with
    /// good records.
    one_in: Option<u64>,
    equals: Option<Value>,
    #[serde(rename = "in")]
    any_of: Option<Vec<Value>>,
    exists: Option<bool>,
    prefix: Option<Value>,
    suffix: Option<Value>,
    regex: Option<String>,
    lt: Option<f64>,
    le: Option<f64>,
    gt: Option<f64>,
    ge: Option<f64>,
}

/// A compiled condition.
#[derive(Debug)]
pub enum Condition {
    /// All hold.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// The other does not hold.
    Not(Box<Condition>),
    /// Any value of the header passes.
    Header(String, Test),
    /// The key passes.
    Key(Test),
    /// The partition passes.
    Partition(Test),
    /// Every nth record.
    OneIn(u64, Cell<u64>),
}

/// A comparison of two numbers.
type Comparison = fn(f64, f64) -> bool;

/// A test on bytes.
#[derive(Debug)]
pub enum Test {
    /// The same as one of these.
    In(Vec<Vec<u8>>),
    /// Present, or absent.
    Exists(bool),
    /// Begins with.
    Prefix(Vec<u8>),
    /// Ends with.
    Suffix(Vec<u8>),
    /// Matches somewhere.
    Regex(Regex),
    /// A decimal number for which the comparison holds.
    Number(Comparison, f64),
}

impl When {
    /// Compiles the condition.
    ///
    /// # Errors
    /// If it is invalid, with the reason.
    pub fn condition(&self) -> Result<Condition, String> {
        let many = |list: &[When]| {
            list.iter()
                .map(When::condition)
                .collect::<Result<Vec<_>, _>>()
        };
        let mut found = Vec::new();
        if let Some(list) = &self.all {
            found.push(Condition::All(many(list)?));
        }
        if let Some(list) = &self.any {
            found.push(Condition::Any(many(list)?));
        }
        if let Some(inner) = &self.not {
            found.push(Condition::Not(Box::new(inner.condition()?)));
        }
        if let Some(n) = self.one_in {
            if n == 0 {
                return Err("`one_in` must be 1 or more".into());
            }
            found.push(Condition::OneIn(n, Cell::new(0)));
        }
        let tests = self.tests()?;
        if let Some(name) = &self.header {
            found.extend(
                tests
                    .into_iter()
                    .map(|test| Condition::Header(name.clone(), test)),
            );
        } else if self.key.is_some() {
            found.extend(tests.into_iter().map(Condition::Key));
        } else if self.partition.is_some() {
            found.extend(tests.into_iter().map(Condition::Partition));
        } else if !tests.is_empty() {
            return Err("a test needs `header`, `key` or `partition`".into());
        }
        match found.len() {
            0 => Err(
                "`when` is empty; write one of all, any, not, header, key, partition, one_in"
                    .into(),
            ),
            _ => Ok(Condition::All(found)),
        }
    }

    fn tests(&self) -> Result<Vec<Test>, String> {
        let mut tests = Vec::new();
        if let Some(value) = &self.equals {
            tests.push(Test::In(vec![bytes(value)?]));
        }
        if let Some(values) = &self.any_of {
            tests.push(Test::In(
                values.iter().map(bytes).collect::<Result<_, _>>()?,
            ));
        }
        tests.extend(self.exists.map(Test::Exists));
        if let Some(value) = &self.prefix {
            tests.push(Test::Prefix(bytes(value)?));
        }
        if let Some(value) = &self.suffix {
            tests.push(Test::Suffix(bytes(value)?));
        }
        if let Some(text) = &self.regex {
            tests.push(Test::Regex(
                Regex::new(text).map_err(|error| error.to_string())?,
            ));
        }
        let numbers: [(Option<f64>, Comparison); 4] = [
            (self.lt, |a, b| a < b),
            (self.le, |a, b| a <= b),
            (self.gt, |a, b| a > b),
            (self.ge, |a, b| a >= b),
        ];
        tests.extend(
            numbers
                .into_iter()
                .filter_map(|(limit, holds)| Some(Test::Number(holds, limit?))),
        );
        Ok(tests)
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string().into_bytes()),
        other => Err(format!(
            "expected a text, a number or a boolean, found {other}"
        )),
    }
}

impl Condition {
    /// Whether the condition holds for the record.
    pub fn holds(&self, record: &Record<'_>) -> bool {
        match self {
            Self::All(list) => list.iter().all(|condition| condition.holds(record)),
            Self::Any(list) => list.iter().any(|condition| condition.holds(record)),
            Self::Not(inner) => !inner.holds(record),
            Self::Header(name, Test::Exists(wanted)) => {
                record.headers().any(|(n, _)| n == name.as_bytes()) == *wanted
            }
            Self::Header(name, test) => record
                .headers()
                .filter(|(n, _)| *n == name.as_bytes())
                .any(|(_, value)| value.is_some_and(|value| test.passes(value))),
            Self::Key(Test::Exists(wanted)) => record.key().is_some() == *wanted,
            Self::Key(test) => record.key().is_some_and(|key| test.passes(key)),
            Self::Partition(test) => test.passes(record.partition().to_string().as_bytes()),
            Self::OneIn(n, seen) => {
                seen.set(seen.get() + 1);
                seen.get().is_multiple_of(*n)
            }
        }
    }
}

impl Test {
    fn passes(&self, value: &[u8]) -> bool {
        let text = || std::str::from_utf8(value).ok();
        match self {
            Self::In(list) => list.iter().any(|one| one == value),
            Self::Exists(wanted) => *wanted,
            Self::Prefix(start) => value.starts_with(start),
            Self::Suffix(end) => value.ends_with(end),
            Self::Regex(regex) => text().is_some_and(|text| regex.is_match(text)),
            Self::Number(holds, limit) => text()
                .and_then(|text| text.trim().parse().ok())
                .is_some_and(|number| holds(number, *limit)),
        }
    }
}
