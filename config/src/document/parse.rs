//! Parses YAML into a node tree within bounds: text size, depth, and nodes and bytes after alias expansion.

use std::collections::HashMap;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{Entry, Node, Place, Scalar, Style, Value, shortened};
use crate::bounded_file::{self, ReadError};
use crate::problem::{Problem, Problems};

/// Maximum text size in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Maximum nesting depth.
pub(super) const MAX_DEPTH: usize = 64;
/// Maximum number of nodes, including expanded aliases and the anchored nodes kept for them.
pub(super) const MAX_NODES: usize = 50_000;
/// Maximum bytes of keys and values, counted the same way: an alias takes three bytes of text and repeats any number.
const MAX_EXPANDED: usize = 4 * MAX_BYTES;

/// Reads a file of a folder as text. The path is untrusted: a pipe is rejected instead of blocking.
pub fn read_text(file: &Path) -> Result<String, Problems> {
    as_text(file, bounded_file::read(file, MAX_BYTES))
}

/// Reads a file named on the command line, which may be a pipe, as text.
pub fn read_given_text(file: &Path) -> Result<String, Problems> {
    as_text(file, bounded_file::read_given(file, MAX_BYTES))
}

fn as_text(file: &Path, bytes: Result<Vec<u8>, ReadError>) -> Result<String, Problems> {
    let whole = |message: String| Problems::of_file(Some(file), message);
    let bytes = bytes.map_err(|reason| whole(reason.to_string()))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        whole(format!(
            "is not UTF-8 text: line {line} has an invalid byte; save it as UTF-8"
        ))
    })
}

/// Result of parsing a text.
pub struct Parsed {
    /// The document; an empty text gives an empty map. `None` when the text cannot be parsed to its end.
    pub root: Option<Node>,
    /// Syntax problems.
    pub problems: Problems,
}

/// Parses one document.
pub fn parse(text: &str, file: Option<&Path>) -> Parsed {
    if text.len() > MAX_BYTES {
        let message = format!("has {} bytes; at most {MAX_BYTES} are read", text.len());
        return Parsed {
            root: None,
            problems: Problems::of_file(file, message),
        };
    }
    let mut builder = Builder::new(text, file);
    if let Err(stop) = builder.run() {
        builder.problems.push(stop);
        return Parsed {
            root: None,
            problems: builder.problems,
        };
    }
    let root = builder.root.take().filter(|node| !node.is_null());
    let root = root.unwrap_or_else(|| {
        Node::empty_map(Place {
            line: 1,
            column: 1,
            ..Place::default()
        })
    });
    Parsed {
        root: Some(root),
        problems: builder.problems,
    }
}

/// A map or list that is still open.
enum Open {
    List {
        items: Vec<Node>,
        place: Place,
        anchor: usize,
    },
    Map {
        entries: Vec<Entry>,
        /// Lines of its keys.
        lines: HashMap<String, u32>,
        key: Option<Key>,
        place: Place,
        anchor: usize,
    },
}

/// A key that waits for its value.
struct Key {
    text: String,
    place: Place,
    /// A duplicate; its value is discarded.
    repeated: bool,
}

