//! Parses the `when` tree of a route.

use super::rules::RegexBudget;
use super::{PartitionTest, Predicate, Test};
use crate::document::{Checker, Entry, Node, Plain, Scalar, Value, did_you_mean, join, shortened};

/// Keys that name the subject of an object; each object has exactly one.
const SUBJECTS: [&str; 6] = ["all", "any", "not", "header", "key", "partition"];
const TESTS: [&str; 10] = [
    "equals", "in", "exists", "prefix", "suffix", "regex", "lt", "le", "gt", "ge",
];
const PARTITION_TESTS: [&str; 6] = ["equals", "in", "lt", "le", "gt", "ge"];
/// Maximum number of values in `in`.
const MAX_VALUES: usize = 10_000;

/// Parses the tree at `node`; `None` only if a problem was reported.
pub(super) fn read(
    node: &Node,
    path: &str,
    regexes: &mut RegexBudget,
    checker: &mut Checker<'_>,
) -> Option<Predicate> {
    let mut reader = Reader {
        checker,
        regexes,
        nodes: 0,
    };
    reader.predicate(node, path, 1)
}

struct Reader<'c, 'a> {
    checker: &'c mut Checker<'a>,
    regexes: &'c mut RegexBudget,
    nodes: usize,
}

impl Reader<'_, '_> {
    fn predicate(&mut self, node: &Node, path: &str, depth: usize) -> Option<Predicate> {
        self.nodes += 1;
        if depth > Predicate::MAX_DEPTH || self.nodes > Predicate::MAX_NODES {
            if depth > Predicate::MAX_DEPTH || self.nodes == Predicate::MAX_NODES + 1 {
                let (depth, nodes) = (Predicate::MAX_DEPTH, Predicate::MAX_NODES);
                let message =
                    format!("has more than {depth} levels or {nodes} conditions; simplify it");
                self.checker.report(&node.place, path, message);
            }
            return None;
        }
        let Value::Map(entries) = &node.value else {
            let hint = match &node.value {
                Value::List(_) => "; put the list under `all` or `any`",
                _ => "",
            };
            let message = format!(
                "expected a map such as {{ header: tenant, equals: acme }}, found {}{hint}",
                node.describe()
            );
            self.checker.report(&node.place, path, message);
            return None;
        };
        let subject = self.subject(node, entries, path)?;
        let below = join(path, &subject.key);
        match subject.key.as_str() {
            "all" => self.branches(subject, &below, depth).map(Predicate::All),
            "any" => self.branches(subject, &below, depth).map(Predicate::Any),
            "not" => {
                let inner = self.predicate(&subject.value, &below, depth + 1)?;
                Some(Predicate::Not(Box::new(inner)))
            }
            "header" => self.header(node, subject, entries, path),
            "key" => self.key(node, subject, entries, path),
            _ => self.partition(node, subject, entries, path),
        }
    }

