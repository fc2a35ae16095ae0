//! Predicates as trees over numbered atoms, and which atoms a record must satisfy before a tree is worth evaluating.

use std::collections::HashMap;

use sluicegate_config::spec::{PartitionTest, Predicate, Test};

/// Number of a distinct test of a distinct field.
pub(super) type AtomIx = u32;

/// What an atom tests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Header(Box<str>),
    Key,
    Partition,
}

/// The test of an atom; `exists: false` is the negation of [`AtomTest::Exists`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AtomTest {
    Exists,
    /// One of these values; sorted, without duplicates. A partition number is stored as its little-endian bytes.
    In(Box<[Box<[u8]>]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Regex(Box<str>),
    /// Comparison with the number that has these bits.
    Number(Comparison, u64),
}

/// How a number is compared with a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Comparison {
    Lt,
    Le,
    Gt,
    Ge,
}

/// A predicate over atoms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Atom(AtomIx),
    Not(Box<Node>),
    All(Box<[Node]>),
    Any(Box<[Node]>),
}

impl Node {
    /// Whether it holds if exactly the atoms with `truth(atom)` are true.
    pub(super) fn holds(&self, truth: &impl Fn(AtomIx) -> bool) -> bool {
        match self {
            Self::Atom(atom) => truth(*atom),
            Self::Not(child) => !child.holds(truth),
            Self::All(children) => children.iter().all(|child| child.holds(truth)),
            Self::Any(children) => children.iter().any(|child| child.holds(truth)),
        }
    }

    /// `Some` if it holds for every record or for none.
    pub(super) fn constant(&self) -> Option<bool> {
        match self {
            Self::All(children) if children.is_empty() => Some(true),
            Self::Any(children) if children.is_empty() => Some(false),
            _ => None,
        }
    }

    /// Visits every atom in it, with duplicates.
    pub(super) fn atoms(&self, visit: &mut impl FnMut(AtomIx)) {
        match self {
            Self::Atom(atom) => visit(*atom),
            Self::Not(child) => child.atoms(visit),
            Self::All(children) | Self::Any(children) => {
                children.iter().for_each(|child| child.atoms(visit));
            }
        }
    }

    fn all(children: Vec<Self>) -> Self {
        if children.iter().any(|c| c.constant() == Some(false)) {
            return Self::Any(Box::default());
        }
        collapse(children, true, Self::All)
    }

    fn any(children: Vec<Self>) -> Self {
        if children.iter().any(|c| c.constant() == Some(true)) {
            return Self::All(Box::default());
        }
        collapse(children, false, Self::Any)
    }

    fn negated(self) -> Self {
        match (self.constant(), self) {
            (Some(true), _) => Self::Any(Box::default()),
            (Some(false), _) => Self::All(Box::default()),
            (None, Self::Not(child)) => *child,
            (None, node) => Self::Not(Box::new(node)),
        }
    }
}

/// Drops the children that are constantly `neutral`; a single remaining child replaces the node.
fn collapse(mut children: Vec<Node>, neutral: bool, make: fn(Box<[Node]>) -> Node) -> Node {
    children.retain(|child| child.constant() != Some(neutral));
    match children.len() {
        1 => children.remove(0),
        _ => make(children.into()),
    }
}

/// Numbers each distinct subject and atom.
#[derive(Default)]
pub(super) struct AtomTable {
    subjects: HashMap<Subject, u32>,
    by_test: HashMap<(u32, AtomTest), AtomIx>,
    /// Field and test of each atom.
    pub(super) atoms: Vec<(u32, AtomTest)>,
    /// How often trees contain each atom.
    pub(super) uses: Vec<u32>,
    /// Subject of each field.
    pub(super) fields: Vec<Subject>,
}

impl AtomTable {
    /// The tree of `predicate`; numbers new atoms.
    pub(super) fn tree(&mut self, predicate: &Predicate) -> Node {
        match predicate {
            Predicate::All(children) => Node::all(self.trees(children)),
            Predicate::Any(children) => Node::any(self.trees(children)),
            Predicate::Not(child) => self.tree(child).negated(),
            Predicate::Header { name, test } => {
                let subject = Subject::Header(name.as_str().into());
                self.value_atom(subject, test)
            }
            Predicate::Key(test) => self.value_atom(Subject::Key, test),
            Predicate::Partition(test) => self.partition_atom(test),
        }
    }

    fn trees(&mut self, predicates: &[Predicate]) -> Vec<Node> {
        predicates.iter().map(|one| self.tree(one)).collect()
    }

