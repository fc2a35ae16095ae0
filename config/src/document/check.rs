//! Validates a node tree against a table and reports all unknown names, missing fields, wrong types and bounds at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::quantity::{parse_duration, parse_size};
use super::suggest::did_you_mean;
use super::table::{Field, FieldType, Presence, Reason, Reserved, SectionType, TextRule};
use super::{Entry, Node, Place, Plain, Scalar, Style, Value, join, read_plain, shortened};
use crate::problem::{Problem, Problems};

/// Collects the problems of one document.
pub struct Checker<'a> {
    file: Option<&'a Path>,
    root: &'static SectionType,
    problems: Problems,
    /// Paths of values whose references could not be resolved and which are therefore not checked.
    unresolved: BTreeSet<String>,
}

/// A map that was checked against its table: values of all fields that are set or have a default. It is read as a
/// [`Section`](super::Section).
pub struct CheckedSection {
    /// Dotted path of the map; empty for the document itself.
    pub(super) path: String,
    /// Position of the map, or of the nearest enclosing map that is written out if this one is left out.
    pub(super) place: Place,
    pub(super) values: BTreeMap<&'static str, CheckedValue>,
}

pub(super) struct CheckedValue {
    pub(super) place: Place,
    pub(super) value: Checked,
}

/// One entry of a list of strings.
pub struct ListedText {
    /// The string.
    pub text: String,
    /// Its position.
    pub place: Place,
    /// Dotted path of the list, with the entry's index.
    pub path: String,
}

/// A checked value, by the type of its field.
pub enum Checked {
    /// Boolean.
    Flag(bool),
    /// Whole number or number of bytes.
    Count(u64),
    /// Number.
    Number(f64),
    /// String or word.
    Text(String),
    /// Duration.
    Duration(Duration),
    /// List of strings, without rejected ones.
    Texts(Vec<ListedText>),
    /// Map with a table of its own.
    Object(CheckedSection),
    /// Any value, not checked yet.
    Custom(Node),
}

impl Checked {
    /// String of a text field or word of a choice field.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'a> Checker<'a> {
    /// A checker for a document of `file` with the table `root`.
    pub fn new(file: Option<&'a Path>, root: &'static SectionType) -> Self {
        Self {
            file,
            root,
            problems: Problems::new(),
            unresolved: BTreeSet::new(),
        }
    }

    /// The collected problems.
    pub fn into_problems(self) -> Problems {
        self.problems
    }

    /// Whether the limit is reached and further problems are only counted.
    pub fn is_full(&self) -> bool {
        self.problems.is_full()
    }

    /// Adds a problem.
    pub fn report(&mut self, place: &Place, path: &str, message: impl ToString) {
        let mut message = message.to_string();
        if let Some(set_by) = &place.set_by {
            message.push_str(&format!(" (set by {set_by})"));
        }
        let file = self.file.filter(|_| place.set_by.is_none());
        self.problems.push(Problem {
            file: file.map(PathBuf::from),
            line: place.line,
            column: place.column,
            path: path.to_owned(),
            message,
        });
    }

    /// Reports an unresolved reference and excludes its value from further checks.
    pub fn report_unresolved(&mut self, place: &Place, path: &str, error: &dyn std::error::Error) {
        self.report(place, path, error);
        self.unresolved.insert(path.to_owned());
    }

    /// Checks `node` against `object`.
    pub fn section(
        &mut self,
        node: &Node,
        object: &'static SectionType,
        path: &str,
    ) -> CheckedSection {
        let mut section = CheckedSection {
            path: path.to_owned(),
            place: node.place.clone(),
            values: BTreeMap::new(),
        };
        let no_entries = Vec::new();
        let entries = match &node.value {
            Value::Map(entries) => entries,
            _ if node.is_null() => &no_entries,
            _ => {
                let keys: Vec<&str> = object.names().take(4).collect();
                let message = format!(
                    "expected a map with keys such as {}, found {}",
                    keys.join(", "),
                    node.describe()
                );
                self.report(&node.place, path, message);
                return section;
            }
        };
        for entry in entries {
            match object.field(&entry.key) {
                Some(field) => {
                    let path = join(path, field.name);
                    if let Some(value) = self.value(&entry.value, field, &path) {
                        let place = entry.value.place.clone();
                        section
                            .values
                            .insert(field.name, CheckedValue { place, value });
                    }
                }
                None => self.unknown(entry, object, path),
            }
        }
        for field in object.fields {
            if !entries.iter().any(|entry| entry.key == field.name) {
                self.absent(field, node, path, &mut section);
            }
        }
        section
    }

