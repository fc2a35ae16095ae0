//! The report that a member of the fleet writes under its member key: JSON of at most [`MAX_REPORT`] bytes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Maximum size of a report in bytes. A store rejects values that are too large, and a member whose report is rejected would
/// disappear from its fleet.
pub const MAX_REPORT: usize = 64 * 1024;
/// Bytes that a truncated report reserves for reasons. Names come first, since callers wait for handlers by name.
const FOR_REASONS: usize = 24 * 1024;
/// Bytes reserved for counters that gain digits.
const FOR_COUNTS: usize = 256;
/// Maximum length of one text in a truncated report, in bytes.
const MAX_TEXT: usize = 400;
/// Maximum number of rejected keys without a handler in a truncated report.
const MAX_KEYS: usize = 20;

/// A member's report. Unknown fields are ignored, so that newer members can add some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Member id: `handlers.member_id`, or `{host}-{instance}`; with a random suffix while another process holds that id.
    pub id: String,
    /// Identifies this process, also among processes of the same id.
    #[serde(default)]
    pub instance: String,
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Version of the service.
    pub version: String,
    /// Start time, RFC 3339.
    pub started: String,
    /// The store's revision that all pumps of the member have applied, except for the handlers in `preparing`.
    pub applied_revision: u64,
    /// Handlers whose newest spec is still being prepared: its gate is applied, the rest of the earlier spec stays active.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preparing: Vec<String>,
    /// Why the store's current content is not applied, if it is held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Handlers that are rejected, failed or unhealthy; the others are not listed.
    #[serde(default)]
    pub handlers: Vec<MemberHandler>,
    /// Rejected keys.
    #[serde(default)]
    pub rejections: Vec<MemberRejection>,
    /// Numbers of entries left out to stay within [`MAX_REPORT`].
    #[serde(default, skip_serializing_if = "Omitted::is_nothing")]
    pub omitted: Omitted,
}

/// Numbers of entries that a truncated report leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omitted {
    /// Entries about handlers: being prepared, rejected, failed, or with a rejected key.
    pub handlers: usize,
    /// Rejected keys without a handler.
    pub keys: usize,
}

impl Omitted {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A handler that does not run as its spec declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHandler {
    /// Handler name.
    pub name: String,
    /// State as in `sluicegate handlers list`, such as `FAILED`; or `REFUSED` while its earlier spec stays active.
    pub state: String,
    /// Cause of the state.
    #[serde(default)]
    pub reason: String,
}

/// A key whose value was rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRejection {
    /// Full path of the key in its store.
    pub key: String,
    /// Path of the field within the value, such as `route.topics[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Cause and remedy.
    pub reason: String,
    /// Affected handlers.
    #[serde(default)]
    pub handlers: Vec<String>,
}

/// Random identity of this process, 8 hexadecimal digits. Host name and process id do not suffice: in containers the process
/// id is always 1, and containers on a host network share one host name.
#[must_use]
pub fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        // `RandomState` is seeded with the system's random bytes.
        let random = RandomState::new().hash_one(std::process::id());
        format!("{:08x}", random >> 32)
    })
}

/// The host name, sanitised for use in a key.
#[must_use]
pub fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let fit: String = named
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(64)
        .collect();
    match fit.is_empty() {
        true => "host".to_owned(),
        false => fit,
    }
}

