//! Dead-letter cycles: handlers whose dead letters come back, directly or through others, to the topic that they came from.
//!
//! Globs and regexes do not match dead-letter topics. Every topic of a cycle is therefore an exact name in a route, and cycles
//! follow from routes and templates alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{HandlerSpec, exact_names};

/// Maximum number of cycles searched for. Each is rejected, so that more would add nothing.
const MAX_CIRCLES: usize = 32;

/// A cycle of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circle {
    /// Each topic with the handlers whose dead letters of it go to the next topic; the last leads to the first.
    pub hops: Vec<(String, BTreeSet<String>)>,
}

impl Circle {
    /// The handlers in the cycle.
    pub fn handlers(&self) -> impl Iterator<Item = &str> {
        self.hops
            .iter()
            .flat_map(|(_, handlers)| handlers.iter().map(String::as_str))
    }
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (topic, handlers) in &self.hops {
            let handlers: Vec<String> = handlers.iter().map(|name| format!("`{name}`")).collect();
            write!(f, "{topic} -> {} -> ", handlers.join(" or "))?;
        }
        let first = self.hops.first().map_or("", |(topic, _)| topic.as_str());
        f.write_str(first)
    }
}

/// Dead-letter edges between exactly named topics: topic, next topic, handlers.
type Ways<'s> = BTreeMap<&'s str, BTreeMap<&'s str, BTreeSet<&'s str>>>;

/// The cycles of `specs`. Includes handlers with closed gates, since opening a gate must not close a cycle.
pub fn circles<'s>(specs: impl IntoIterator<Item = &'s HandlerSpec>) -> Vec<Circle> {
    let specs: Vec<&HandlerSpec> = specs.into_iter().collect();
    let read: BTreeSet<&str> = specs
        .iter()
        .flat_map(|spec| exact_names(&spec.route.topics))
        .collect();
    let mut ways: Ways<'_> = BTreeMap::new();
    for spec in &specs {
        for topic in exact_names(&spec.route.topics) {
            let target = spec.dead_letter.topic_for(topic);
            if let Some(&target) = read.get(target.as_str()) {
                let handlers = ways.entry(topic).or_default().entry(target).or_default();
                handlers.insert(&spec.name);
            }
        }
    }
    closed(&ways)
}

/// One cycle per back edge of a depth-first search; iterative, since a chain can be as long as the number of handlers.
fn closed(ways: &Ways<'_>) -> Vec<Circle> {
    let mut found = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for &start in ways.keys() {
        if !done.insert(start) {
            continue;
        }
        let mut path = vec![(start, targets(ways, start))];
        let mut places = BTreeMap::from([(start, 0)]);
        while let Some((here, next)) = path.last_mut() {
            let Some(topic) = next.pop() else {
                places.remove(here);
                path.pop();
                continue;
            };
            if let Some(&at) = places.get(topic) {
                let topics: Vec<&str> = path[at..].iter().map(|(topic, _)| *topic).collect();
                found.push(circle(ways, &topics));
                if found.len() == MAX_CIRCLES {
                    return found;
                }
            } else if done.insert(topic) {
                places.insert(topic, path.len());
                path.push((topic, targets(ways, topic)));
            }
        }
    }
    found
}

fn targets<'s>(ways: &Ways<'s>, topic: &str) -> Vec<&'s str> {
    let targets = ways.get(topic).into_iter().flatten();
    targets.map(|(target, _)| *target).collect()
}

fn circle(ways: &Ways<'_>, topics: &[&str]) -> Circle {
    let next = topics.iter().cycle().skip(1);
    let hops = topics.iter().zip(next).map(|(&topic, &target)| {
        let handlers = ways[topic][target].iter().map(|&name| name.to_owned());
        (topic.to_owned(), handlers.collect())
    });
    Circle {
        hops: hops.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TopicPattern, read_spec};
    use super::*;
    use crate::environment::Environment;

    fn specs(all: &[(&str, &str, &str)]) -> Vec<HandlerSpec> {
        all.iter()
            .map(|(name, topics, dead_letter)| {
                let text = format!(
                    "name: {name}\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: \"{dead_letter}\" }}\n"
                );
                read_spec(&text, None, &Environment::default()).expect("a valid spec")
            })
            .collect()
    }

    fn found(all: &[(&str, &str, &str)]) -> Vec<String> {
        circles(&specs(all))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_cycle_of_two_names_its_topics_and_handlers() {
        let all = [
            ("x", "a, y.dead", "x.dead"),
            ("y", "x.dead", "y.dead"),
            ("z", "y.dead", "z.dead"),
        ];
        assert_eq!(found(&all), ["x.dead -> `y` -> y.dead -> `x` -> x.dead"]);
        assert_eq!(
            circles(&specs(&all))[0].handlers().collect::<Vec<_>>(),
            ["y", "x"]
        );
    }

    #[test]
    fn templates_close_cycles_as_fixed_names_do() {
        let all = [
            ("x", "a", "{topic}.b"),
            ("y", "a.b", "a"),
            ("z", "a.b", "a"),
        ];
        assert_eq!(found(&all), ["a -> `x` -> a.b -> `y` or `z` -> a"]);
    }

    #[test]
    fn chains_diamonds_and_patterns_are_not_cycles() {
        for all in [
            &[
                ("x", "a", "{topic}.dlt"),
                ("y", "a.dlt", "{topic}.dlt"),
                ("z", "a.dlt.dlt", "{topic}.dlt"),
            ][..],
            &[
                ("w", "a", "b"),
                ("x", "a", "c"),
                ("y", "b, c", "d"),
                ("z", "d", "e"),
            ],
            // The glob does not match the dead-letter topics.
            &[("x", "\"*\"", "x.dead"), ("y", "x.dead", "y.dead")],
        ] {
            assert_eq!(found(all), [""; 0]);
        }
    }

    #[test]
    fn two_cycles_through_one_topic_are_both_found() {
        let all = [
            ("x", "hub", "left"),
            ("y", "hub", "right"),
            ("z", "left, right", "hub"),
        ];
        let found = found(&all);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found.iter().any(|circle| circle.contains("left"))
                && found.iter().any(|circle| circle.contains("right")),
            "{found:?}"
        );
    }

    #[test]
    fn a_long_chain_and_a_long_cycle_need_no_recursion() {
        let chain: Vec<HandlerSpec> = specs(&[("x", "t0", "t1")])
            .into_iter()
            .cycle()
            .take(20_000)
            .enumerate()
            .map(|(number, mut spec)| {
                spec.route.topics = vec![TopicPattern::Exact(format!("t{number}"))];
                spec.dead_letter.topic = format!("t{}", number + 1);
                spec
            })
            .collect();
        assert_eq!(circles(&chain), Vec::new());
        let mut ring = chain;
        ring[19_999].dead_letter.topic = "t0".to_owned();
        assert_eq!(circles(&ring)[0].hops.len(), 20_000);
    }
}
