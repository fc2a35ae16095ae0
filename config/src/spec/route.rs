//! Which records a handler wants: topic patterns and a predicate.

use super::Predicate;

/// Which records a handler wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Topics; at least one.
    pub topics: Vec<TopicPattern>,
    /// Further condition on each record.
    pub when: Predicate,
}

/// One way to name topics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicPattern {
    /// This topic.
    Exact(String),
    /// `*` stands for any run of characters (dots too), `?` for one.
    Glob(String),
    /// Written `/…/`; matches somewhere in the name (write `^…$` for the whole); Rust `regex` syntax, known to compile.
    Regex(String),
}

/// Whether a topic belongs to Kafka itself, or to a tool that stores its own state there. Their names begin with `__`; the
/// client protocol tells nothing better.
pub fn is_internal_topic(name: &str) -> bool {
    name.starts_with("__")
}

impl TopicPattern {
    /// Whether it names the topic: an exact name itself, a glob or regex every topic that it fits, except internal ones
    /// ([`is_internal_topic`]). A regex that does not compile matches nothing; validated specs hold none.
    pub fn matches(&self, topic: &str) -> bool {
        TopicMatcher::new(std::slice::from_ref(self))
            .matching(topic)
            .next()
            .is_some()
    }

    /// The pattern as a Rust regex for the whole of what it matches: anchored for exact names and globs.
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

/// Patterns that are compiled once, for many topics.
#[derive(Debug)]
pub struct TopicMatcher<'r> {
    /// Each pattern with its regex; exact names have none.
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

    /// The patterns that match the topic, as [`TopicPattern::matches`] says.
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
