//! What is wrong with a document: all of it at once, each with its place and what to do.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::escape::Escaping;

/// Most problems of which each is kept; the others are counted.
const MAX_PROBLEMS: usize = 100;
/// Longest path and message of a problem, in bytes: both can quote the text that they are about.
const MAX_PATH: usize = 300;
const MAX_MESSAGE: usize = 2_000;

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

/// The mistakes that were found, sorted by file, line and column. Displays one line per problem.
///
/// At most 100 are kept, so that what a bad text costs is bounded; the others are counted, and the last line says
/// how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    found: Vec<Problem>,
    /// Those beyond the bound.
    omitted: usize,
}

impl Problems {
    /// None found.
    pub fn new() -> Self {
        Self::default()
    }

    /// A single problem with a whole file (or with no file at all).
    pub fn of_file(file: Option<&Path>, message: impl Into<String>) -> Self {
        let mut problems = Self::new();
        problems.push(Problem::of_whole(file, message.into()));
        problems
    }

    /// Adds one, keeping the order; the same problem twice counts once. Beyond the bound it is only counted.
    pub fn push(&mut self, mut problem: Problem) {
        if self.is_full() {
            self.omitted += 1;
            return;
        }
        shorten(&mut problem.path, MAX_PATH);
        shorten(&mut problem.message, MAX_MESSAGE);
        if let Err(at) = self.found.binary_search(&problem) {
            self.found.insert(at, problem);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: Problems) {
        self.omitted += other.omitted;
        for problem in other.found {
            self.push(problem);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether further problems are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= MAX_PROBLEMS
    }

    /// How many there are, those that are only counted included.
    pub fn len(&self) -> usize {
        self.found.len() + self.omitted
    }

    /// Those that are kept, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.found.iter()
    }

    /// What stands for those that are only counted.
    fn remainder(&self) -> Option<Problem> {
        (self.omitted > 0).then(|| Problem::of_whole(None, format!("and {} more", self.omitted)))
    }
}

impl Problem {
    /// A problem with a whole file, or with no file at all.
    fn of_whole(file: Option<&Path>, message: String) -> Self {
        Self {
            file: file.map(Path::to_path_buf),
            line: 0,
            column: 0,
            path: String::new(),
            message,
        }
    }
}

/// Cuts `text` to `longest` bytes and says so by `…`.
fn shorten(text: &mut String, longest: usize) {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
        text.push('…');
        text.shrink_to_fit();
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
        let remainder = self.remainder();
        for (index, problem) in self.found.iter().chain(&remainder).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A list; what is only counted is its last entry.
impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let remainder = self.remainder();
        let all = self.found.iter().chain(&remainder);
        let mut list =
            serializer.serialize_seq(Some(self.found.len() + usize::from(remainder.is_some())))?;
        for problem in all {
            list.serialize_element(problem)?;
        }
        list.end()
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