    /// The entry that names the object's subject; reports entries that do not apply to it.
    fn subject<'e>(&mut self, node: &Node, entries: &'e [Entry], path: &str) -> Option<&'e Entry> {
        let subjects: Vec<&Entry> = entries
            .iter()
            .filter(|entry| SUBJECTS.contains(&entry.key.as_str()))
            .collect();
        let takes_tests = subjects
            .first()
            .is_some_and(|subject| !matches!(subject.key.as_str(), "all" | "any" | "not"));
        for entry in entries {
            let is_test = TESTS.contains(&entry.key.as_str());
            if SUBJECTS.contains(&entry.key.as_str()) || (is_test && takes_tests) {
                continue;
            }
            let shown = shortened(&entry.key);
            let message = match subjects.first() {
                _ if self.checker.is_full() => "is unknown".to_owned(),
                Some(subject) if is_test => {
                    format!("`{}` cannot be combined with `{}`", entry.key, subject.key)
                }
                None if is_test => {
                    format!(
                        "`{}` requires `header`, `key` or `partition` in the same condition",
                        entry.key
                    )
                }
                _ => {
                    let hint = did_you_mean(&entry.key, SUBJECTS.into_iter().chain(TESTS));
                    format!("`{shown}` is unknown{hint}")
                }
            };
            self.checker
                .report(&entry.key_place, &join(path, &shown), message);
        }
        match subjects.as_slice() {
            [subject] => Some(subject),
            [] => {
                if entries.is_empty() {
                    let message = format!("is empty; write one of {}", SUBJECTS.join(", "));
                    self.checker.report(&node.place, path, message);
                }
                None
            }
            [first, second, ..] => {
                let message = format!(
                    "has both `{}` and `{}`; list them under `all` or `any`",
                    second.key, first.key
                );
                self.checker.report(&second.key_place, path, message);
                None
            }
        }
    }

    fn branches(&mut self, subject: &Entry, path: &str, depth: usize) -> Option<Vec<Predicate>> {
        let Value::List(items) = &subject.value.value else {
            self.checker
                .refuse(&subject.value, "a list of conditions", path);
            return None;
        };
        if items.is_empty() {
            let message = "is empty; list at least one condition, or leave `when` out";
            self.checker.report(&subject.value.place, path, message);
            return None;
        }
        let read: Vec<Option<Predicate>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.predicate(item, &format!("{path}[{index}]"), depth + 1))
            .collect();
        read.into_iter().collect()
    }

    fn header(
        &mut self,
        node: &Node,
        subject: &Entry,
        entries: &[Entry],
        path: &str,
    ) -> Option<Predicate> {
        let name = match &subject.value.value {
            Value::Scalar(scalar) if !subject.value.is_null() && !scalar.text.is_empty() => {
                Some(scalar.text.clone())
            }
            _ => {
                self.checker
                    .refuse(&subject.value, "a header name", &join(path, "header"));
                None
            }
        };
        let tests = self.tests(node, entries, path);
        let name = name?;
        let atoms = tests?.into_iter().map(|test| Predicate::Header {
            name: name.clone(),
            test,
        });
        Some(one_or_all(atoms.collect()))
    }

    fn key(
        &mut self,
        node: &Node,
        subject: &Entry,
        entries: &[Entry],
        path: &str,
    ) -> Option<Predicate> {
        let marked = self.marker(subject, path);
        let tests = self.tests(node, entries, path);
        marked?;
        Some(one_or_all(tests?.into_iter().map(Predicate::Key).collect()))
    }

    /// `key` and `partition` have no name: their value is `true` or empty.
    fn marker(&mut self, subject: &Entry, path: &str) -> Option<()> {
        let is_true = matches!(&subject.value.value, Value::Scalar(scalar) if scalar.plain() == Plain::Flag(true));
        if is_true || subject.value.is_null() {
            return Some(());
        }
        let key = &subject.key;
        let message = format!(
            "expected true and a test in the same condition, such as {{ {key}: true, equals: 1 }}; found {}",
            subject.value.describe()
        );
        self.checker
            .report(&subject.value.place, &join(path, key), message);
        None
    }

    fn tests(&mut self, node: &Node, entries: &[Entry], path: &str) -> Option<Vec<Test>> {
        let given: Vec<&Entry> = entries
            .iter()
            .filter(|entry| TESTS.contains(&entry.key.as_str()))
            .collect();
        self.need_test(&given, &TESTS, node, entries, path)?;
        let read: Vec<Option<Test>> = given
            .iter()
            .map(|entry| self.test(entry, &join(path, &entry.key)))
            .collect();
        let tests: Vec<Test> = read.into_iter().collect::<Option<_>>()?;
        if tests.len() > 1 && tests.contains(&Test::Exists(false)) {
            let message = "is never true: `exists: false` contradicts the other test";
            self.checker.report(&node.place, path, message);
            return None;
        }
        Some(tests)
    }

    fn need_test(
        &mut self,
        given: &[&Entry],
        known: &[&str],
        node: &Node,
        entries: &[Entry],
        path: &str,
    ) -> Option<()> {
        if !given.is_empty() {
            return Some(());
        }
        // Other entries were already reported, with the nearest test's name.
        if entries.len() == 1 {
            let message = format!("has no test; add one of {}", known.join(", "));
            self.checker.report(&node.place, path, message);
        }
        None
    }

    fn test(&mut self, entry: &Entry, path: &str) -> Option<Test> {
        match entry.key.as_str() {
            "equals" => self.bytes(&entry.value, path).map(Test::Equals),
            "in" => self.list(&entry.value, path, Self::bytes).map(Test::In),
            "prefix" => self.bytes(&entry.value, path).map(Test::Prefix),
            "suffix" => self.bytes(&entry.value, path).map(Test::Suffix),
            "exists" => self.flag(&entry.value, path).map(Test::Exists),
            "regex" => self.regex(&entry.value, path).map(Test::Regex),
            "lt" => self.number(&entry.value, path).map(Test::Lt),
            "le" => self.number(&entry.value, path).map(Test::Le),
            "gt" => self.number(&entry.value, path).map(Test::Gt),
            _ => self.number(&entry.value, path).map(Test::Ge),
        }
    }

    fn partition(
        &mut self,
        node: &Node,
        subject: &Entry,
        entries: &[Entry],
        path: &str,
    ) -> Option<Predicate> {
        let marked = self.marker(subject, path);
        let given: Vec<&Entry> = entries
            .iter()
            .filter(|entry| TESTS.contains(&entry.key.as_str()))
            .collect();
        self.need_test(&given, &PARTITION_TESTS, node, entries, path)?;
        let read: Vec<Option<PartitionTest>> = given
            .iter()
            .map(|entry| self.partition_test(entry, &join(path, &entry.key)))
            .collect();
        marked?;
        let tests: Vec<PartitionTest> = read.into_iter().collect::<Option<_>>()?;
        Some(one_or_all(
            tests.into_iter().map(Predicate::Partition).collect(),
        ))
    }

    fn partition_test(&mut self, entry: &Entry, path: &str) -> Option<PartitionTest> {
        let value = &entry.value;
        match entry.key.as_str() {
            "equals" => self
                .partition_number(value, path)
                .map(PartitionTest::Equals),
            "in" => self
                .list(value, path, Self::partition_number)
                .map(PartitionTest::In),
            "lt" => self.partition_number(value, path).map(PartitionTest::Lt),
            "le" => self.partition_number(value, path).map(PartitionTest::Le),
            "gt" => self.partition_number(value, path).map(PartitionTest::Gt),
            "ge" => self.partition_number(value, path).map(PartitionTest::Ge),
            other => {
                let message = format!(
                    "`{other}` cannot be combined with `partition`; use {}",
                    PARTITION_TESTS.join(", ")
                );
                self.checker.report(&entry.key_place, path, message);
                None
            }
        }
    }

    fn list<T>(
        &mut self,
        node: &Node,
        path: &str,
        read: impl Fn(&mut Self, &Node, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = &node.value else {
            self.checker.refuse(node, "a list", path);
            return None;
        };
        if items.is_empty() || items.len() > MAX_VALUES {
            let message = format!("expected 1 to {MAX_VALUES} values, found {}", items.len());
            self.checker.report(&node.place, path, message);
            return None;
        }
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| read(self, item, &format!("{path}[{index}]")))
            .collect();
        read.into_iter().collect()
    }

    fn scalar<'n>(&mut self, node: &'n Node, expected: &str, path: &str) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(scalar) if !node.is_null() => Some(scalar),
            _ => {
                self.checker.refuse(node, expected, path);
                None
            }
        }
    }

    /// The bytes as written: numbers and booleans need no quotes.
    fn bytes(&mut self, node: &Node, path: &str) -> Option<Vec<u8>> {
        let scalar = self.scalar(node, "a value to compare with", path)?;
        Some(scalar.text.clone().into_bytes())
    }

    fn flag(&mut self, node: &Node, path: &str) -> Option<bool> {
        match self.scalar(node, "true or false", path)?.plain() {
            Plain::Flag(flag) => Some(flag),
            _ => {
                self.checker.refuse(node, "true or false", path);
                None
            }
        }
    }

    fn regex(&mut self, node: &Node, path: &str) -> Option<String> {
        let scalar = self.scalar(node, "a regex", path)?;
        match self.regexes.check(&scalar.text) {
            Ok(()) => Some(scalar.text.clone()),
            Err(error) => {
                self.checker.report(&node.place, path, error);
                None
            }
        }
    }

    fn number(&mut self, node: &Node, path: &str) -> Option<f64> {
        let number = match self.scalar(node, "a number", path)?.plain() {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a bound beyond 2^53 is compared as the nearest float"
            )]
            Plain::Integer(integer) => Some(integer as f64),
            Plain::Float(float) if float.is_finite() => Some(float),
            _ => None,
        };
        if number.is_none() {
            self.checker.refuse(node, "a finite number", path);
        }
        number
    }

    fn partition_number(&mut self, node: &Node, path: &str) -> Option<i32> {
        let number = match self.scalar(node, "a partition number", path)?.plain() {
            Plain::Integer(integer) => i32::try_from(integer).ok().filter(|number| *number >= 0),
            _ => None,
        };
        if number.is_none() {
            self.checker
                .refuse(node, "a partition number, 0 or more", path);
        }
        number
    }
}

/// Several tests in one object must all hold, each independently.
fn one_or_all(mut atoms: Vec<Predicate>) -> Predicate {
    match atoms.pop() {
        Some(only) if atoms.is_empty() => only,
        Some(last) => {
            atoms.push(last);
            Predicate::All(atoms)
        }
        None => Predicate::always(),
    }
}
