//! Topic patterns: what a topic name matches, and what the Kafka client is told to subscribe to.

use std::collections::{BTreeSet, HashMap};

use regex::Regex;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};
use sluicegate_config::spec::TopicPattern;

/// Which routes a topic name can reach.
#[derive(Default)]
pub(super) struct TopicTable {
    exact: HashMap<String, Vec<u32>>,
    patterns: Vec<(Regex, Vec<u32>)>,
    numbers: HashMap<String, usize>,
    /// What dead-letter topics begin and end with.
    dead_letters: BTreeSet<(String, String)>,
}

impl TopicTable {
    /// A table whose patterns match no dead-letter topic.
    pub(super) fn apart_from<'t>(dead_letters: impl IntoIterator<Item = &'t str>) -> Self {
        let ends = |template: &'t str| {
            let (begin, rest) = template
                .split_once("{topic}")
                .unwrap_or((template, template));
            let end = rest.rsplit_once("{topic}").map_or(rest, |(_, end)| end);
            (begin.to_owned(), end.to_owned())
        };
        Self {
            dead_letters: dead_letters
                .into_iter()
                .map(ends)
                .filter(|(begin, end)| !begin.is_empty() || !end.is_empty())
                .collect(),
            ..Self::default()
        }
    }

    fn is_dead_letter(&self, topic: &str) -> bool {
        self.dead_letters
            .iter()
            .any(|(begin, end)| topic.starts_with(begin) && topic.ends_with(end))
    }

    /// Adds a pattern of `route`.
    ///
    /// # Errors
    /// The reason why a regex does not compile.
    pub(super) fn add(&mut self, pattern: &TopicPattern, route: u32) -> Result<(), String> {
        let text = match pattern {
            TopicPattern::Exact(name) => {
                self.exact.entry(name.clone()).or_default().push(route);
                return Ok(());
            }
            other => other.to_regex(),
        };
        let number = match self.numbers.get(&text) {
            Some(&number) => number,
            None => {
                let regex = Regex::new(&text).map_err(|e| e.to_string())?;
                self.patterns.push((regex, Vec::new()));
                self.numbers.insert(text, self.patterns.len() - 1);
                self.patterns.len() - 1
            }
        };
        self.patterns[number].1.push(route);
        Ok(())
    }

    /// The routes of `topic`, ascending, without repeats.
    pub(super) fn routes(&self, topic: &str) -> Vec<u32> {
        let mut routes = self.exact.get(topic).cloned().unwrap_or_default();
        for (regex, of_pattern) in &self.patterns {
            if self.is_dead_letter(topic) {
                break;
            }
            if regex.is_match(topic) {
                routes.extend_from_slice(of_pattern);
            }
        }
        routes.sort_unstable();
        routes.dedup();
        routes
    }
}

/// The subscription that covers `patterns`: topic names, and patterns that begin with `^` in the syntax that
/// librdkafka (POSIX extended) and brokers (RE2) share, written so that searching and whole matching agree.
///
/// A pattern may cover more topics than its regex (word boundaries are left out), never fewer.
///
/// # Errors
/// A regex that does not parse, with the reason; validated specs hold none.
pub fn subscription<'a>(
    patterns: impl IntoIterator<Item = &'a TopicPattern>,
) -> Result<Vec<String>, String> {
    let mut entries = BTreeSet::new();
    for pattern in patterns {
        entries.insert(match pattern {
            TopicPattern::Exact(name) => name.clone(),
            other => extended_regex(&other.to_regex())?,
        });
    }
    Ok(entries.into_iter().collect())
}

