//! The value of `{name}/rollout`: a staged rollout in progress and the members that already run the new spec or config.

use serde::{Deserialize, Serialize};

/// A rollout in progress, stored as JSON.
///
/// Members listed in `members` use `spec` and `config` instead of the keys of those names; all others ignore the rollout.
/// Deleting the key restores the earlier revision on the listed members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Unique id of this rollout.
    pub id: String,
    /// Who started it; informational.
    #[serde(default)]
    pub by: String,
    /// Start time, RFC 3339.
    #[serde(default)]
    pub started: String,
    /// Text of the new spec; `None` keeps the current spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// New config, a JSON object; `None` keeps the current config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// Sizes of the waves, such as `1`, `25%`, `100%`.
    #[serde(default)]
    pub waves: Vec<String>,
    /// Current wave, from 0.
    #[serde(default)]
    pub wave: usize,
    /// Ids of the members that have the new revision.
    #[serde(default)]
    pub members: Vec<String>,
    /// How long a wave must stay healthy before the next one starts, such as `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_healthy: Option<String>,
    /// Revision of the spec that the rollout replaces; 0 when there was none.
    #[serde(default)]
    pub base_revision: u64,
}

/// Why a value is not a rollout. Terminal until the key is deleted or written again.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// Not JSON, or of other fields.
    #[error("not a valid rollout: {0}; delete the key to end it")]
    Json(#[from] serde_json::Error),
    /// Its `config` is not an object.
    #[error("not a valid rollout: `config` is not a JSON object; delete the key to end it")]
    Config,
}

impl Rollout {
    /// Parses a rollout.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RolloutError> {
        let rollout: Self = crate::document::from_object(bytes)?;
        match rollout.config {
            Some(ref config) if !config.is_object() => Err(RolloutError::Config),
            _ => Ok(rollout),
        }
    }

    /// Serialises the rollout.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data with string keys: serialisation cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether `member` runs the new revision.
    #[must_use]
    pub fn is_for(&self, member: &str) -> bool {
        self.members.iter().any(|id| id == member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_survives_its_json() {
        let rollout = Rollout {
            id: "r1".into(),
            config: Some(serde_json::json!({ "threshold": 2 })),
            waves: vec!["1".into(), "100%".into()],
            members: vec!["a-1".into()],
            ..Rollout::default()
        };
        assert_eq!(Rollout::from_json(&rollout.to_json()).unwrap(), rollout);
        assert!(rollout.is_for("a-1") && !rollout.is_for("a-2"));
        for bad in [
            "",
            "[]",
            r#"["r1", "me", "", null, null, [], 0, [], null, 0]"#,
            r#"{"id":"x","config":3}"#,
            r#"{"id":"x","mood":1}"#,
        ] {
            assert!(Rollout::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
