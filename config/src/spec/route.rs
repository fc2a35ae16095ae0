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

impl TopicPattern {
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

impl std::fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) | Self::Glob(name) => f.write_str(name),
            Self::Regex(pattern) => write!(f, "/{pattern}/"),
        }
    }
}
