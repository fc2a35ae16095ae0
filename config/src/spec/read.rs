//! Parses spec text into [`HandlerSpec`].

use std::path::Path;

use super::rules::{MAX_TOPIC, RegexBudget, parse_topic};
use super::table::SPEC;
use super::{
    Backoff, DeadLetter, DeadLetterSource, HandlerConfig, HandlerSpec, InFlightLimit, Predicate,
    Restart, Retry, Route, TopicMatcher, TopicPattern, dead_letter_source, predicate_read,
};
use crate::document::{
    CheckedSection as Section, Checker, Lookup, Node, Place, Trail, Value, parse, read_json_object,
    resolve_json, to_json,
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
    let mut checker = Checker::new(origin.place, &SPEC);
    let section = checker.section(&root, &SPEC, "");
    let spec = build(&section, origin, &mut checker);
    problems.merge(checker.into_problems());
    match spec {
        Some(spec) if problems.is_empty() => Ok(LocatedSpec {
            spec,
            name_place: section.place_of("name").clone(),
            pool_place: section.place_of("pool").clone(),
            dead_letter_place: section
                .object("dead_letter")
                .unwrap_or(&section)
                .place_of("topic")
                .clone(),
        }),
        _ => Err(problems),
    }
}

/// Parses a handler's own config from a JSON object.
pub fn read_config(text: &str, origin: Origin<'_>) -> Result<HandlerConfig, Problems> {
    let problem = |line, column, path: String, message| Problem {
        file: origin.place.map(Path::to_path_buf),
        line,
        column,
        path,
        message,
    };
    let mut problems = Problems::new();
    let declared = match read_json_object(text) {
        Ok(object) => serde_json::Value::Object(object),
        Err((line, column, message)) => {
            problems.push(problem(line, column, String::new(), message));
            return Err(problems);
        }
    };
    let config = resolved(declared, &Trail::Root(""), origin, &mut |path, reason| {
        problems.push(problem(0, 0, path.to_string(), reason));
    });
    match problems.is_empty() {
        true => Ok(config),
        false => Err(problems),
    }
}

/// `None` only if a problem was reported. All parts are parsed before the first `?`, so that every problem is reported.
fn build(section: &Section, origin: Origin<'_>, checker: &mut Checker<'_>) -> Option<HandlerSpec> {
    let config = section
        .custom("config")
        .and_then(|node| config(node, "config", origin, checker));
    let route = section
        .object("route")
        .and_then(|route| read_route(route, checker));
    let retry = section
        .object("retry")
        .and_then(|retry| read_retry(retry, checker));
    let dead_letter = section.object("dead_letter").and_then(read_dead_letter);
    if let (Some(route), Some(dead_letter)) = (&route, &dead_letter) {
        refuse_loop(section, route, dead_letter, checker);
        refuse_long_name(section, route, dead_letter, checker);
    }
    let max_in_flight = section.object("max_in_flight")?;
    let restart = section.object("restart")?;
    Some(HandlerSpec {
        name: section.text("name")?.to_owned(),
        plugin: section.text("plugin")?.to_owned(),
        version: section.text("version")?.parse().ok()?,
        enabled: section.flag("enabled"),
        route: route?,
        order: section.word("order")?,
        workers: usize::try_from(section.count("workers")).ok()?,
        pool: section.text("pool").map(str::to_owned),
        max_in_flight: InFlightLimit {
            records: max_in_flight.count("records"),
            bytes: max_in_flight.count("bytes"),
        },
        timeout: section.duration("timeout"),
        retry: retry?,
        dead_letter: dead_letter?,
        on_failure: section.word("on_failure")?,
        restart: Restart {
            max_restarts: u32::try_from(restart.count("max_restarts")).ok()?,
            restart_window: restart.duration("restart_window"),
        },
        config: config?,
    })
}

fn config(
    node: &Node,
    path: &str,
    origin: Origin<'_>,
    checker: &mut Checker<'_>,
) -> Option<HandlerConfig> {
    if !matches!(node.value, Value::Map(_)) {
        checker.refuse(node, "a map", path);
        return None;
    }
    let root = Trail::Root(path);
    let declared = to_json(node, &root, checker);
    let config = resolved(declared, &root, origin, &mut |path, reason| {
        // Finding the position takes time, and the problem is only counted.
        let place = match checker.is_full() {
            true => &node.place,
            false => &path.find(node).place,
        };
        checker.report(place, &path.to_string(), reason);
    });
    Some(config)
}

