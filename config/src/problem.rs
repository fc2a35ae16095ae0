//! Validation errors: all errors of a document at once, each with its position and remedy.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::escape::Escaping;

/// Maximum number of problems that are kept; further ones are only counted.
const MAX_PROBLEMS: usize = 100;
/// Maximum lengths of a problem's path and message in bytes: both can quote untrusted text.
const MAX_PATH: usize = 300;
const MAX_MESSAGE: usize = 2_000;

/// One error in a document, with its position and remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file or store key; `None` for input without a file, such as a command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Line, from 1; 0 for the whole document.
    pub line: u32,
    /// Column in characters, from 1; 0 for the whole document.
    pub column: u32,
    /// Dotted path of the field, such as `kafka.clients` or `route.topics[0]`; empty for the document itself.
    pub path: String,
    /// Cause and remedy.
    pub message: String,
}

/// Formats as a single line, whatever text it quotes.
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

/// The errors of a document, sorted by file, line and column. Displays one line per problem.
///
/// Keeps at most 100 problems, which bounds the cost of a bad text; the last line says how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    found: Vec<Problem>,
    /// Number of problems beyond the limit.
    omitted: usize,
}

impl Problems {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// A single problem about a whole file, or about input without a file.
    pub fn of_file(file: Option<&Path>, message: impl ToString) -> Self {
        let mut problems = Self::new();
        problems.push(Problem::of_whole(file, message.to_string()));
        problems
    }

    /// Inserts a problem in order; duplicates are ignored. Beyond the limit it is only counted.
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

    /// Adds all problems of `other`.
    pub fn merge(&mut self, other: Problems) {
        self.omitted += other.omitted;
        for problem in other.found {
            self.push(problem);
        }
    }

    /// Whether it is empty of problems.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether further problems are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= MAX_PROBLEMS
    }

    /// Number of problems, including those that are only counted.
    pub fn len(&self) -> usize {
        self.found.len() + self.omitted
    }

    /// The kept problems, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.found.iter()
    }

    /// A summary of the problems that are only counted.
    fn remainder(&self) -> Option<Problem> {
        (self.omitted > 0).then(|| Problem::of_whole(None, format!("and {} more", self.omitted)))
    }
}

impl Problem {
    /// A problem about a whole file, or about input without a file.
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

/// Truncates `text` to `longest` bytes and marks the cut with `…`.
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

/// Serialises as a list whose last entry summarises the problems that are only counted.
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
