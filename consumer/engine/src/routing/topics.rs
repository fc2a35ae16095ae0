//! Topic patterns: which routes a topic name can reach, and which topics patterns exclude.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use regex::Regex;
use sluicegate_config::spec::{TopicPattern, dead_letter_source, is_internal_topic};

use super::index::RoutingIndex;
use crate::dispatch::HandlerIx;

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
    exact: HashMap<String, Vec<u32>>,
    patterns: Vec<(Regex, Vec<u32>)>,
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
    fn left_out(&self, topic: &str) -> Option<LeftOut> {
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
    fn fitting(&self, topic: &str) -> impl Iterator<Item = u32> {
        self.patterns
            .iter()
            .filter(move |(regex, _)| regex.is_match(topic))
            .flat_map(|(_, routes)| routes.iter().copied())
    }
}

/// The topics that routes read from a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Names to subscribe to: every exact name, whether or not it exists, and the names that patterns match.
    pub topics: BTreeSet<String>,
    /// Topics of the cluster that patterns match.
    pub taken_in: BTreeSet<String>,
    /// Topics of the cluster that fit a pattern but are excluded.
    pub left_out: BTreeMap<String, LeftOut>,
}

impl RoutingIndex {
    /// What to read from a cluster that has `topics`.
    ///
    /// The client gets names and no patterns: its own matching supports no exclusions and uses other regexes than ours,
    /// and a subscribed topic is assigned and fetched whether or not a route reads it.
    pub fn subscription<'t>(&self, topics: impl IntoIterator<Item = &'t str>) -> Subscription {
        let table = &self.topics;
        let mut subscription = Subscription {
            topics: table.exact.keys().cloned().collect(),
            ..Subscription::default()
        };
        if table.patterns.is_empty() {
            return subscription;
        }
        for topic in topics {
            if table.fitting(topic).next().is_none() {
                continue;
            }
            match table.left_out(topic) {
                Some(reason) => {
                    subscription.left_out.insert(topic.to_owned(), reason);
                }
                None => {
                    subscription.taken_in.insert(topic.to_owned());
                    subscription.topics.insert(topic.to_owned());
                }
            }
        }
        subscription
    }

    /// Whether a route has a glob or a regex, so that the subscription depends on the cluster's topics.
    pub fn has_patterns(&self) -> bool {
        !self.topics.patterns.is_empty()
    }

    /// The globs and regexes of routes, as regexes.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.topics.patterns.iter().map(|(regex, _)| regex.as_str())
    }

    /// The exact names of routes, with their handlers.
    pub fn exact_topics(&self) -> impl Iterator<Item = (&str, Vec<HandlerIx>)> {
        self.topics
            .exact
            .iter()
            .map(|(topic, routes)| (topic.as_str(), self.handlers_of(routes)))
    }

    /// The handlers whose routes name or match `topic`, ascending.
    pub fn handlers_for(&self, topic: &str) -> Vec<HandlerIx> {
        self.handlers_of(&self.topics.routes(topic))
    }

    fn handlers_of(&self, routes: &[u32]) -> Vec<HandlerIx> {
        let handlers = routes
            .iter()
            .map(|&route| self.routes[route as usize].handler);
        let mut handlers: Vec<HandlerIx> = handlers.collect();
        handlers.sort_unstable();
        handlers.dedup();
        handlers
    }
}
