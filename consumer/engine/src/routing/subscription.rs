//! Which topics of a cluster routes read.

use std::collections::{BTreeMap, BTreeSet};

use super::index::RoutingIndex;
use super::topics::LeftOut;
use crate::dispatch::HandlerIx;

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
