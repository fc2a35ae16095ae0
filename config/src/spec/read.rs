//! Parses spec text into [`HandlerSpec`].

use std::path::Path;

use super::rules::{MAX_TOPIC, RegexBudget, parse_topic};
use super::table::RouteFields;
use super::{
    Backoff, DeadLetter, DeadLetterSource, HandlerConfig, HandlerSpec, Predicate, Retry, Route,
    TopicMatcher, TopicPattern, dead_letter_source, dead_letter_topic, exact_names, predicate_read,
};
use crate::document::{
    Checker, Document, Lookup, Node, Place, ReferenceError, Section, SectionFields, Trail, Value,
    parse, read_json_object, resolve_json, to_json,
};
use crate::environment::Environment;
use crate::problem::{Problem, Problems};

/// Parses one spec from YAML or JSON. Problems name `file`; `${file:…}` paths are resolved against its folder.
///
/// # Errors
/// All problems of the text.
pub fn read_spec(
    text: &str,
    file: Option<&Path>,
    environment: &Environment,
) -> Result<HandlerSpec, Problems> {
    read_located(text, file, environment).map(|located| located.spec)
}

/// A spec with the positions of its name, pool and dead-letter topic, for conflicts between specs.
pub struct LocatedSpec {
    /// The validated spec.
    pub spec: HandlerSpec,
    /// Position of the handler's name.
    pub name_place: Place,
    /// Position of the pool's name, or of the spec if it is left out.
    pub pool_place: Place,
    /// Position of the dead-letter topic, or of the spec if it is left out.
    pub dead_letter_place: Place,
}

/// Origin of a text and its reference policy.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// File or key that problems name.
    pub place: Option<&'a Path>,
    /// How references are resolved.
    pub lookup: Lookup<'a>,
}

/// As [`read_spec`], with positions.
pub fn read_located(
    text: &str,
    file: Option<&Path>,
    environment: &Environment,
) -> Result<LocatedSpec, Problems> {
    let origin = Origin {
        place: file,
        lookup: Lookup::Anything {
            environment,
            base: file.and_then(Path::parent).unwrap_or(Path::new("")),
        },
    };
    read_from(text, origin)
}

/// Parses the spec in `text`.
pub fn read_from(text: &str, origin: Origin<'_>) -> Result<LocatedSpec, Problems> {
    let parsed = parse(text, origin.place);
    let mut problems = parsed.problems;
    let Some(root) = parsed.root else {
        return Err(problems);
    };
    let mut checker = Checker::new(origin.place, HandlerSpec::TYPE);
    let document: Document<HandlerSpec> = Document::check(&root, &mut checker);
    let section = document.section();
    let spec = build(section, origin, &mut checker);
    problems.merge(checker.into_problems());
    match spec {
        Some(spec) if problems.is_empty() => Ok(LocatedSpec {
            spec,
            name_place: section.place_of(HandlerSpec::name).clone(),
            pool_place: section.place_of(HandlerSpec::pool).clone(),
            dead_letter_place: section
                .object(HandlerSpec::dead_letter)
                .map_or_else(Place::default, |inner| {
                    inner.place_of(DeadLetter::topic).clone()
                }),
        }),
        _ => Err(problems),
    }
}

/// Parses a handler's own config from a JSON object.
pub fn read_config(text: &str, origin: Origin<'_>) -> Result<HandlerConfig, Problems> {
    let problem = |(line, column), path: String, message| Problem {
        file: origin.place.map(Path::to_path_buf),
        line,
        column,
        path,
        message,
    };
    let mut problems = Problems::new();
    let declared = match read_json_object(text) {
        Ok(object) => serde_json::Value::Object(object),
        Err(error) => {
            problems.push(problem(error.position(), String::new(), error.to_string()));
            return Err(problems);
        }
    };
    let config = resolved(declared, &Trail::Root(""), origin, &mut |path, error| {
        problems.push(problem((0, 0), path.to_string(), error.to_string()));
    });
    match problems.is_empty() {
        true => Ok(config),
        false => Err(problems),
    }
}