/// Characters that a topic name can have.
fn topic_characters() -> impl Iterator<Item = char> {
    (' '..='~').filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// Matches no character of a topic name.
const NEVER: &str = "[^A-Za-z0-9._-]";

fn extended_regex(pattern: &str) -> Result<String, String> {
    let hir = regex_syntax::parse(pattern).map_err(|e| e.to_string())?;
    let from_start = hir.properties().look_set_prefix().contains(Look::Start);
    let to_end = hir.properties().look_set_suffix().contains(Look::End);
    let mut out = String::from(if from_start { "^" } else { "^.*" });
    match hir.kind() {
        HirKind::Concat(parts) => {
            let first = usize::from(*parts[0].kind() == HirKind::Look(Look::Start));
            let last = parts.len()
                - usize::from(*parts[parts.len() - 1].kind() == HirKind::Look(Look::End));
            parts[first..last.max(first)]
                .iter()
                .for_each(|part| write_grouped(part, &mut out));
        }
        _ => write_grouped(&hir, &mut out),
    }
    out.push_str(if to_end { "$" } else { ".*$" });
    Ok(out)
}

fn write_hir(hir: &Hir, out: &mut String) {
    match hir.kind() {
        HirKind::Empty => out.push_str("()"),
        HirKind::Literal(literal) => match str::from_utf8(&literal.0) {
            Ok(text) => text.chars().for_each(|c| write_character(c, out)),
            Err(_) => out.push_str(NEVER),
        },
        HirKind::Class(class) => write_class(class, out),
        HirKind::Look(Look::Start | Look::StartLF | Look::StartCRLF) => out.push('^'),
        HirKind::Look(Look::End | Look::EndLF | Look::EndCRLF) => out.push('$'),
        HirKind::Look(_) => out.push_str("()"),
        HirKind::Repetition(repetition) => write_repetition(repetition, out),
        HirKind::Capture(capture) => write_hir_in_parentheses(&capture.sub, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| write_grouped(part, out)),
        HirKind::Alternation(branches) => {
            for (i, branch) in branches.iter().enumerate() {
                if i > 0 {
                    out.push('|');
                }
                write_hir(branch, out);
            }
        }
    }
}

/// Writes `hir` so that it can stand next to others.
fn write_grouped(hir: &Hir, out: &mut String) {
    match hir.kind() {
        HirKind::Alternation(_) => write_hir_in_parentheses(hir, out),
        _ => write_hir(hir, out),
    }
}

fn write_hir_in_parentheses(hir: &Hir, out: &mut String) {
    out.push('(');
    write_hir(hir, out);
    out.push(')');
}

fn write_repetition(repetition: &Repetition, out: &mut String) {
    match repetition.sub.kind() {
        HirKind::Class(_) => write_hir(&repetition.sub, out),
        _ => write_hir_in_parentheses(&repetition.sub, out),
    }
    match (repetition.min, repetition.max) {
        (0, None) => out.push('*'),
        (1, None) => out.push('+'),
        (0, Some(1)) => out.push('?'),
        (min, None) => out.push_str(&format!("{{{min},}}")),
        (min, Some(max)) => out.push_str(&format!("{{{min},{max}}}")),
    }
}

fn write_character(c: char, out: &mut String) {
    match c {
        '.' => out.push_str("[.]"),
        c if topic_characters().any(|legal| legal == c) => out.push(c),
        _ => out.push_str(NEVER),
    }
}

fn write_class(class: &Class, out: &mut String) {
    let holds = |c: char| match class {
        Class::Unicode(class) => class
            .iter()
            .any(|range| (range.start()..=range.end()).contains(&c)),
        Class::Bytes(class) => class
            .iter()
            .any(|range| (range.start()..=range.end()).contains(&(c as u8))),
    };
    let members: Vec<char> = topic_characters().filter(|&c| holds(c)).collect();
    match members.as_slice() {
        [] => out.push_str(NEVER),
        all if all.len() == topic_characters().count() => out.push('.'),
        some => {
            out.push('[');
            write_members(some, out);
            out.push(']');
        }
    }
}

/// Writes what stands between brackets for `members`, which are ascending.
fn write_members(members: &[char], out: &mut String) {
    // A hyphen stands for itself only at the end.
    let others: Vec<char> = members.iter().copied().filter(|&c| c != '-').collect();
    for run in others.chunk_by(|a, b| *a as u32 + 1 == *b as u32) {
        match run {
            [first, _, .., last] => out.extend([*first, '-', *last]),
            few => out.extend(few),
        }
    }
    if others.len() < members.len() {
        out.push('-');
    }
}

#[cfg(test)]
mod dead_letter_tests {
    use super::*;

    #[test]
    fn patterns_leave_dead_letter_topics_to_exact_names() {
        let mut table = TopicTable::apart_from(["{topic}.dlt", "given-up"]);
        table.add(&TopicPattern::Glob("*".into()), 0).unwrap();
        table
            .add(&TopicPattern::Exact("orders.dlt".into()), 1)
            .unwrap();
        assert_eq!(table.routes("orders"), vec![0]);
        assert_eq!(table.routes("orders.dlt"), vec![1]);
        assert_eq!(table.routes("given-up"), Vec::<u32>::new());
        assert_eq!(table.routes("given-up-later"), vec![0]);
    }
}
