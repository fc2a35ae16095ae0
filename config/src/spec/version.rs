//! Which versions of a plugin a spec accepts.

use std::fmt;
use std::str::FromStr;

use semver::{Version, VersionReq};

/// Which versions of a plugin a spec accepts: exact (`1.2.3`), a prefix (`1.2`), a semver range (`>=1.2, <2`), or `*`.
#[derive(Clone, PartialEq, Eq)]
pub struct VersionRequirement {
    text: String,
    rule: Rule,
}

#[derive(Clone, PartialEq, Eq)]
enum Rule {
    Any,
    Exact(Version),
    Range(VersionReq),
}

/// Why a version requirement is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no version requirement ({reason}); write an exact version (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *"
)]
pub struct VersionRequirementError {
    text: String,
    reason: String,
}

impl VersionRequirementError {
    /// What is wrong and what to write, without the text.
    pub(crate) fn advice(&self) -> String {
        format!(
            "{}; write an exact version (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *",
            self.reason
        )
    }
}

impl VersionRequirement {
    /// Accepts every version, pre-releases too.
    pub fn any() -> Self {
        Self {
            text: "*".to_owned(),
            rule: Rule::Any,
        }
    }

    /// Whether `version` may serve. A prefix or range takes no pre-release that it does not name.
    pub fn matches(&self, version: &Version) -> bool {
        match &self.rule {
            Rule::Any => true,
            Rule::Exact(exact) => exact == version,
            Rule::Range(range) => range.matches(version),
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for VersionRequirement {
    type Err = VersionRequirementError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let refused = |reason: String| VersionRequirementError {
            text: text.to_owned(),
            reason,
        };
        let rule = if text == "*" {
            Rule::Any
        } else if let Ok(exact) = Version::parse(text) {
            Rule::Exact(exact)
        } else if text.is_empty() {
            return Err(refused("it is empty".to_owned()));
        } else {
            let bare = text.chars().all(|c| c.is_ascii_digit() || c == '.');
            let range = if bare {
                VersionReq::parse(&format!("~{text}"))
            } else {
                VersionReq::parse(text)
            };
            Rule::Range(range.map_err(|error| refused(error.to_string()))?)
        };
        Ok(Self {
            text: text.to_owned(),
            rule,
        })
    }
}

impl fmt::Display for VersionRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for VersionRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(requirement: &str, version: &str) -> bool {
        let requirement: VersionRequirement = requirement.parse().unwrap();
        requirement.matches(&Version::parse(version).unwrap())
    }

    #[test]
    fn a_prefix_takes_what_begins_with_it_and_nothing_else() {
        assert!(accepts("1.2", "1.2.0"));
        assert!(accepts("1.2", "1.2.9"));
        assert!(!accepts("1.2", "1.3.0"));
        assert!(accepts("1", "1.9.0"));
        assert!(!accepts("1", "2.0.0"));
        assert!(!accepts("1.2", "1.2.0-rc.1"));
    }

    #[test]
    fn exact_versions_ranges_and_the_star() {
        assert!(accepts("1.2.3", "1.2.3"));
        assert!(!accepts("1.2.3", "1.2.4"));
        assert!(accepts("1.2.3-rc.1", "1.2.3-rc.1"));
        assert!(accepts(">=1.2, <2", "1.9.9"));
        assert!(!accepts(">=1.2, <2", "2.0.0"));
        assert!(accepts("*", "0.0.1-alpha"));
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for bad in ["", "latest", "1..2", "v1", "1.2.3.4"] {
            assert!(
                bad.parse::<VersionRequirement>().is_err(),
                "{bad} was taken"
            );
        }
    }
}
