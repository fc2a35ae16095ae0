//! The control keys that a service reads from a store, independent of their paths in it.

use std::fmt;

use crate::spec::{NameError, check_name};

/// One control key. Handler names in it are valid ([`ControlKey::enabled`] and the other constructors check them).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControlKey {
    /// `{name}/enabled`: the gate, `true` or `false`.
    Enabled(String),
    /// `{name}/spec`: the spec, YAML or JSON.
    Spec(String),
    /// `{name}/config`: the handler's own config, JSON; it replaces the config in the spec.
    Config(String),
    /// `{name}/canary`: a canary or shadow of a version, JSON.
    Canary(String),
    /// `{name}/rollout`: a staged rollout in progress, JSON.
    Rollout(String),
    /// `logging/enabled`: the built-in record log, `true` or `false`.
    Logging,
    /// `metrics/level`: `off`, `basic`, `handler` or `partition`.
    MetricsLevel,
    /// `.bridge`: the mark by which bridges detect that a store reverted to an earlier state. Nothing else reads it.
    Bridge,
}

/// The path of [`ControlKey::Bridge`] in every store; no handler and no template can have this name.
pub(super) const BRIDGE_PATH: &str = ".bridge";

/// An invalid handler name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid handler name: {reason}")]
pub struct KeyNameError {
    /// The text.
    pub name: String,
    /// The rule that it breaks.
    #[source]
    pub reason: NameError,
}

impl ControlKey {
    /// The handler that the key belongs to; `None` for the service's own.
    #[must_use]
    pub fn handler(&self) -> Option<&str> {
        match self {
            Self::Enabled(name)
            | Self::Spec(name)
            | Self::Config(name)
            | Self::Canary(name)
            | Self::Rollout(name) => Some(name),
            Self::Logging | Self::MetricsLevel | Self::Bridge => None,
        }
    }

    /// The gate of a handler.
    ///
    /// # Errors
    /// [`KeyNameError`] when the name is not a valid handler name.
    pub fn enabled(name: &str) -> Result<Self, KeyNameError> {
        checked(name).map(Self::Enabled)
    }

    /// The spec of a handler.
    ///
    /// # Errors
    /// [`KeyNameError`] when the name is not a valid handler name.
    pub fn spec(name: &str) -> Result<Self, KeyNameError> {
        checked(name).map(Self::Spec)
    }

    /// The config of a handler, apart from its spec.
    ///
    /// # Errors
    /// [`KeyNameError`] when the name is not a valid handler name.
    pub fn config(name: &str) -> Result<Self, KeyNameError> {
        checked(name).map(Self::Config)
    }

    /// The canary of a handler.
    ///
    /// # Errors
    /// [`KeyNameError`] when the name is not a valid handler name.
    pub fn canary(name: &str) -> Result<Self, KeyNameError> {
        checked(name).map(Self::Canary)
    }

    /// The rollout of a handler.
    ///
    /// # Errors
    /// [`KeyNameError`] when the name is not a valid handler name.
    pub fn rollout(name: &str) -> Result<Self, KeyNameError> {
        checked(name).map(Self::Rollout)
    }
}

fn checked(name: &str) -> Result<String, KeyNameError> {
    match check_name(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(reason) => Err(KeyNameError {
            name: name.to_owned(),
            reason,
        }),
    }
}

/// The path below the prefix in etcd's default layout.
impl fmt::Display for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enabled(name) => write!(f, "{name}/enabled"),
            Self::Spec(name) => write!(f, "{name}/spec"),
            Self::Config(name) => write!(f, "{name}/config"),
            Self::Canary(name) => write!(f, "{name}/canary"),
            Self::Rollout(name) => write!(f, "{name}/rollout"),
            Self::Logging => f.write_str("logging/enabled"),
            Self::MetricsLevel => f.write_str("metrics/level"),
            Self::Bridge => f.write_str(BRIDGE_PATH),
        }
    }
}
