//! Validation rules for strings in a spec.

use super::VersionRequirement;
use super::route::TopicPattern;
use crate::document::{Checked, FieldValue, TextRule, TextValue, format_size, shortened};

/// Kafka's maximum length of a topic name.
pub(super) const MAX_TOPIC: usize = 249;
/// Names of the service's own keys in etcd and ZooKeeper.
const RESERVED: [&str; 2] = ["logging", "metrics"];

/// A handler's name.
pub(crate) static NAME: TextRule = TextRule {
    check: check_name,
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    numbers: false,
};

/// A pool's name.
pub(crate) static POOL: TextRule = TextRule {
    check: check_label,
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    numbers: false,
};

/// A plugin's catalogue name.
pub(crate) static PLUGIN: TextRule = TextRule {
    check: |text| {
        let first = text
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        let fits = first
            && text.len() <= 128
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        refuse_if(
            !fits,
            "a plugin is referenced by its catalogue name (letters, digits, -, _ and .), never by a path or URL",
        )
    },
    pattern: Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    numbers: false,
};

/// A version requirement; unquoted numbers such as `1.2` are accepted.
pub(crate) static VERSION: TextRule = TextRule {
    check: |text| {
        text.parse::<VersionRequirement>()
            .map(|_| ())
            .map_err(|error| error.advice())
    },
    pattern: Some(r"^[\s*0-9A-Za-z.,<>=^~+-]+$"),
    numbers: true,
};

impl FieldValue for VersionRequirement {
    fn of(checked: &Checked) -> Option<Self> {
        checked.text()?.parse().ok()
    }
}

impl TextValue for VersionRequirement {}

/// A topic pattern.
pub(crate) static TOPIC: TextRule = TextRule {
    check: |text| parse_topic(text).map(|_| ()),
    pattern: Some(r"^([A-Za-z0-9._*?-]{1,249}|/.+/)$"),
    numbers: false,
};

/// A dead-letter topic's template.
pub(crate) static DEAD_LETTER_TOPIC: TextRule = TextRule {
    check: |text| {
        refuse_if(
            text == "{topic}",
            "dead letters would go back to their source topic; add a suffix, such as {topic}.dlt",
        )?;
        check_topic_name(&text.replace("{topic}", "t"))
            .map_err(|reason| format!("{reason}; {{topic}} is the only placeholder"))
    },
    pattern: Some(r"^([A-Za-z0-9._-]|\{topic\})+$"),
    numbers: false,
};

fn refuse_if(bad: bool, reason: &str) -> Result<(), String> {
    if bad { Err(reason.to_owned()) } else { Ok(()) }
}

/// Validates a handler's name.
pub(crate) fn check_name(text: &str) -> Result<(), String> {
    check_label(text)?;
    refuse_if(
        RESERVED.contains(&text),
        "the name is reserved for a key of the service itself",
    )
}

fn check_label(text: &str) -> Result<(), String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    refuse_if(
        !fits,
        "use 1 to 63 lower-case letters, digits and -, with a letter or digit at both ends",
    )
}

fn check_topic_name(name: &str) -> Result<(), String> {
    refuse_if(
        name.is_empty() || name == "." || name == "..",
        "not a valid topic name",
    )?;
    refuse_if(
        name.len() > MAX_TOPIC,
        "a topic name has at most 249 characters",
    )?;
    let fits = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    refuse_if(!fits, "a topic name has letters, digits, ., _ and - only")
}

/// Parses one entry of `route.topics`.
pub(crate) fn parse_topic(text: &str) -> Result<TopicPattern, String> {
    if let Some(inner) = text.strip_prefix('/') {
        let pattern = inner
            .strip_suffix('/')
            .filter(|pattern| !pattern.is_empty())
            .ok_or("write a regex between slashes, such as /^orders-[0-9]+$/")?;
        check_syntax(pattern)?;
        return Ok(TopicPattern::Regex(pattern.to_owned()));
    }
    refuse_if(
        text.contains(['^', '$', '[', '(', '|', '\\', '+', '{']),
        "this appears to be a regex; write it between slashes, such as /^orders-[0-9]+$/ (a glob has only * and ?)",
    )?;
    if text.contains(['*', '?']) {
        check_topic_name(&text.replace(['*', '?'], "x"))?;
        return Ok(TopicPattern::Glob(text.to_owned()));
    }
    check_topic_name(text)?;
    Ok(TopicPattern::Exact(text.to_owned()))
}

/// Checks the regex syntax without compiling it.
fn check_syntax(pattern: &str) -> Result<(), String> {
    let parsed = regex_syntax::ParserBuilder::new()
        .utf8(false)
        .build()
        .parse(pattern);
    parsed
        .map(|_| ())
        .map_err(|error| no_regex(&error.to_string()))
}

fn no_regex(error: &str) -> String {
    let reason = error.lines().last().unwrap_or_default();
    let reason = reason.trim_start_matches("error: ");
    format!("the regex does not compile: {}", shortened(reason))
}

/// Budget for the compiled regexes of one spec: time and memory depend on the compiled size, not on the length of the text.
pub(super) struct RegexBudget {
    left: usize,
}

impl RegexBudget {
    /// Bytes for all compiled regexes of a spec.
    const ALL: usize = 8 << 20;
    /// Size limits tried in turn; the smallest that fits is charged.
    const STEPS: [usize; 4] = [8 << 10, 64 << 10, 256 << 10, 1 << 20];

    pub(super) fn new() -> Self {
        Self { left: Self::ALL }
    }

    /// Compiles a regex once, with the service's settings.
    pub(super) fn check(&mut self, pattern: &str) -> Result<(), String> {
        check_syntax(pattern)?;
        for step in Self::STEPS {
            if step > self.left {
                return Err(format!(
                    "the regexes of this spec exceed {} in total when compiled; use fewer or smaller ones",
                    format_size(Self::ALL as u64)
                ));
            }
            let compiled = regex::bytes::RegexBuilder::new(pattern)
                .size_limit(step)
                .build();
            match compiled {
                Ok(_) => {
                    self.left -= step;
                    return Ok(());
                }
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(error) => return Err(no_regex(&error.to_string())),
            }
        }
        Err("the regex is too large when compiled; reduce its repetitions".to_owned())
    }
}
