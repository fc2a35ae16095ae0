//! Validation rules for strings in a spec.

use super::VersionRequirement;
use super::plugin::plugin_and_handler;
use super::route::TopicPattern;
use crate::document::{Checked, FieldValue, Reason, TextRule, TextValue, format_size, shortened};

/// Kafka's maximum length of a topic name.
pub(super) const MAX_TOPIC: usize = 249;
/// Names of the service's own keys in etcd and ZooKeeper.
const RESERVED: [&str; 2] = ["logging", "metrics"];

/// A handler's name.
pub(crate) static NAME: TextRule = TextRule {
    check: |text| Ok(check_name(text)?),
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    numbers: false,
};

/// A pool's name.
pub(crate) static POOL: TextRule = TextRule {
    check: |text| Ok(check_label(text)?),
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    numbers: false,
};

/// A plugin's catalogue name, alone or with the name of a handler that it exports.
pub(crate) static PLUGIN: TextRule = TextRule {
    check: |text| {
        let (name, handler) = plugin_and_handler(text);
        Reason::unless(
            is_plugin_name(name) && handler.is_none_or(is_plugin_name),
            "a plugin is referenced by its catalogue name, or by that and a handler that it exports (NAME/HANDLER; letters, digits, -, _ and .), never by a path or URL",
        )
    },
    pattern: Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127})?$"),
    numbers: false,
};

fn is_plugin_name(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphanumeric())
        && text.len() <= 128
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A version requirement; unquoted numbers such as `1.2` are accepted.
pub(crate) static VERSION: TextRule = TextRule {
    check: |text| {
        let parsed = text.parse::<VersionRequirement>();
        parsed
            .map(drop)
            .map_err(|error| Reason::new(error.advice()))
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
    check: |text| Ok(parse_topic(text).map(drop)?),
    pattern: Some(r"^([A-Za-z0-9._*?-]{1,249}|/.+/)$"),
    numbers: false,
};

/// A dead-letter topic's template.
pub(crate) static DEAD_LETTER_TOPIC: TextRule = TextRule {
    check: |text| {
        Reason::unless(
            text != "{topic}",
            "dead letters would go back to their source topic; add a suffix, such as {topic}.dlt",
        )?;
        check_topic_name(&text.replace("{topic}", "t"))
            .map_err(|error| Reason::new(format!("{error}; {{topic}} is the only placeholder")))
    },
    pattern: Some(r"^([A-Za-z0-9._-]|\{topic\})+$"),
    numbers: false,
};

/// Why a text is not the name of a handler or pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Of other characters, or too long.
    #[error("use 1 to 63 lower-case letters, digits and -, with a letter or digit at both ends")]
    Characters,
    /// A handler of this name would have the keys of the service.
    #[error("the name is reserved for a key of the service itself")]
    Reserved,
}

/// Validates a handler's name.
pub(crate) fn check_name(text: &str) -> Result<(), NameError> {
    check_label(text)?;
    match RESERVED.contains(&text) {
        true => Err(NameError::Reserved),
        false => Ok(()),
    }
}

fn check_label(text: &str) -> Result<(), NameError> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    fits.then_some(()).ok_or(NameError::Characters)
}

/// Why a text is not a topic or a pattern of topics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopicError {
    #[error("not a valid topic name")]
    NoName,
    #[error("a topic name has at most 249 characters")]
    TooLong,
    #[error("a topic name has letters, digits, ., _ and - only")]
    Characters,
    #[error("write a regex between slashes, such as /^orders-[0-9]+$/")]
    OneSlash,
    #[error(
        "this appears to be a regex; write it between slashes, such as /^orders-[0-9]+$/ (a glob has only * and ?)"
    )]
    LooksLikeRegex,
    #[error(transparent)]
    Regex(#[from] RegexError),
}

fn check_topic_name(name: &str) -> Result<(), TopicError> {
    match name {
        "" | "." | ".." => Err(TopicError::NoName),
        _ if name.len() > MAX_TOPIC => Err(TopicError::TooLong),
        _ if name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) =>
        {
            Ok(())
        }
        _ => Err(TopicError::Characters),
    }
}

/// Parses one entry of `route.topics`.
pub(crate) fn parse_topic(text: &str) -> Result<TopicPattern, TopicError> {
    if let Some(inner) = text.strip_prefix('/') {
        let pattern = inner
            .strip_suffix('/')
            .filter(|pattern| !pattern.is_empty())
            .ok_or(TopicError::OneSlash)?;
        check_syntax(pattern)?;
        return Ok(TopicPattern::Regex(pattern.to_owned()));
    }
    if text.contains(['^', '$', '[', '(', '|', '\\', '+', '{']) {
        return Err(TopicError::LooksLikeRegex);
    }
    if text.contains(['*', '?']) {
        check_topic_name(&text.replace(['*', '?'], "x"))?;
        return Ok(TopicPattern::Glob(text.to_owned()));
    }
    check_topic_name(text)?;
    Ok(TopicPattern::Exact(text.to_owned()))
}

/// Why a regex is rejected. Displays only the last line of the regex crates' errors, which quote the whole pattern.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegexError {
    #[error("the regex does not compile: {}", last_line(.0))]
    Syntax(#[source] Box<regex_syntax::Error>),
    #[error("the regex does not compile: {}", last_line(.0))]
    Compile(#[source] regex::Error),
    #[error("the regex is too large when compiled; reduce its repetitions")]
    TooLarge,
    #[error(
        "the regexes of this spec exceed {} in total when compiled; use fewer or smaller ones",
        format_size(RegexBudget::ALL as u64)
    )]
    OverBudget,
}

fn last_line(error: &impl ToString) -> String {
    let error = error.to_string();
    let reason = error.lines().last().unwrap_or_default();
    shortened(reason.trim_start_matches("error: "))
}

/// Checks the regex syntax without compiling it.
fn check_syntax(pattern: &str) -> Result<(), RegexError> {
    let parsed = regex_syntax::ParserBuilder::new()
        .utf8(false)
        .build()
        .parse(pattern);
    match parsed {
        Ok(_) => Ok(()),
        Err(error) => Err(RegexError::Syntax(Box::new(error))),
    }
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
    pub(super) fn check(&mut self, pattern: &str) -> Result<(), RegexError> {
        check_syntax(pattern)?;
        for step in Self::STEPS {
            if step > self.left {
                return Err(RegexError::OverBudget);
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
                Err(error) => return Err(RegexError::Compile(error)),
            }
        }
        Err(RegexError::TooLarge)
    }
}