    fn value_atom(&mut self, subject: Subject, test: &Test) -> Node {
        let test = match test {
            Test::Exists(wanted) => {
                let atom = self.atom(subject, AtomTest::Exists);
                return if *wanted { atom } else { atom.negated() };
            }
            Test::Equals(value) => one_of([value.as_slice()]),
            Test::In(values) => one_of(values.iter().map(Vec::as_slice)),
            Test::Prefix(prefix) => AtomTest::Prefix(prefix.as_slice().into()),
            Test::Suffix(suffix) => AtomTest::Suffix(suffix.as_slice().into()),
            Test::Regex(pattern) => AtomTest::Regex(pattern.as_str().into()),
            Test::Lt(bound) => return self.number_atom(subject, Comparison::Lt, *bound),
            Test::Le(bound) => return self.number_atom(subject, Comparison::Le, *bound),
            Test::Gt(bound) => return self.number_atom(subject, Comparison::Gt, *bound),
            Test::Ge(bound) => return self.number_atom(subject, Comparison::Ge, *bound),
        };
        self.atom(subject, test)
    }

    fn partition_atom(&mut self, test: &PartitionTest) -> Node {
        let (comparison, bound) = match test {
            PartitionTest::Equals(n) => {
                return self.atom(Subject::Partition, one_of([n.to_le_bytes().as_slice()]));
            }
            PartitionTest::In(numbers) => {
                let bytes: Vec<_> = numbers.iter().map(|n| n.to_le_bytes()).collect();
                let test = one_of(bytes.iter().map(<[u8; 4]>::as_slice));
                return self.atom(Subject::Partition, test);
            }
            PartitionTest::Lt(bound) => (Comparison::Lt, bound),
            PartitionTest::Le(bound) => (Comparison::Le, bound),
            PartitionTest::Gt(bound) => (Comparison::Gt, bound),
            PartitionTest::Ge(bound) => (Comparison::Ge, bound),
        };
        self.number_atom(Subject::Partition, comparison, f64::from(*bound))
    }

    fn number_atom(&mut self, subject: Subject, comparison: Comparison, bound: f64) -> Node {
        if bound.is_nan() {
            return Node::Any(Box::default());
        }
        // 0.0 and -0.0 are the same bound.
        let bits = if bound == 0.0 { 0 } else { bound.to_bits() };
        self.atom(subject, AtomTest::Number(comparison, bits))
    }

    fn atom(&mut self, subject: Subject, test: AtomTest) -> Node {
        if matches!(&test, AtomTest::In(values) if values.is_empty()) {
            return Node::Any(Box::default());
        }
        let field = *self.subjects.entry(subject).or_insert_with_key(|subject| {
            self.fields.push(subject.clone());
            (self.fields.len() - 1) as u32
        });
        let atom = *self.by_test.entry((field, test)).or_insert_with_key(|key| {
            self.atoms.push(key.clone());
            self.uses.push(0);
            (self.atoms.len() - 1) as AtomIx
        });
        self.uses[atom as usize] += 1;
        Node::Atom(atom)
    }

    /// Estimate of how many records satisfy an atom, by its kind and its number of uses.
    fn cost(&self, atom: AtomIx) -> u64 {
        let by_kind = match self.atoms[atom as usize].1 {
            AtomTest::In(_) => 1,
            AtomTest::Prefix(_) | AtomTest::Suffix(_) | AtomTest::Regex(_) => 8,
            AtomTest::Number(..) => 64,
            AtomTest::Exists => 128,
        };
        by_kind * u64::from(self.uses[atom as usize])
    }

    /// The cheapest set of atoms of which at least one is true whenever `node` holds; `None` if it can hold with all
    /// atoms false.
    pub(super) fn access(&self, node: &Node) -> Option<Vec<AtomIx>> {
        self.needed(node, true).map(|(_, mut atoms)| {
            atoms.sort_unstable();
            atoms.dedup();
            atoms
        })
    }

    /// As [`AtomTable::access`], for `node` having the value `value`, with the cost.
    fn needed(&self, node: &Node, value: bool) -> Option<(u64, Vec<AtomIx>)> {
        match (node, value) {
            (Node::Atom(atom), true) => Some((self.cost(*atom), vec![*atom])),
            (Node::Atom(_), false) => None,
            (Node::Not(child), value) => self.needed(child, !value),
            (Node::All(children), true) | (Node::Any(children), false) => children
                .iter()
                .filter_map(|child| self.needed(child, value))
                .min_by_key(|(cost, _)| *cost),
            (Node::Any(children), true) | (Node::All(children), false) => children
                .iter()
                .map(|child| self.needed(child, value))
                .try_fold((0, Vec::new()), |(sum, mut atoms), child| {
                    let (cost, more) = child?;
                    atoms.extend(more);
                    Some((sum + cost, atoms))
                }),
        }
    }
}

fn one_of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> AtomTest {
    let mut values: Vec<Box<[u8]>> = values.into_iter().map(Into::into).collect();
    values.sort_unstable();
    values.dedup();
    AtomTest::In(values.into())
}