    fn unknown(&mut self, entry: &Entry, object: &'static SectionType, path: &str) {
        let shown = shortened(&entry.key);
        let full = join(path, &shown);
        if self.is_full() {
            // Finding the nearest name takes time, and the problem is only counted.
            return self.report(&entry.key_place, &full, "is unknown");
        }
        if let Some(later) = object.later.iter().find(|later| later.name == entry.key) {
            return self.report(&entry.key_place, &full, later);
        }
        let mut hint = did_you_mean(&entry.key, object.names());
        if hint.is_empty() {
            hint = match self.root.find_below(&entry.key, "") {
                Some(elsewhere) => format!("; did you mean `{elsewhere}`?"),
                None => format!(
                    "; known fields: {}",
                    object.names().collect::<Vec<_>>().join(", ")
                ),
            };
        }
        self.report(
            &entry.key_place,
            &full,
            format!("`{shown}` is unknown{hint}"),
        );
    }

    fn absent(
        &mut self,
        field: &'static Field,
        node: &Node,
        path: &str,
        section: &mut CheckedSection,
    ) {
        let full = join(path, field.name);
        match field.need {
            Presence::Optional => {}
            Presence::Required => {
                let message = format!("is missing: {}", field.doc);
                self.report(&node.place, &full, message);
            }
            Presence::Default(text) => {
                let default = default_node(text, &node.place);
                if let Some(value) = self.value(&default, field, &full) {
                    let place = node.place.clone();
                    section
                        .values
                        .insert(field.name, CheckedValue { place, value });
                }
            }
        }
    }

    fn value(&mut self, node: &Node, field: &'static Field, path: &str) -> Option<Checked> {
        if self.unresolved.contains(path) {
            return None;
        }
        match &field.kind {
            FieldType::Object(object) => {
                return Some(Checked::Object(self.section(node, object, path)));
            }
            FieldType::Custom { .. } => return Some(Checked::Custom(node.clone())),
            FieldType::Texts { rule, min, max } => {
                return self.texts(node, rule, (*min, *max), path);
            }
            _ => {}
        }
        let result = match &node.value {
            Value::Scalar(scalar) => scalar_value(scalar, &field.kind),
            _ => Err(Misfit::Type),
        };
        let expected = |hint: &str| {
            let expected = field.kind.expected();
            format!("expected {expected}, found {}{hint}", node.describe())
        };
        let message = match result {
            Ok(value) => return Some(value),
            Err(Misfit::Type) => expected(type_hint(node, field)),
            Err(Misfit::Word { hint }) => expected(&hint),
            Err(Misfit::Reserved(later)) => later.to_string(),
            Err(Misfit::Invalid(reason)) => invalid(node, &reason),
        };
        self.report(&node.place, path, message);
        None
    }

    /// As [`Self::refuse`], without the value, which can contain a secret: a handler's config, or the client's properties.
    pub fn refuse_unquoted(&mut self, node: &Node, expected: &str, path: &str) {
        let found = match &node.value {
            Value::Scalar(_) => "another value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.report(
            &node.place,
            path,
            format!("expected {expected}, found {found}"),
        );
    }

    /// Reports that `node` is not what was `expected`.
    pub fn refuse(&mut self, node: &Node, expected: &str, path: &str) {
        let message = format!("expected {expected}, found {}", node.describe());
        self.report(&node.place, path, message);
    }

    fn texts(
        &mut self,
        node: &Node,
        rule: &'static TextRule,
        (min, max): (usize, usize),
        path: &str,
    ) -> Option<Checked> {
        let Value::List(items) = &node.value else {
            let hint = match &node.value {
                Value::Scalar(scalar) if !node.is_null() => {
                    format!("; write [{}]", shortened(shown(scalar)))
                }
                _ => String::new(),
            };
            let message = format!(
                "expected a list of strings, found {}{hint}",
                node.describe()
            );
            self.report(&node.place, path, message);
            return None;
        };
        if items.len() < min || items.len() > max {
            let message = format!("expected {min} to {max} entries, found {}", items.len());
            self.report(&node.place, path, message);
        }
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if self.unresolved.contains(&path) {
                continue;
            }
            let text = match &item.value {
                Value::Scalar(scalar) => text(scalar, rule),
                Value::List(_) | Value::Map(_) => None,
            };
            let Some(text) = text else {
                self.refuse(item, "a string", &path);
                continue;
            };
            match (rule.check)(text) {
                Ok(()) => texts.push(ListedText {
                    text: text.to_owned(),
                    place: item.place.clone(),
                    path,
                }),
                Err(reason) => self.report(&item.place, &path, invalid(item, &reason)),
            }
        }
        Some(Checked::Texts(texts))
    }
}

