//! The condition of a route: a tree of atoms on headers, key and partition. Evaluated by the service's routing index.

/// A condition on one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Holds if all hold; empty is always true.
    All(Vec<Predicate>),
    /// Holds if at least one holds; empty is never true (and is refused in specs).
    Any(Vec<Predicate>),
    /// Holds if the other does not.
    Not(Box<Predicate>),
    /// Holds if any value of the header passes the test.
    Header {
        /// The header's name, compared exactly.
        name: String,
        /// The test.
        test: Test,
    },
    /// Holds if the key passes the test; a null key passes only `Exists(false)`.
    Key(Test),
    /// Holds if the partition number passes the test.
    Partition(PartitionTest),
}

impl Predicate {
    /// Deepest nesting of `all`, `any` and `not` that a spec may have.
    pub const MAX_DEPTH: usize = 16;
    /// Most atoms and branches that a spec's `when` may have.
    pub const MAX_NODES: usize = 1024;

    /// Always true: what a route without `when` has.
    pub fn always() -> Self {
        Self::All(Vec::new())
    }
}

/// A test on the bytes of a key or of one header value.
///
/// `Equals`, `In`, `Prefix` and `Suffix` compare bytes. `Regex` and the numeric tests need UTF-8 text and are false
/// for anything else. A null value passes only `Exists` (of the header's presence; of a key, `Exists(false)`).
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// The same bytes.
    Equals(Vec<u8>),
    /// The same bytes as one of these; never empty.
    In(Vec<Vec<u8>>),
    /// `true`: there is such a header (or a key that is not null); `false`: there is none.
    Exists(bool),
    /// Begins with.
    Prefix(Vec<u8>),
    /// Ends with.
    Suffix(Vec<u8>),
    /// Matches somewhere (write `^…$` for the whole); Rust `regex` syntax, known to compile.
    Regex(String),
    /// Is a decimal number less than this.
    Lt(f64),
    /// Is a decimal number less than or equal to this.
    Le(f64),
    /// Is a decimal number greater than this.
    Gt(f64),
    /// Is a decimal number greater than or equal to this.
    Ge(f64),
}

/// A test on the partition number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionTest {
    /// This one.
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
