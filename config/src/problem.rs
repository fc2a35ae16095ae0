//! What is wrong with a document: all of it at once, each with its place and what to do.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::escape::Escaping;

/// One mistake in a document, where it stands and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file or store key; `None` for what has no file, such as a command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Line, from 1; 0 when the whole document is meant.
    pub line: u32,
    /// Column in characters, from 1; 0 when the whole document is meant.
    pub column: u32,
    /// Dotted path of the field, such as `kafka.clients` or `route.topics[0]`; empty for the document itself.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// One line, whatever stands in the document.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Escaping(f);
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every mistake that was found, sorted by file, line and column. Displays one line a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    /// None found.
    pub fn new() -> Self {
        Self::default()
    }

    /// A single problem with a whole file (or with no file at all).
    pub fn of_file(file: Option<&Path>, message: impl Into<String>) -> Self {
        Self {
            found: vec![Problem {
                file: file.map(Path::to_path_buf),
                line: 0,
                column: 0,
                path: String::new(),
                message: message.into(),
            }],
        }
    }

    /// Adds one, keeping the order; the same problem twice counts once.
    pub fn push(&mut self, problem: Problem) {
        if let Err(at) = self.found.binary_search(&problem) {
            self.found.insert(at, problem);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: Problems) {
        self.found.extend(other.found);
        self.found.sort();
        self.found.dedup();
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// They, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.found.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        let mut problems = Self::new();
        problems.push(problem);
        problems
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.found.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.found.iter()
    }
}