/// Resolves the config's references; failures go to `report`.
fn resolved(
    declared: serde_json::Value,
    root: &Trail<'_>,
    origin: Origin<'_>,
    report: &mut dyn FnMut(&Trail<'_>, String),
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

fn read_route(route: &Section, checker: &mut Checker<'_>) -> Option<Route> {
    let mut regexes = RegexBudget::new();
    let mut topics: Vec<TopicPattern> = Vec::new();
    for listed in route.texts("topics") {
        let pattern = parse_topic(&listed.text).ok()?;
        if let TopicPattern::Regex(regex) = &pattern
            && let Err(reason) = regexes.check(regex)
        {
            checker.report(&listed.place, &listed.path, reason);
            return None;
        }
        if topics.contains(&pattern) {
            let message = format!("`{}` is listed twice; keep one", listed.text);
            checker.report(&listed.place, &listed.path, message);
        }
        topics.push(pattern);
    }
    let when = match route.custom("when") {
        Some(node) => predicate_read::read(node, &route.path_of("when"), &mut regexes, checker)?,
        None => Predicate::always(),
    };
    Some(Route { topics, when })
}

fn read_retry(retry: &Section, checker: &mut Checker<'_>) -> Option<Retry> {
    let backoff = retry.object("backoff")?;
    let (delay, max_delay) = (backoff.duration("delay"), backoff.duration("max_delay"));
    let both = backoff.holds("delay") && backoff.holds("max_delay");
    if both && max_delay < delay {
        let message = format!("is shorter than `delay`: {max_delay:?} < {delay:?}");
        let place = backoff.place_of("max_delay").clone();
        checker.report(&place, &backoff.path_of("max_delay"), message);
    }
    Some(Retry {
        max_attempts: u32::try_from(retry.count("max_attempts")).ok()?,
        backoff: Backoff {
            delay,
            multiplier: backoff.number("multiplier"),
            max_delay,
            jitter: backoff.number("jitter"),
        },
    })
}

fn read_dead_letter(dead_letter: &Section) -> Option<DeadLetter> {
    Some(DeadLetter {
        topic: dead_letter.text("topic")?.to_owned(),
        create: dead_letter.flag("create"),
    })
}

/// Rejects a dead-letter topic in the handler's own route: its dead letters would cycle forever.
fn refuse_loop(
    section: &Section,
    route: &Route,
    dead_letter: &DeadLetter,
    checker: &mut Checker<'_>,
) {
    let matcher = TopicMatcher::new(&route.topics);
    let is_source = |source| match source {
        DeadLetterSource::Any => true,
        DeadLetterSource::Topic(source) => matcher.matching(source).next().is_some(),
    };
    let own = route.topics.iter().find_map(|pattern| match pattern {
        TopicPattern::Exact(name) => {
            let source = dead_letter_source(&dead_letter.topic, name)?;
            is_source(source).then_some(name)
        }
        TopicPattern::Glob(_) | TopicPattern::Regex(_) => None,
    });
    if let Some(own) = own {
        let message = format!(
            "`{own}` is in this handler's own route: its dead letters would come back to it"
        );
        refuse_dead_letter(section, checker, message);
    }
}

/// Rejects dead-letter topics of exactly named topics that are too long to be created.
fn refuse_long_name(
    section: &Section,
    route: &Route,
    dead_letter: &DeadLetter,
    checker: &mut Checker<'_>,
) {
    let too_long = route.topics.iter().find_map(|pattern| match pattern {
        TopicPattern::Exact(name) => {
            let length = dead_letter.topic_for(name).len();
            (length > MAX_TOPIC).then_some((name, length))
        }
        TopicPattern::Glob(_) | TopicPattern::Regex(_) => None,
    });
    if let Some((topic, length)) = too_long {
        let message = format!(
            "the dead-letter topic of `{topic}` would have {length} characters, but a topic name has at most {MAX_TOPIC}; use a shorter template"
        );
        refuse_dead_letter(section, checker, message);
    }
}

fn refuse_dead_letter(section: &Section, checker: &mut Checker<'_>, message: String) {
    if let Some(object) = section.object("dead_letter") {
        let place = object.place_of("topic").clone();
        checker.report(&place, &object.path_of("topic"), message);
    }
}
