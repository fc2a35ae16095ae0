//! Tables of fields: the one place where a field's name, meaning, bounds and default stand. Reading and the JSON Schema
//! both follow them.

use std::time::Duration;

use serde_json::Value as Json;

use super::quantity::{format_duration, format_size};

/// The fields that a map may have.
pub(crate) struct SectionType {
    pub(crate) doc: &'static str,
    pub(crate) fields: &'static [Field],
    /// Names that are designed and refused for now.
    pub(crate) later: &'static [Reserved],
}

/// One field of a map.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) kind: FieldType,
    pub(crate) need: Presence,
}

/// What stands for a field that is not given.
pub(crate) enum Presence {
    Required,
    Optional,
    /// YAML text of the default; empty for objects, whose fields have their own.
    Default(&'static str),
}

/// A name or word that is designed and not built yet.
pub(crate) struct Reserved {
    pub(crate) name: &'static str,
    /// A sentence that goes on after the name.
    pub(crate) reason: &'static str,
}

/// What a field's value may be.
pub(crate) enum FieldType {
    Flag,
    Count {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Text(&'static TextRule),
    Choice {
        words: fn() -> Vec<&'static str>,
        later: &'static [Reserved],
    },
    Duration {
        min: Duration,
        max: Duration,
    },
    Size {
        min: u64,
        max: u64,
    },
    Texts {
        rule: &'static TextRule,
        min: usize,
        max: usize,
    },
    Object(&'static SectionType),
    /// Read by code of its own.
    Custom {
        schema: fn() -> Json,
    },
}

/// What a text must be like.
pub(crate) struct TextRule {
    /// Says what is wanted, without quoting the text: it may be secret.
    pub(crate) check: fn(&str) -> Result<(), String>,
    /// The same for a JSON Schema, as far as a regex can say it.
    pub(crate) pattern: Option<&'static str>,
    /// Numbers without quotes count as texts.
    pub(crate) numbers: bool,
}

/// Values that have a word each.
pub(crate) trait ChoiceValue: Copy + PartialEq + 'static {
    /// Every value with its word.
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
pub(crate) fn words<T: ChoiceValue>() -> Vec<&'static str> {
    T::WORDS.iter().map(|(word, _)| *word).collect()
}

impl SectionType {
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.fields.iter().map(|field| field.name)
    }

    /// Dotted path of the first field called `name` below this object.
    pub(crate) fn find_below(&self, name: &str, path: &str) -> Option<String> {
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
    /// What a value must be, for messages.
    pub(crate) fn wants(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Count { min, max } => range("a whole number", min, max, *max == u64::MAX),
            Self::Number { min, max } => range("a number", min, max, *max == f64::MAX),
            Self::Text(_) => "a text".to_owned(),
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
            Self::Texts { .. } => "a list of texts".to_owned(),
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