/// The value of a member's key is not a report.
#[derive(Debug, thiserror::Error)]
#[error("not a member report: {0}")]
pub struct MemberReportError(#[from] serde_json::Error);

impl MemberReport {
    /// Parses a report.
    pub fn from_json(bytes: &[u8]) -> Result<Self, MemberReportError> {
        Ok(crate::document::from_object(bytes)?)
    }

    /// Serialises the report into at most [`MAX_REPORT`] bytes: texts are truncated, further entries only counted.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let whole = json(self);
        match whole.len() {
            ..=MAX_REPORT => whole,
            _ => json(&self.cut()),
        }
    }

    /// Only identity and applied revision, with everything else counted: for a store that rejects a larger value.
    #[must_use]
    pub fn minimal(&self) -> Self {
        let omitted = Omitted {
            handlers: self.omitted.handlers
                + self.preparing.len()
                + self.handlers.len()
                + self.rejections.iter().filter(concerns_handlers).count(),
            keys: self.omitted.keys
                + self
                    .rejections
                    .iter()
                    .filter(|rejection| !concerns_handlers(rejection))
                    .count(),
        };
        Self {
            preparing: Vec::new(),
            handlers: Vec::new(),
            rejections: Vec::new(),
            omitted,
            id: self.id.clone(),
            instance: self.instance.clone(),
            host: self.host.clone(),
            version: self.version.clone(),
            started: self.started.clone(),
            held: self.held.as_deref().map(short),
            ..*self
        }
    }

    /// Truncates by priority: names first, then reasons, then keys without a handler.
    fn cut(&self) -> Self {
        let (of_handlers, others): (Vec<&MemberRejection>, Vec<&MemberRejection>) =
            self.rejections.iter().partition(concerns_handlers);
        let mut cut = self.minimal();
        let mut left = MAX_REPORT.saturating_sub(json(&cut).len() + FOR_COUNTS);
        let mut names = left.saturating_sub(FOR_REASONS);
        left -= names;
        for handler in &self.handlers {
            let name = MemberHandler {
                reason: String::new(),
                ..handler.clone()
            };
            if !fits(&mut names, &name) {
                break;
            }
            cut.handlers.push(name);
        }
        for rejection in &of_handlers {
            let name = MemberRejection {
                key: short(&rejection.key),
                path: None,
                reason: String::new(),
                handlers: rejection.handlers.clone(),
            };
            if !fits(&mut names, &name) {
                break;
            }
            cut.rejections.push(name);
        }
        for name in &self.preparing {
            if !fits(&mut names, name) {
                break;
            }
            cut.preparing.push(name.clone());
        }
        cut.omitted.handlers -= cut.handlers.len() + cut.rejections.len() + cut.preparing.len();
        left += names;
        self.add_reasons(&mut cut, &of_handlers, &mut left);
        for other in others.into_iter().take(MAX_KEYS) {
            let other = MemberRejection {
                key: short(&other.key),
                path: other.path.as_deref().map(short),
                reason: short(&other.reason),
                handlers: Vec::new(),
            };
            if fits(&mut left, &other) {
                cut.rejections.push(other);
                cut.omitted.keys -= 1;
            }
        }
        cut
    }

    /// Adds reasons while there is room. The entries of `cut` are a prefix of those in `self`.
    fn add_reasons(&self, cut: &mut Self, of_handlers: &[&MemberRejection], left: &mut usize) {
        for (listed, whole) in cut.handlers.iter_mut().zip(&self.handlers) {
            let reason = short(&whole.reason);
            if fits(left, &reason) {
                listed.reason = reason;
            }
        }
        for (listed, whole) in cut.rejections.iter_mut().zip(of_handlers) {
            let (path, reason) = (whole.path.as_deref().map(short), short(&whole.reason));
            if fits(left, &(&path, &reason)) {
                (listed.path, listed.reason) = (path, reason);
            }
        }
    }

    /// Problems of one handler, one line each.
    #[must_use]
    pub fn problems_for(&self, handler: &str) -> Vec<String> {
        let of_handlers = self.handlers.iter().filter(|listed| listed.name == handler);
        let of_handlers = of_handlers.map(|listed| match listed.reason.is_empty() {
            true => listed.state.clone(),
            false => format!("{}: {}", listed.state, listed.reason),
        });
        let of_keys = self
            .rejections
            .iter()
            .filter(|rejection| rejection.handlers.iter().any(|name| name == handler));
        let of_keys = of_keys.map(|rejection| match &rejection.path {
            Some(path) => format!("{}: {path}: {}", rejection.key, rejection.reason),
            None => format!("{}: {}", rejection.key, rejection.reason),
        });
        of_handlers.chain(of_keys).collect()
    }

    /// Whether the report lists a problem of `handler`: a rejection, a failure or a rejected key.
    #[must_use]
    pub fn has_problems(&self, handler: &str) -> bool {
        !self.problems_for(handler).is_empty()
    }
}

