//! Topic patterns: which routes a topic name can reach, and which topics patterns exclude.

use std::collections::{HashMap, HashSet};

use regex::Regex;
use sluicegate_config::spec::{TopicPattern, dead_letter_source, is_internal_topic};

/// Why globs and regexes do not match a topic that fits them. An exact name still matches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// Kafka or a tool keeps its own state there: when reading `__consumer_offsets`, each commit would produce a record
    /// to commit.
    Internal,
    /// It is a dead-letter topic of some handler: a dead-lettered record must not be routed back to the handler that
    /// dead-lettered it.
    DeadLetter,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Internal => "internal topic",
            Self::DeadLetter => "dead-letter topic",
        })
    }
}

/// Which routes a topic name can reach.
#[derive(Default)]
pub(super) struct TopicTable {
    pub(super) exact: HashMap<String, Vec<u32>>,
    pub(super) patterns: Vec<(Regex, Vec<u32>)>,
    numbers: HashMap<String, usize>,
    /// Dead-letter topics with a fixed name.
    dead_letters: HashSet<String>,
    /// Dead-letter topics that are named after their source.
    templates: HashSet<String>,
}

impl TopicTable {
    /// A table whose patterns match no dead-letter topic; `{topic}` in one stands for any topic.
    pub(super) fn apart_from<'t>(dead_letters: impl IntoIterator<Item = &'t str>) -> Self {
        let (templates, dead_letters) = dead_letters
            .into_iter()
            .map(str::to_owned)
            .partition(|template| template.contains("{topic}"));
        Self {
            dead_letters,
            templates,
            ..Self::default()
        }
    }

    /// Why patterns exclude `topic`, if they do.
    pub(super) fn left_out(&self, topic: &str) -> Option<LeftOut> {
        if is_internal_topic(topic) {
            return Some(LeftOut::Internal);
        }
        let named_after = |template: &String| dead_letter_source(template, topic).is_some();
        let dead_letter =
            self.dead_letters.contains(topic) || self.templates.iter().any(named_after);
        dead_letter.then_some(LeftOut::DeadLetter)
    }

    /// Adds a pattern of `route`.
    ///
    /// # Errors
    /// Why a regex does not compile.
    pub(super) fn add(&mut self, pattern: &TopicPattern, route: u32) -> Result<(), regex::Error> {
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
                let regex = Regex::new(&text)?;
                self.patterns.push((regex, Vec::new()));
                self.numbers.insert(text, self.patterns.len() - 1);
                self.patterns.len() - 1
            }
        };
        self.patterns[number].1.push(route);
        Ok(())
    }

    /// The routes of `topic`, ascending, without duplicates.
    pub(super) fn routes(&self, topic: &str) -> Vec<u32> {
        let mut routes = self.exact.get(topic).cloned().unwrap_or_default();
        if !self.patterns.is_empty() && self.left_out(topic).is_none() {
            routes.extend(self.fitting(topic));
        }
        routes.sort_unstable();
        routes.dedup();
        routes
    }

    /// The routes whose globs and regexes fit `topic`, whatever kind of topic it is.
    pub(super) fn fitting(&self, topic: &str) -> impl Iterator<Item = u32> {
        self.patterns
            .iter()
            .filter(move |(regex, _)| regex.is_match(topic))
            .flat_map(|(_, routes)| routes.iter().copied())
    }
}
