//! Routes: the topic patterns and the predicate that select a handler's records.

use super::Predicate;

/// Selects a handler's records.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Topic patterns; at least one.
    pub topics: Vec<TopicPattern>,
    /// Additional condition on each record.
    pub when: Predicate,
}

/// A topic name or pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicPattern {
    /// An exact name.
    Exact(String),
    /// `*` matches any run of characters (dots too), `?` exactly one.
    Glob(String),
    /// Written `/…/`; matches anywhere in the name (`^…$` matches the whole); Rust `regex` syntax, known to compile.
    Regex(String),
}

/// Whether a topic is internal to Kafka or to a tool that stores state in it, by the prefix `__`. The client protocol has no
/// better indicator.
pub fn is_internal_topic(name: &str) -> bool {
    name.starts_with("__")
}

/// The topics that are named exactly.
pub(super) fn exact_names(topics: &[TopicPattern]) -> impl Iterator<Item = &str> {
    topics.iter().filter_map(|pattern| match pattern {
        TopicPattern::Exact(name) => Some(name.as_str()),
        TopicPattern::Glob(_) | TopicPattern::Regex(_) => None,
    })
}

impl TopicPattern {
    /// Whether the pattern matches the topic. Globs and regexes never match internal topics ([`is_internal_topic`]). A regex that
    /// does not compile matches nothing; validated specs contain none.
    pub fn matches(&self, topic: &str) -> bool {
        TopicMatcher::new(std::slice::from_ref(self))
            .matching(topic)
            .next()
            .is_some()
    }

    /// The pattern as a Rust regex; anchored for exact names and globs.
    pub fn to_regex(&self) -> String {
        match self {
            Self::Exact(name) => format!("^{}$", regex::escape(name)),
            Self::Glob(glob) => {
                let mut text = String::from("^");
                for c in glob.chars() {
                    match c {
                        '*' => text.push_str(".*"),
                        '?' => text.push('.'),
                        c => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
                    }
                }
                text.push('$');
                text
            }
            Self::Regex(pattern) => pattern.clone(),
        }
    }
}

/// Patterns compiled once, for matching many topics.
#[derive(Debug)]
pub struct TopicMatcher<'r> {
    /// Each pattern with its regex; `None` for exact names.
    patterns: Vec<(&'r TopicPattern, Option<regex::Regex>)>,
}

impl<'r> TopicMatcher<'r> {
    /// A matcher of these patterns.
    pub fn new(patterns: &'r [TopicPattern]) -> Self {
        let compiled = patterns.iter().map(|pattern| {
            let regex = match pattern {
                TopicPattern::Exact(_) => None,
                other => regex::Regex::new(&other.to_regex()).ok(),
            };
            (pattern, regex)
        });
        Self {
            patterns: compiled.collect(),
        }
    }

    /// The patterns that match the topic; see [`TopicPattern::matches`].
    pub fn matching<'m>(&'m self, topic: &'m str) -> impl Iterator<Item = &'r TopicPattern> + 'm {
        let matches = move |(pattern, regex): &&(&TopicPattern, Option<regex::Regex>)| match regex {
            Some(regex) => !is_internal_topic(topic) && regex.is_match(topic),
            None => matches!(pattern, TopicPattern::Exact(name) if name == topic),
        };
        self.patterns
            .iter()
            .filter(matches)
            .map(|(pattern, _)| *pattern)
    }
}

impl std::fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) | Self::Glob(name) => f.write_str(name),
            Self::Regex(pattern) => write!(f, "/{pattern}/"),
        }
    }
}
