//! YAML (a superset of JSON) parsed into a tree that keeps source positions, and the tables that the tree is checked against.
//! Tables and typed keys are declared by [`section!`](crate::section).
//!
//! ```text
//!  text ─► parse (bounded) ─► Node tree ─► check against a table ─► Section of typed values, or every problem
//! ```

mod check;
mod json;
mod parse;
mod quantity;
mod reference;
mod section;
mod suggest;
mod table;
mod trail;

pub use check::{Checked, CheckedSection, Checker, ListedText};
pub use json::{JsonObjectError, from_object, read_json_object, to_json};
pub use parse::{MAX_BYTES, parse, read_given_text, read_text};
use parse::{MAX_DEPTH, MAX_NODES};
pub use quantity::{QuantityError, format_duration, format_size, parse_duration};
pub use reference::{Lookup, ReferenceError, References, resolve, resolve_json};
pub use section::{
    CountValue, Document, Extends, FieldValue, Key, Section, SectionFields, TextValue, ValueType,
    choice, count, custom, flag, millis, number, object, only, size, text, texts,
};
#[doc(hidden)]
pub use section::{doc_text, joined};
pub use suggest::{did_you_mean, nearest};
pub use table::{ChoiceValue, Field, FieldType, Presence, Reason, Reserved, SectionType, TextRule};
pub use trail::Trail;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Source position of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1; 0 for a node without a text.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Byte range in the text.
    pub span: Range<usize>,
    /// The override that set the value, such as `--set kafka.clients` or an environment variable.
    pub set_by: Option<Arc<str>>,
}

/// One value with its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Content, with aliases expanded.
    pub value: Value,
    /// Position of the value; for an alias, that of the alias and not of its anchor.
    pub place: Place,
}

/// Content of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Null, boolean, number or string; not typed yet.
    Scalar(Scalar),
    /// Items in the order of the text.
    List(Vec<Node>),
    /// Entries in the order of the text; their keys are unique.
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Text of the key, without quotes; references in it are not resolved.
    pub key: String,
    /// Position of the key, for problems such as an unknown name.
    pub key_place: Place,
    /// Value of the key, with its own position.
    pub value: Node,
}

/// A scalar as written; its type depends on the field.
#[derive(Clone, PartialEq)]
pub struct Scalar {
    /// Text without quotes and with references resolved; may be secret if `reference` is set.
    pub text: String,
    /// Notation, which determines whether the text can be anything but a string.
    pub style: Style,
    /// The text before references were resolved. If set, messages show it instead of the resolved text.
    pub reference: Option<String>,
}

/// Notation of a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without quotes: null, boolean, number or string by YAML's core schema.
    Plain,
    /// Quoted, or a block scalar: always a string.
    Quoted,
    /// From an override or a reference: takes the type of its field.
    Untyped,
}

/// Type of a plain scalar by YAML's core schema.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plain {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// Decimal, hexadecimal (`0x`) or octal (`0o`) integer that fits in 128 bits.
    Integer(i128),
    /// Number with a fraction or exponent, a decimal integer beyond 128 bits, or `.inf`, `-.inf` or `.nan`.
    Float(f64),
    /// String: any other text, and every quoted one.
    Text,
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.reference.as_ref().unwrap_or(&self.text);
        write!(f, "{:?} {shown:?}", self.style)
    }
}

impl Scalar {
    /// Type of the scalar, by its notation.
    pub fn plain(&self) -> Plain {
        match self.style {
            Style::Quoted => Plain::Text,
            Style::Plain | Style::Untyped => read_plain(&self.text),
        }
    }

    /// The string value: quoted, untyped, or plain and a string by the core schema.
    pub fn as_text(&self) -> Option<&str> {
        let is_text = self.style != Style::Plain || self.plain() == Plain::Text;
        is_text.then_some(self.text.as_str())
    }

    /// Description for messages; never contains a resolved secret.
    pub fn describe(&self) -> String {
        if let Some(reference) = &self.reference {
            return format!("the value of {}", shortened(reference));
        }
        let shown = shortened(&self.text);
        match self.plain() {
            Plain::Null => "nothing".to_owned(),
            Plain::Flag(_) => format!("the boolean {shown}"),
            Plain::Integer(_) | Plain::Float(_) => format!("the number {shown}"),
            Plain::Text => format!("the string `{shown}`"),
        }
    }
}

/// Returns the type of an unquoted text by YAML's core schema, with the parsed value of a boolean or number.
pub fn read_plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" => Plain::Flag(true),
        "false" | "False" | "FALSE" => Plain::Flag(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Plain::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Plain::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Plain::Float(f64::NAN),
        _ => read_number(text),
    }
}

fn read_number(text: &str) -> Plain {
    let radix = |digits: &str, radix| {
        i128::from_str_radix(digits, radix).map_or(Plain::Text, Plain::Integer)
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned
            .chars()
            .all(|c| c.is_ascii_digit() || ".eE+-".contains(c));
    if !numeric {
        return Plain::Text;
    }
    if let Ok(integer) = text.parse::<i128>() {
        return Plain::Integer(integer);
    }
    text.parse::<f64>().map_or(Plain::Text, Plain::Float)
}

impl Node {
    /// A scalar from an override.
    pub fn untyped(text: &str, place: Place) -> Self {
        let scalar = Scalar {
            text: text.to_owned(),
            style: Style::Untyped,
            reference: None,
        };
        Self {
            value: Value::Scalar(scalar),
            place,
        }
    }

    /// An empty map.
    pub fn empty_map(place: Place) -> Self {
        Self {
            value: Value::Map(Vec::new()),
            place,
        }
    }

    /// Whether it is null or empty.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.style == Style::Plain && scalar.plain() == Plain::Null)
    }

    /// Description for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) => scalar.describe(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

/// `path.key`, or `key` at the top level.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Shortens untrusted text for a message.
pub fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(60).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
