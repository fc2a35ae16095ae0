//! A staged rollout in progress, as it stands under `{name}/rollout`: which members already have the new spec or config.

use serde::{Deserialize, Serialize};

/// The value of a rollout key, JSON.
///
/// A member whose id is in `members` runs by `spec` and `config` instead of what stands at the keys of those names; all
/// others ignore it. Deleting the key restores the earlier revision on those that had the new one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Tells this rollout from every other one.
    pub id: String,
    /// Who started it, for people.
    #[serde(default)]
    pub by: String,
    /// When it was started, RFC 3339.
    #[serde(default)]
    pub started: String,
    /// The text of the new spec; `None` leaves the spec as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// The new config, a JSON object; `None` leaves the config as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// Sizes of the waves, such as `1`, `25%`, `100%`.
    #[serde(default)]
    pub waves: Vec<String>,
    /// Which wave it is at, from 0.
    #[serde(default)]
    pub wave: usize,
    /// Ids of the members that have the new revision.
    #[serde(default)]
    pub members: Vec<String>,
    /// How long a wave must be well before the next one, such as `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_healthy: Option<String>,
    /// The revision of the spec that it takes the place of; 0 when there was none.
    #[serde(default)]
    pub base_revision: u64,
}

impl Rollout {
    /// Reads a rollout.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let rollout: Self = crate::document::from_object(bytes)
            .map_err(|error| format!("it is no rollout: {error}; delete it to end it"))?;
        match rollout.config {
            Some(ref config) if !config.is_object() => {
                Err("its `config` is no JSON object; delete it to end it".to_owned())
            }
            _ => Ok(rollout),
        }
    }

    /// The rollout as it is written.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether `member` has the new revision.
    #[must_use]
    pub fn is_for(&self, member: &str) -> bool {
        self.members.iter().any(|id| id == member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_out_survives_its_json() {
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
