//! Tables of fields: name, doc, bounds and default of each. The parser, the JSON Schema and the reference pages are derived from
//! them, and they from the declarations of [`section!`](crate::section).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde_json::Value as Json;

use super::quantity::{format_duration, format_size};

/// The fields of a map.
pub struct SectionType {
    /// Description of the map in the JSON Schema.
    pub doc: &'static str,
    /// Accepted fields, in the order of the reference pages; any other key is rejected.
    pub fields: &'static [Field],
    /// Names reserved for future fields; rejected for now.
    pub later: &'static [Reserved],
}

/// One field of a map.
#[derive(Clone, Copy)]
pub struct Field {
    /// Key of the field, without the path of its map.
    pub name: &'static str,
    /// Meaning of the field in the reference pages and the JSON Schema, and in the problem that reports it as missing.
    pub doc: &'static str,
    /// Type and bounds of the value.
    pub kind: FieldType,
    /// Whether the field may be left out, and its default.
    pub need: Presence,
}

/// Whether a field may be left out, and its default.
#[derive(Clone, Copy)]
pub enum Presence {
    /// The field must be set; leaving it out is a problem.
    Required,
    /// The field may be left out and has no default.
    Optional,
    /// YAML text of the default; empty for objects, whose fields have their own defaults.
    Default(&'static str),
}

/// A field or choice that is designed but not implemented.
#[derive(Debug)]
pub struct Reserved {
    /// Key of the field, or word of the choice.
    pub name: &'static str,
    /// Reason; completes a sentence that starts with the name.
    pub reason: &'static str,
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.name, self.reason)
    }
}

/// Type and bounds of a field.
#[derive(Clone, Copy)]
pub enum FieldType {
    /// Boolean: `true` or `false`.
    Flag,
    /// Whole number.
    Count {
        /// Smallest accepted number.
        min: u64,
        /// Largest accepted number; `u64::MAX` for no upper bound.
        max: u64,
    },
    /// Integer or floating-point number.
    Number {
        /// Smallest accepted number.
        min: f64,
        /// Largest accepted number; `f64::MAX` for no upper bound.
        max: f64,
    },
    /// String that satisfies the rule.
    Text(&'static TextRule),
    /// One word of a fixed set, such as the words of a [`ChoiceValue`].
    Choice {
        /// Returns the accepted words, in the order in which messages list them.
        words: fn() -> Vec<&'static str>,
        /// Words reserved for future choices; rejected with their reason.
        later: &'static [Reserved],
    },
    /// Duration with a unit, such as `1.5s` or `1h30m`.
    Duration {
        /// Shortest accepted duration.
        min: Duration,
        /// Longest accepted duration.
        max: Duration,
    },
    /// Number of bytes, with or without a unit, such as `256MiB`.
    Size {
        /// Smallest accepted size in bytes.
        min: u64,
        /// Largest accepted size in bytes; `u64::MAX` for no upper bound.
        max: u64,
    },
    /// List of strings.
    Texts {
        /// Rule that every entry satisfies.
        rule: &'static TextRule,
        /// Minimum number of entries.
        min: usize,
        /// Maximum number of entries.
        max: usize,
    },
    /// Map with a table of its own.
    Object(&'static SectionType),
    /// Parsed by custom code.
    Custom {
        /// Returns the JSON Schema of the accepted values.
        schema: fn() -> Json,
    },
}

/// Validation rule of a string.
pub struct TextRule {
    /// Fails with what is expected. Must not quote the text, which may be secret.
    pub check: fn(&str) -> Result<(), Reason>,
    /// The rule for a JSON Schema, as far as a regex can express it.
    pub pattern: Option<&'static str>,
    /// Accepts unquoted numbers as strings.
    pub numbers: bool,
}

/// Why a text breaks its rule: what is expected instead. Most rules have one sentence of their own, so this is text; kinds of
/// failure that several rules share are errors with a type, converted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Cow<'static, str>);

impl Reason {
    /// A reason in words.
    pub(crate) fn new(text: String) -> Self {
        Self(Cow::Owned(text))
    }

    /// Fails with `expected` unless the text `fits`.
    pub(crate) fn unless(fits: bool, expected: &'static str) -> Result<(), Self> {
        match fits {
            true => Ok(()),
            false => Err(Self(Cow::Borrowed(expected))),
        }
    }
}

impl<E: std::error::Error> From<E> for Reason {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An enumeration with one word per value.
pub trait ChoiceValue: Copy + PartialEq + 'static {
    /// All values with their words.
    const WORDS: &'static [(&'static str, Self)];

    /// The word of this value.
    fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(word, _)| word)
    }

    /// The value of a word.
    fn of(word: &str) -> Option<Self> {
        Self::WORDS
            .iter()
            .find(|(known, _)| *known == word)
            .map(|(_, value)| *value)
    }
}

/// Every word of `T`, for [`FieldType::Choice`].
pub(super) fn words<T: ChoiceValue>() -> Vec<&'static str> {
    T::WORDS.iter().map(|(word, _)| *word).collect()
}

impl SectionType {
    /// The field called `name`; `None` if it is unknown or only reserved.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Names of the accepted fields in table order, without reserved ones.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.fields.iter().map(|field| field.name)
    }

    /// Dotted path of the first field called `name` below this object.
    pub fn find_below(&self, name: &str, path: &str) -> Option<String> {
        self.fields.iter().find_map(|field| {
            let here = super::join(path, field.name);
            if field.name == name {
                return Some(here);
            }
            match &field.kind {
                FieldType::Object(object) => object.find_below(name, &here),
                _ => None,
            }
        })
    }
}

impl FieldType {
    /// Description of the accepted values, for messages and the reference pages.
    pub fn expected(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Count { min, max } => range("a whole number", min, max, *max == u64::MAX),
            Self::Number { min, max } => range("a number", min, max, *max == f64::MAX),
            Self::Text(_) => "a string".to_owned(),
            Self::Choice { words, .. } => format!("one of {}", words().join(", ")),
            Self::Duration { min, max } => range(
                "a duration",
                &format_duration(*min),
                &format_duration(*max),
                false,
            ),
            Self::Size { min, max } => range(
                "a size",
                &format_size(*min),
                &format_size(*max),
                *max == u64::MAX,
            ),
            Self::Texts { .. } => "a list of strings".to_owned(),
            Self::Object(_) => "a map".to_owned(),
            Self::Custom { .. } => "a value".to_owned(),
        }
    }
}

fn range<T: std::fmt::Display>(what: &str, min: &T, max: &T, open: bool) -> String {
    if open {
        format!("{what} of at least {min}")
    } else {
        format!("{what} from {min} to {max}")
    }
}
