//! Route conditions: a tree of tests on headers, key and partition, evaluated by the routing index.

/// A condition on one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// True if all hold; true if empty.
    All(Vec<Predicate>),
    /// True if at least one holds; false if empty (specs reject an empty list).
    Any(Vec<Predicate>),
    /// True if the inner condition does not hold.
    Not(Box<Predicate>),
    /// True if any value of the header passes the test.
    Header {
        /// The header's name, compared exactly.
        name: String,
        /// The test.
        test: Test,
    },
    /// True if the key passes the test; a null key passes only `Exists(false)`.
    Key(Test),
    /// True if the partition number passes the test.
    Partition(PartitionTest),
}

impl Predicate {
    /// Maximum nesting of `all`, `any` and `not` in a spec.
    pub const MAX_DEPTH: usize = 16;
    /// Maximum number of tests and branches in a spec's `when`.
    pub const MAX_NODES: usize = 1024;

    /// Always true: the default of a route without `when`.
    pub fn always() -> Self {
        Self::All(Vec::new())
    }
}

/// A test on the bytes of a key or of one header value.
///
/// `Equals`, `In`, `Prefix` and `Suffix` compare bytes. `Regex` and the numeric tests require UTF-8 and are false for other
/// bytes. A null header value passes only `Exists(true)`, a null key only `Exists(false)`.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// The same bytes.
    Equals(Vec<u8>),
    /// The same bytes as one of these; never empty.
    In(Vec<Vec<u8>>),
    /// `true`: the header is present (or the key is not null); `false`: the opposite.
    Exists(bool),
    /// Starts with these bytes.
    Prefix(Vec<u8>),
    /// Ends with these bytes.
    Suffix(Vec<u8>),
    /// Matches anywhere (`^…$` matches the whole); Rust `regex` syntax, known to compile.
    Regex(String),
    /// A decimal number less than this.
    Lt(f64),
    /// A decimal number less than or equal to this.
    Le(f64),
    /// A decimal number greater than this.
    Gt(f64),
    /// A decimal number greater than or equal to this.
    Ge(f64),
}

/// A test on the partition number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionTest {
    /// Equal to this.
    Equals(i32),
    /// One of these; never empty.
    In(Vec<i32>),
    /// Less than.
    Lt(i32),
    /// Less than or equal to.
    Le(i32),
    /// Greater than.
    Gt(i32),
    /// Greater than or equal to.
    Ge(i32),
}
