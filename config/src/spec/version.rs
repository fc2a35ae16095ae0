//! Version requirements of plugins.

use std::fmt;
use std::str::FromStr;

use semver::{Version, VersionReq};

/// The plugin versions that a spec accepts: exact (`1.2.3`), a prefix (`1.2`), a semver range (`>=1.2, <2`), or `*`.
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

const FORMS: &str = "write an exact version (1.2.3), a prefix (1.2), a range (>=1.2, <2) or *";

/// An invalid version requirement.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a version requirement ({cause}); {forms}", forms = FORMS)]
pub struct VersionRequirementError {
    text: String,
    #[source]
    cause: SyntaxError,
}

#[derive(Debug, thiserror::Error)]
enum SyntaxError {
    #[error("empty")]
    Empty,
    #[error(transparent)]
    Range(#[from] semver::Error),
}

impl VersionRequirementError {
    /// Cause and remedy, without the text.
    pub(super) fn advice(&self) -> String {
        format!("{}; {FORMS}", self.cause)
    }
}

impl VersionRequirement {
    /// Whether it names one version.
    pub fn is_exact(&self) -> bool {
        matches!(self.rule, Rule::Exact(_))
    }

    /// Accepts every version, including pre-releases.
    pub fn any() -> Self {
        Self {
            text: "*".to_owned(),
            rule: Rule::Any,
        }
    }

    /// Whether `version` is accepted. A prefix or range accepts a pre-release only if it names it.
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
        let refused = |cause: SyntaxError| VersionRequirementError {
            text: text.to_owned(),
            cause,
        };
        let rule = if text == "*" {
            Rule::Any
        } else if let Ok(exact) = Version::parse(text) {
            Rule::Exact(exact)
        } else if text.is_empty() {
            return Err(refused(SyntaxError::Empty));
        } else {
            let bare = text.chars().all(|c| c.is_ascii_digit() || c == '.');
            let range = if bare {
                VersionReq::parse(&format!("~{text}"))
            } else {
                VersionReq::parse(text)
            };
            Rule::Range(range.map_err(|error| refused(error.into()))?)
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
    fn a_prefix_accepts_only_versions_that_start_with_it() {
        assert!(accepts("1.2", "1.2.0"));
        assert!(accepts("1.2", "1.2.9"));
        assert!(!accepts("1.2", "1.3.0"));
        assert!(accepts("1", "1.9.0"));
        assert!(!accepts("1", "2.0.0"));
        assert!(!accepts("1.2", "1.2.0-rc.1"));
    }

    #[test]
    fn exact_versions_ranges_and_the_star_match() {
        assert!(accepts("1.2.3", "1.2.3"));
        assert!(!accepts("1.2.3", "1.2.4"));
        assert!(accepts("1.2.3-rc.1", "1.2.3-rc.1"));
        assert!(accepts(">=1.2, <2", "1.9.9"));
        assert!(!accepts(">=1.2, <2", "2.0.0"));
        assert!(accepts("*", "0.0.1-alpha"));
    }

    #[test]
    fn an_invalid_version_is_rejected() {
        for bad in ["", "latest", "1..2", "v1", "1.2.3.4"] {
            assert!(
                bad.parse::<VersionRequirement>().is_err(),
                "{bad} was accepted"
            );
        }
    }
}