struct Builder<'a> {
    text: &'a str,
    file: Option<&'a Path>,
    /// Byte offset of every character, and of the end.
    offsets: Vec<usize>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
    /// Bytes of keys and values.
    bytes: usize,
    documents: usize,
    problems: Problems,
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, file: Option<&'a Path>) -> Self {
        Self {
            text,
            file,
            offsets: text
                .char_indices()
                .map(|(offset, _)| offset)
                .chain([text.len()])
                .collect(),
            open: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            nodes: 0,
            bytes: 0,
            documents: 0,
            problems: Problems::new(),
        }
    }

    /// Processes all events; an error makes the rest of the text unreadable.
    fn run(&mut self) -> Result<(), Problem> {
        let mut parser = Parser::new_from_str(self.text);
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| {
                let place = self.place(&Span::empty(*error.marker()));
                let hint = if error.info().contains("tab") {
                    "; indent with spaces"
                } else if error.info().contains("expect") {
                    "; quote strings that contain : # [ ] { } or ,"
                } else {
                    ""
                };
                let cause = self.cause_above(place.line).unwrap_or_default();
                self.problem(
                    &place,
                    format!("is not valid YAML: {}{hint}{cause}", error.info()),
                )
            })?;
            if matches!(event, Event::StreamEnd) {
                break;
            }
            self.event(event, &span)?;
        }
        Ok(())
    }

    /// A likelier cause above the line of a syntax error: a bracket that is not closed, or a line that is not a key.
    fn cause_above(&self, line: u32) -> Option<String> {
        let bracket = self.open.iter().rev().find_map(|open| {
            let (Open::List { place, .. } | Open::Map { place, .. }) = open;
            let first = self.text.get(place.span.start..)?.chars().next()?;
            (place.line < line && matches!(first, '[' | '{')).then_some((first, place.line))
        });
        if let Some((bracket, line)) = bracket {
            return Some(format!("; the `{bracket}` in line {line} is not closed"));
        }
        let above = self.text.lines().take((line as usize).saturating_sub(1));
        let lines = above.enumerate().filter(|(_, text)| {
            let text = text.trim_start();
            !text.is_empty() && !text.starts_with('#')
        });
        let (number, text) = lines.last()?;
        let is_key = text.trim_end().ends_with(':') || text.contains(": ");
        let is_item = text.trim_start().starts_with('-');
        (!is_key && !is_item).then(|| format!("; line {} has no key followed by `: `", number + 1))
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let place = self.place(span);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let message =
                        "has more than one document; use one document per file, without `---`";
                    return Err(self.problem(&place, message.to_owned()));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place);
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    _ => Style::Quoted,
                };
                let scalar = Scalar {
                    text: text.into_owned(),
                    style,
                    reference: None,
                };
                self.scalar(scalar, place, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place);
                self.deepen(&place)?;
                self.open.push(Open::List {
                    items: Vec::new(),
                    place,
                    anchor,
                });
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place);
                self.deepen(&place)?;
                self.open.push(Open::Map {
                    entries: Vec::new(),
                    lines: HashMap::new(),
                    key: None,
                    place,
                    anchor,
                });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(&place)?,
            Event::Alias(anchor) => self.alias(anchor, place)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// A scalar is a key if a map expects one, else a value.
    fn scalar(&mut self, scalar: Scalar, place: Place, anchor: usize) -> Result<(), Problem> {
        let Some(Open::Map {
            lines,
            key: key @ None,
            ..
        }) = self.open.last_mut()
        else {
            let value = Value::Scalar(scalar);
            return self.add(Node { value, place }, anchor);
        };
        let text = scalar.text;
        let first = lines.get(&text).copied();
        if first.is_none() {
            lines.insert(text.clone(), place.line);
        }
        self.bytes += text.len();
        *key = Some(Key {
            text: text.clone(),
            place: place.clone(),
            repeated: first.is_some(),
        });
        if let Some(line) = first {
            let shown = shortened(&text);
            let message =
                format!("`{shown}` is duplicated in this map, first in line {line}; keep one");
            let problem = self.problem(&place, message);
            self.problems.push(problem);
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Problem> {
        let Some(target) = self.anchors.get(&anchor) else {
            let message = "is an alias of an incomplete or unknown anchor; write the value out";
            return Err(self.problem(&place, message.to_owned()));
        };
        let size = Size::of(target);
        self.nodes += size.nodes;
        self.bytes += size.bytes;
        if self.is_beyond_bounds() || self.open.len() + size.depth > MAX_DEPTH {
            let message = format!(
                "has aliases that expand beyond {MAX_NODES} values, {MAX_EXPANDED} bytes or {MAX_DEPTH} levels; use fewer"
            );
            return Err(self.problem(&place, message));
        }
        let mut node = target.clone();
        node.place = place;
        if let Value::Scalar(scalar) = &node.value
            && matches!(self.open.last(), Some(Open::Map { key: None, .. }))
        {
            let (scalar, place) = (scalar.clone(), node.place);
            return self.scalar(scalar, place, 0);
        }
        self.add(node, 0)
    }

    fn is_beyond_bounds(&self) -> bool {
        self.nodes > MAX_NODES || self.bytes > MAX_EXPANDED
    }

    fn deepen(&mut self, place: &Place) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("is nested more than {MAX_DEPTH} levels deep");
            return Err(self.problem(place, message));
        }
        if matches!(self.open.last(), Some(Open::Map { key: None, .. })) {
            let message = "is a list or map where a key is expected; keys are strings";
            return Err(self.problem(place, message.to_owned()));
        }
        Ok(())
    }

    fn close(&mut self, end: &Place) -> Result<(), Problem> {
        let (value, mut place, anchor) = match self.open.pop() {
            Some(Open::List {
                items,
                place,
                anchor,
            }) => (Value::List(items), place, anchor),
            Some(Open::Map {
                entries,
                place,
                anchor,
                ..
            }) => (Value::Map(entries), place, anchor),
            None => return Ok(()),
        };
        place.span.end = end.span.end;
        self.add(Node { value, place }, anchor)
    }

    /// Adds a finished node to its parent.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if let Value::Scalar(scalar) = &node.value {
            self.bytes += scalar.text.len();
        }
        if anchor > 0 {
            // Anchored nodes are kept twice, for their aliases.
            let size = Size::of(&node);
            self.nodes += size.nodes;
            self.bytes += size.bytes;
        }
        if self.is_beyond_bounds() {
            let message = format!(
                "has more than {MAX_NODES} values or {MAX_EXPANDED} bytes of them; split it"
            );
            return Err(self.problem(&node.place, message));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => {
                if let Some(key) = key.take()
                    && !key.repeated
                {
                    entries.push(Entry {
                        key: key.text,
                        key_place: key.place,
                        value: node,
                    });
                }
            }
            None => self.root = Some(node),
        }
        Ok(())
    }

    fn refuse_tag(&mut self, tagged: bool, place: &Place) {
        if tagged {
            let message =
                "has a tag (`!…`); tags are not supported: quote a value to make it a string";
            let problem = self.problem(place, message.to_owned());
            self.problems.push(problem);
        }
    }

    fn place(&self, span: &Span) -> Place {
        let offset = |index: usize| self.offsets.get(index).copied().unwrap_or(self.text.len());
        Place {
            line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
            column: u32::try_from(span.start.col() + 1).unwrap_or(u32::MAX),
            span: offset(span.start.index())..offset(span.end.index()),
            set_by: None,
        }
    }

    fn problem(&self, place: &Place, message: String) -> Problem {
        let path: Vec<String> = self
            .open
            .iter()
            .filter_map(|open| match open {
                Open::Map { key: Some(key), .. } => Some(shortened(&key.text)),
                _ => None,
            })
            .take(8)
            .collect();
        Problem {
            file: self.file.map(Path::to_path_buf),
            line: place.line,
            column: place.column,
            path: path.join("."),
            message,
        }
    }
}

/// Size of a tree.
struct Size {
    nodes: usize,
    /// Of keys and values.
    bytes: usize,
    depth: usize,
}

impl Size {
    fn of(node: &Node) -> Self {
        let mut size = Self {
            nodes: 1,
            bytes: 0,
            depth: 1,
        };
        match &node.value {
            Value::Scalar(scalar) => size.bytes = scalar.text.len(),
            Value::List(items) => items.iter().for_each(|item| size.add(item, 0)),
            Value::Map(entries) => {
                for entry in entries {
                    size.add(&entry.value, entry.key.len());
                }
            }
        }
        size
    }

    fn add(&mut self, child: &Node, key: usize) {
        let child = Self::of(child);
        self.nodes += child.nodes;
        self.bytes += child.bytes + key;
        self.depth = self.depth.max(child.depth + 1);
    }
}