fn concerns_handlers(rejection: &&MemberRejection) -> bool {
    !rejection.handlers.is_empty()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain data with string keys: serialisation cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Subtracts the serialised size of `value` from `left`; `false` when it does not fit.
fn fits(left: &mut usize, value: &impl Serialize) -> bool {
    // Field names and separators of fields that are filled in later.
    const AROUND: usize = 32;
    let bytes = json(value).len() + AROUND;
    let fits = bytes <= *left;
    if fits {
        *left -= bytes;
    }
    fits
}

/// Truncates a text to the maximum length.
fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let mut end = MAX_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_json_and_a_newer_members_fields() {
        let report = MemberReport {
            id: "a-1".into(),
            instance: instance().to_owned(),
            applied_revision: 7,
            preparing: vec!["slow".into()],
            rejections: vec![MemberRejection {
                key: "/plugins/x/spec".into(),
                path: Some("workers".into()),
                reason: "is 0".into(),
                handlers: vec!["x".into()],
            }],
            ..MemberReport::default()
        };
        assert_eq!(MemberReport::from_json(&report.to_json()).unwrap(), report);
        assert!(report.has_problems("x") && !report.has_problems("y"));
        let newer = r#"{"id":"a","host":"h","pid":1,"version":"9","started":"","applied_revision":3,"mood":"fine"}"#;
        assert_eq!(
            MemberReport::from_json(newer.as_bytes())
                .unwrap()
                .applied_revision,
            3
        );
        assert!(MemberReport::from_json(b"[]").is_err());
    }

    /// A report with `handlers` rejected handlers and `keys` rejected keys, with and without a handler; texts of `length` bytes.
    fn crowded(handlers: usize, keys: usize, length: usize) -> MemberReport {
        let text = "é\"".repeat(length / 3);
        let rejection = |key: String, handlers: Vec<String>| MemberRejection {
            key,
            path: Some(text.clone()),
            reason: text.clone(),
            handlers,
        };
        let of_handlers = (0..handlers).map(|n| {
            let name = format!("odd-{n}");
            rejection(format!("/plugins/{name}/spec"), vec![name])
        });
        let others = (0..keys).map(|n| rejection(format!("/plugins/unknown-{n}"), Vec::new()));
        MemberReport {
            id: "i".repeat(255),
            instance: "0123abcd".into(),
            applied_revision: 7,
            preparing: (0..handlers).map(|n| format!("slow-{n}")).collect(),
            handlers: (0..handlers)
                .map(|n| MemberHandler {
                    name: format!("bad-{n}"),
                    state: "REFUSED".into(),
                    reason: text.clone(),
                })
                .collect(),
            rejections: others.chain(of_handlers).collect(),
            ..MemberReport::default()
        }
    }

    #[test]
    fn a_report_stays_within_its_bound_and_counts_what_it_leaves_out() {
        for (handlers, keys, length) in [
            (1, 0, 2_000_000),
            (0, 6_000, 100),
            (40, 6_000, 9_000),
            (300, 10, 30),
            (5_000, 5_000, 3),
            (3, 3, 30_000),
        ] {
            let report = crowded(handlers, keys, length);
            let json = report.to_json();
            assert!(json.len() <= MAX_REPORT, "{handlers}: {} bytes", json.len());
            let read = MemberReport::from_json(&json).unwrap();
            assert_eq!(read.applied_revision, 7);
            let listed = read.preparing.len()
                + read.handlers.len()
                + read.rejections.iter().filter(concerns_handlers).count();
            assert_eq!(listed + read.omitted.handlers, 3 * handlers);
            let without_handler = read.rejections.iter().filter(|one| !concerns_handlers(one));
            assert_eq!(without_handler.count() + read.omitted.keys, keys);
        }
    }

    #[test]
    fn names_come_before_reasons_and_handlers_before_keys_without_one() {
        let report = MemberReport::from_json(&crowded(60, 6_000, 9_000).to_json()).unwrap();
        assert_eq!(report.omitted.handlers, 0);
        assert!(report.omitted.keys > 5_000);
        assert!(report.has_problems("bad-59") && report.has_problems("odd-59"));
        assert!(report.problems_for("bad-0")[0].starts_with("REFUSED: é"));
    }

    #[test]
    fn a_minimal_report_counts_everything() {
        let minimal = crowded(3, 4, 9).minimal();
        assert_eq!((minimal.omitted.handlers, minimal.omitted.keys), (9, 4));
        assert_eq!(minimal.minimal(), minimal);
    }
}
