//! A handler's own config: as declared (may be shown) and with resolved references (passed to the handler, never shown).

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::secret::Redactor;

/// A handler's own config. Debug and serialised output show it as declared, with `${env:…}` and `${file:…}` unresolved.
#[derive(Clone, PartialEq)]
pub struct HandlerConfig {
    declared: Value,
    /// `None` without references.
    resolved: Option<Value>,
    /// Masks resolved values in texts.
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

    /// A config whose references resolve to `secrets`, which gives `resolved`.
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

    /// With references resolved. May contain secrets: pass it to the handler only.
    pub fn expose(&self) -> &Value {
        self.resolved.as_ref().unwrap_or(&self.declared)
    }

    /// Masks resolved values in texts from the handler, which may quote its config.
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