/// `None` only if a problem was reported. All parts are parsed before the first `?`, so that every problem is reported.
fn build(
    section: Section<'_, HandlerSpec>,
    origin: Origin<'_>,
    checker: &mut Checker<'_>,
) -> Option<HandlerSpec> {
    let config = section.node(HandlerSpec::config);
    let config = config.and_then(|node| {
        let path = section.path_of(HandlerSpec::config);
        config_of(node, &path, origin, checker)
    });
    let route = section.object(HandlerSpec::route);
    let route = route.and_then(|route| read_route(route, checker));
    let retry = section.object(HandlerSpec::retry);
    let backoff = retry.and_then(|retry| retry.object(Retry::backoff));
    if let Some(backoff) = backoff {
        check_backoff(backoff, checker);
    }
    let dead_letter = section.object(HandlerSpec::dead_letter);
    if let (Some(route), Some(dead_letter)) = (&route, dead_letter)
        && let Some(template) = dead_letter.get(DeadLetter::topic)
    {
        let topics = &route.topics;
        let reasons = [loops(topics, &template), too_long(topics, &template)];
        for reason in reasons.into_iter().flatten() {
            dead_letter.report(DeadLetter::topic, reason, checker);
        }
    }
    HandlerSpec::read(section, route, config)
}

fn config_of(
    node: &Node,
    path: &str,
    origin: Origin<'_>,
    checker: &mut Checker<'_>,
) -> Option<HandlerConfig> {
    if !matches!(node.value, Value::Map(_)) {
        checker.refuse_unquoted(node, "a map", path);
        return None;
    }
    let root = Trail::Root(path);
    let declared = to_json(node, &root, checker);
    let config = resolved(declared, &root, origin, &mut |path, error| {
        // Finding the position takes time, and the problem is only counted.
        let place = match checker.is_full() {
            true => &node.place,
            false => &path.find(node).place,
        };
        checker.report(place, &path.to_string(), error);
    });
    Some(config)
}

/// Resolves the config's references; failures go to `report`.
fn resolved(
    declared: serde_json::Value,
    root: &Trail<'_>,
    origin: Origin<'_>,
    report: &mut dyn FnMut(&Trail<'_>, ReferenceError),
) -> HandlerConfig {
    let mut resolved = declared.clone();
    let secrets = resolve_json(&mut resolved, root, origin.lookup, report);
    match origin.lookup {
        Lookup::Form => HandlerConfig::new(declared),
        Lookup::Anything { .. } | Lookup::Listed { .. } => {
            HandlerConfig::with_resolved(declared, resolved, &secrets)
        }
    }
}

fn read_route(route: Section<'_, RouteFields>, checker: &mut Checker<'_>) -> Option<Route> {
    let mut regexes = RegexBudget::new();
    let mut topics: Vec<TopicPattern> = Vec::new();
    for listed in route.texts(RouteFields::topics) {
        let pattern = parse_topic(&listed.text).ok()?;
        if let TopicPattern::Regex(regex) = &pattern
            && let Err(error) = regexes.check(regex)
        {
            checker.report(&listed.place, &listed.path, error);
            return None;
        }
        if topics.contains(&pattern) {
            let message = format!("`{}` is listed twice; keep one", listed.text);
            checker.report(&listed.place, &listed.path, message);
        }
        topics.push(pattern);
    }
    let when = match route.node(RouteFields::when) {
        Some(node) => {
            let path = route.path_of(RouteFields::when);
            predicate_read::read(node, &path, &mut regexes, checker)?
        }
        None => Predicate::always(),
    };
    Some(Route { topics, when })
}

fn check_backoff(backoff: Section<'_, Backoff>, checker: &mut Checker<'_>) {
    let delay = backoff.get(Backoff::delay);
    let max_delay = backoff.get(Backoff::max_delay);
    if let (Some(delay), Some(max_delay)) = (delay, max_delay)
        && max_delay < delay
    {
        let message = format!("is shorter than `delay`: {max_delay:?} < {delay:?}");
        backoff.report(Backoff::max_delay, message, checker);
    }
}

/// Why a dead-letter topic in the handler's own route is rejected: its dead letters would cycle forever.
fn loops(topics: &[TopicPattern], template: &str) -> Option<String> {
    let matcher = TopicMatcher::new(topics);
    let is_source = |source| match source {
        DeadLetterSource::Any => true,
        DeadLetterSource::Topic(source) => matcher.matching(source).next().is_some(),
    };
    let own = exact_names(topics)
        .find(|name| dead_letter_source(template, name).is_some_and(is_source))?;
    Some(format!(
        "`{own}` is in this handler's own route: its dead letters would come back to it"
    ))
}

/// Why dead-letter topics of exactly named topics are rejected that are too long to be created.
fn too_long(topics: &[TopicPattern], template: &str) -> Option<String> {
    let length = |name| dead_letter_topic(template, name).len();
    let topic = exact_names(topics).find(|name| length(name) > MAX_TOPIC)?;
    let length = length(topic);
    Some(format!(
        "the dead-letter topic of `{topic}` would have {length} characters, but a topic name has at most {MAX_TOPIC}; use a shorter template"
    ))
}