fn shown(scalar: &Scalar) -> &str {
    scalar.reference.as_deref().unwrap_or(&scalar.text)
}

/// Remedy for a value of the wrong type.
fn type_hint(node: &Node, field: &Field) -> &'static str {
    let Value::Scalar(scalar) = &node.value else {
        return "";
    };
    match (&field.kind, scalar.style) {
        _ if node.is_null() && matches!(field.need, Presence::Default(_)) => {
            " (leave the key out for its default)"
        }
        (FieldType::Text(_), Style::Plain) if !node.is_null() => "; quote it to make it a string",
        (FieldType::Flag | FieldType::Count { .. } | FieldType::Number { .. }, Style::Quoted)
            if read_plain(&scalar.text) != Plain::Text =>
        {
            "; remove the quotes"
        }
        _ => "",
    }
}

/// A default as a node, as if written in the text.
fn default_node(text: &str, place: &Place) -> Node {
    let value = match text {
        "" | "{}" => Value::Map(Vec::new()),
        "[]" => Value::List(Vec::new()),
        _ => return Node::untyped(text, place.clone()),
    };
    let place = place.clone();
    Node { value, place }
}

/// Why a scalar is not a value of its field.
enum Misfit {
    /// Of another type, or out of bounds.
    Type,
    /// None of the words of an enumeration.
    Word {
        /// A suggestion of the nearest word, or empty.
        hint: String,
    },
    /// A word that is reserved for later.
    Reserved(&'static Reserved),
    /// Does not satisfy the rule of its type.
    Invalid(Reason),
}

impl<R: Into<Reason>> From<R> for Misfit {
    fn from(reason: R) -> Self {
        Self::Invalid(reason.into())
    }
}

fn invalid(node: &Node, reason: &Reason) -> String {
    format!("{} is invalid: {reason}", node.describe())
}

fn scalar_value(scalar: &Scalar, kind: &FieldType) -> Result<Checked, Misfit> {
    match kind {
        FieldType::Flag => match scalar.plain() {
            Plain::Flag(flag) => Ok(Checked::Flag(flag)),
            _ => Err(Misfit::Type),
        },
        FieldType::Count { min, max } => match scalar.plain() {
            Plain::Integer(integer) => match u64::try_from(integer) {
                Ok(count) if (*min..=*max).contains(&count) => Ok(Checked::Count(count)),
                _ => Err(Misfit::Type),
            },
            _ => Err(Misfit::Type),
        },
        FieldType::Number { min, max } => {
            let number = match scalar.plain() {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "bounds of number fields are far below 2^52"
                )]
                Plain::Integer(integer) => integer as f64,
                Plain::Float(float) => float,
                _ => return Err(Misfit::Type),
            };
            let fits = (*min..=*max).contains(&number);
            fits.then_some(Checked::Number(number)).ok_or(Misfit::Type)
        }
        FieldType::Duration { min, max } => {
            let duration = parse_duration(&scalar.text)?;
            let fits = (*min..=*max).contains(&duration);
            fits.then_some(Checked::Duration(duration))
                .ok_or(Misfit::Type)
        }
        FieldType::Size { min, max } => {
            let size = parse_size(&scalar.text)?;
            let fits = (*min..=*max).contains(&size);
            fits.then_some(Checked::Count(size)).ok_or(Misfit::Type)
        }
        FieldType::Text(rule) => {
            let text = text(scalar, rule).ok_or(Misfit::Type)?;
            (rule.check)(text)?;
            Ok(Checked::Text(text.to_owned()))
        }
        FieldType::Choice { words, later } => {
            let words = words();
            if words.contains(&scalar.text.as_str()) {
                return Ok(Checked::Text(scalar.text.clone()));
            }
            if let Some(later) = later.iter().find(|later| later.name == scalar.text) {
                return Err(Misfit::Reserved(later));
            }
            let hint = match scalar.reference {
                None => did_you_mean(&scalar.text, words),
                Some(_) => String::new(),
            };
            Err(Misfit::Word { hint })
        }
        FieldType::Texts { .. } | FieldType::Object(_) | FieldType::Custom { .. } => {
            Err(Misfit::Type)
        }
    }
}

/// The text, if its type is that of `rule`.
fn text<'s>(scalar: &'s Scalar, rule: &TextRule) -> Option<&'s str> {
    let number = matches!(scalar.plain(), Plain::Integer(_) | Plain::Float(_));
    let unquoted = (rule.numbers && number).then_some(scalar.text.as_str());
    scalar.as_text().or(unquoted)
}
