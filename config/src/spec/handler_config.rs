//! A handler's own config: as declared (shown) and with its references resolved (handed to the handler, never shown).

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::secret::Redactor;

/// A handler's own config. Debug and serialised output show it as declared, with `${env:…}` and `${file:…}` unresolved.
#[derive(Clone, PartialEq)]
pub struct HandlerConfig {
    declared: Value,
    /// `None` when there are no references.
    resolved: Option<Value>,
    /// Takes what references stand for out of texts.
    redactor: Redactor,
}

impl HandlerConfig {
    /// A config without references.
    pub fn new(declared: Value) -> Self {
        Self {
            declared,
            resolved: None,
            redactor: Redactor::default(),
        }
    }

    /// A config whose references were resolved to `resolved`; they stand for `secrets`.
    pub fn with_resolved(declared: Value, resolved: Value, secrets: &[String]) -> Self {
        let resolved = (resolved != declared).then_some(resolved);
        Self {
            declared,
            resolved,
            redactor: Redactor::new(secrets),
        }
    }

    /// As the spec declares it; may be shown.
    pub fn declared(&self) -> &Value {
        &self.declared
    }

    /// With references resolved; may hold secrets: hand it to the handler and nowhere else.
    pub fn expose(&self) -> &Value {
        self.resolved.as_ref().unwrap_or(&self.declared)
    }

    /// Takes what the references stand for out of texts that a handler gives: it may quote its config.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }
}

impl Default for HandlerConfig {
    fn default() -> Self {
        Self::new(Value::Object(serde_json::Map::new()))
    }
}

impl fmt::Debug for HandlerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.declared)
    }
}

impl Serialize for HandlerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.declared.serialize(serializer)
    }
}
