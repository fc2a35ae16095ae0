//! What a member of the fleet says of itself under its member key, as JSON.

use serde::{Deserialize, Serialize};

/// A member's report. Fields that a newer member adds are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its id: `{host}-{pid}` unless `handlers.member_id` is set.
    pub id: String,
    /// The machine that it runs on.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// The version of the service.
    pub version: String,
    /// When it started, RFC 3339.
    pub started: String,
    /// The store's revision that is in force in all of its pumps.
    pub applied_revision: u64,
    /// Handlers that are refused, failed or not well; the others are not listed.
    #[serde(default)]
    pub handlers: Vec<MemberHandler>,
    /// Keys that it refused.
    #[serde(default)]
    pub rejections: Vec<MemberRejection>,
}

/// A handler that does not run as its spec asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHandler {
    /// Its name.
    pub name: String,
    /// Its state, as `sluicegate handlers list` shows it, such as `FAILED`; or `REFUSED` while what ran before runs on.
    pub state: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// A key whose value is not applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRejection {
    /// Where the key stands in its store.
    pub key: String,
    /// Where in the value, such as `route.topics[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
    /// The handlers that it concerns.
    #[serde(default)]
    pub handlers: Vec<String>,
}

impl MemberReport {
    /// Reads a report.
    ///
    /// # Errors
    /// A sentence when the bytes are no report.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("it is no member report: {error}"))
    }

    /// The report as it is written.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Plain data with text keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether it lists something against `handler`: a refusal, a failure or a rejected key.
    #[must_use]
    pub fn complains_of(&self, handler: &str) -> bool {
        self.handlers.iter().any(|listed| listed.name == handler)
            || self
                .rejections
                .iter()
                .any(|rejection| rejection.handlers.iter().any(|name| name == handler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_json_and_a_newer_members_fields() {
        let report = MemberReport {
            id: "a-1".into(),
            applied_revision: 7,
            rejections: vec![MemberRejection {
                key: "/plugins/x/spec".into(),
                path: Some("workers".into()),
                reason: "is 0".into(),
                handlers: vec!["x".into()],
            }],
            ..MemberReport::default()
        };
        assert_eq!(MemberReport::from_json(&report.to_json()).unwrap(), report);
        assert!(report.complains_of("x") && !report.complains_of("y"));
        let newer = r#"{"id":"a","host":"h","pid":1,"version":"9","started":"","applied_revision":3,"mood":"fine"}"#;
        assert_eq!(
            MemberReport::from_json(newer.as_bytes())
                .unwrap()
                .applied_revision,
            3
        );
        assert!(MemberReport::from_json(b"[]").is_err());
    }
}
