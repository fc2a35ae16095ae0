//! Corner cases, one per test.

use std::sync::Arc;

use sluicegate_config::spec::{Predicate, Route, Test, TopicPattern};

use super::super::{LeftOut, RouteError, Router, RoutingIndex};
use super::{OwnedRecord, ask, header, numbered, route, router, truth};
use crate::dispatch::HandlerIx;

fn equals(value: &str) -> Test {
    Test::Equals(value.into())
}

#[test]
fn a_record_goes_to_every_matching_handler_in_ascending_order() {
    let index = RoutingIndex::compile(
        1,
        vec![
            (HandlerIx(9), route("t", Predicate::always())),
            (HandlerIx(4), route("t", header("h", equals("x")))),
            (HandlerIx(7), route("u", Predicate::always())),
        ],
    )
    .expect("the routes compile");
    let mut router = Router::new(index);
    let plan = router.plan("t");
    let x = OwnedRecord::new("t", &[("h", Some(b"x"))]);
    let y = OwnedRecord::new("t", &[("h", Some(b"y"))]);
    assert_eq!(ask(&mut router, plan, &x), [4, 9]);
    assert_eq!(ask(&mut router, plan, &y), [9]);
    let unrouted = router.plan("unrouted");
    assert_eq!(ask(&mut router, unrouted, &x), [0u32; 0]);
}

#[test]
fn a_plan_without_header_atoms_never_reads_headers() {
    let mut router = router(&[
        route("plain", Predicate::always()),
        route("keyed", Predicate::Key(equals("k"))),
    ]);
    for topic in ["plain", "keyed"] {
        let plan = router.plan(topic);
        let handlers = router.route(plan, 0, Some(b"k"), || panic!("headers were read"));
        assert_eq!(handlers.len(), 1);
    }
}

#[test]
fn any_value_of_a_repeated_header_counts() {
    let routes = [
        route("t", header("h", equals("x"))),
        route("t", header("h", equals("y"))),
        route(
            "t",
            Predicate::All(vec![header("h", equals("x")), header("h", equals("y"))]),
        ),
        route("t", Predicate::Not(header("h", equals("x")).into())),
    ];
    let mut router = router(&routes);
    let plan = router.plan("t");
    let both = OwnedRecord::new("t", &[("h", Some(b"x")), ("z", None), ("h", Some(b"y"))]);
    assert_eq!(ask(&mut router, plan, &both), [0, 1, 2]);
    let one = OwnedRecord::new("t", &[("h", Some(b"y"))]);
    assert_eq!(ask(&mut router, plan, &one), [1, 3]);
}

#[test]
fn a_null_header_exists_and_matches_no_other_test() {
    let routes = [
        route("t", header("h", Test::Exists(true))),
        route("t", header("h", Test::Exists(false))),
        route("t", header("h", Test::Prefix(Vec::new()))),
        route("t", header("h", Test::Regex(String::new()))),
    ];
    let mut router = router(&routes);
    let plan = router.plan("t");
    let ask = |router: &mut Router, headers: &[(&str, Option<&[u8]>)]| {
        ask(router, plan, &OwnedRecord::new("t", headers))
    };
    assert_eq!(ask(&mut router, &[("h", None)]), [0]);
    assert_eq!(ask(&mut router, &[("h", Some(b""))]), [0, 2, 3]);
    assert_eq!(ask(&mut router, &[("h", Some(b"\xff"))]), [0, 2]);
    assert_eq!(ask(&mut router, &[]), [1]);
}

#[test]
fn more_headers_than_class_numbers_can_hold_still_route_correctly() {
    let routes: Vec<_> = (0..300)
        .map(|n| route("t", header(&format!("h{n}"), equals("x"))))
        .collect();
    let mut router = router(&routes);
    let plan = router.plan("t");
    for n in [0, 127, 128, 299] {
        let record = OwnedRecord::new("t", &[(&format!("h{n}"), Some(b"x"))]);
        assert_eq!(ask(&mut router, plan, &record), [n]);
    }
}

#[test]
fn more_combinations_than_the_memo_holds_still_route_correctly() {
    let routes: Vec<_> = (0..400)
        .flat_map(|n| {
            let value = format!("v{n}");
            [
                route("t", header("a", Test::Equals(value.clone().into()))),
                route("t", header("b", Test::Equals(value.into()))),
            ]
        })
        .collect();
    let mut router = router(&routes);
    let plan = router.plan("t");
    for round in 0..2 {
        for n in 0..160_000u32 {
            let (a, b) = (n % 400, n / 400);
            if round == 1 && n % 97 != 0 {
                continue;
            }
            let (left, right) = (format!("v{a}"), format!("v{b}"));
            let record = OwnedRecord::new(
                "t",
                &[("a", Some(left.as_bytes())), ("b", Some(right.as_bytes()))],
            );
            let mut wanted = [2 * a, 2 * b + 1];
            wanted.sort_unstable();
            assert_eq!(ask(&mut router, plan, &record), wanted);
        }
    }
}

#[test]
fn more_sets_of_regexes_than_numbers_still_route_correctly() {
    // 17 independent regexes make 131,072 sets; 65,536 have a number at a time.
    let routes: Vec<_> = ('a'..='q')
        .map(|c| route("t", header("h", Test::Regex(format!("{c}+")))))
        .collect();
    let mut router = router(&routes);
    let plan = router.plan("t");
    for bits in 0..70_000u32 {
        let value: String = (0..17)
            .filter(|n| bits & (1 << n) != 0)
            .map(|n| char::from(b'a' + n))
            .collect();
        let record = OwnedRecord::new("t", &[("h", Some(value.as_bytes()))]);
        let wanted: Vec<u32> = (0..17).filter(|n| bits & (1 << n) != 0).collect();
        assert_eq!(ask(&mut router, plan, &record), wanted);
    }
}

#[test]
fn long_values_are_matched_without_being_cached() {
    let routes = [route("t", header("h", Test::Regex("z$".into())))];
    let mut router = router(&routes);
    let plan = router.plan("t");
    let mut value = vec![b'y'; 5000];
    for _ in 0..2 {
        let record = OwnedRecord::new("t", &[("h", Some(&value))]);
        assert_eq!(ask(&mut router, plan, &record), truth(&routes, &record));
        value.push(b'z');
    }
}

#[test]
fn a_plan_stays_valid_across_a_swap_and_drops_cached_results() {
    let mut router = router(&[route("t", header("h", equals("x")))]);
    let plan = router.plan("t");
    let record = OwnedRecord::new("t", &[("h", Some(b"x"))]);
    assert_eq!(ask(&mut router, plan, &record), [0]);
    let swapped = [
        route("other", Predicate::always()),
        route("t", header("h", equals("x"))),
    ];
    router.swap(RoutingIndex::compile(2, numbered(&swapped)).expect("the routes compile"));
    assert_eq!(router.plan("t"), plan);
    assert_eq!(ask(&mut router, plan, &record), [1]);
}

#[test]
fn a_malformed_regex_is_reported() {
    let bad = vec![(
        HandlerIx(0),
        route("t", header("h", Test::Regex("(".into()))),
    )];
    let error = RoutingIndex::compile(1, bad).err().expect("it is rejected");
    assert!(matches!(&error, RouteError::Pattern { pattern, .. } if pattern == "("));
    assert!(error.to_string().starts_with("regex `(` in a route"));
    let mut topic = route("t", Predicate::always());
    topic.topics.push(TopicPattern::Regex("[".into()));
    let error = RoutingIndex::compile(1, vec![(HandlerIx(0), topic)]).err();
    assert!(matches!(error, Some(RouteError::Topic { .. })));
}

/// Routes of one pattern each, with the given dead-letter topics.
fn with_dead_letters(patterns: &[TopicPattern], dead_letters: &[&str]) -> Arc<RoutingIndex> {
    let routes = patterns.iter().map(|pattern| Route {
        topics: vec![pattern.clone()],
        when: Predicate::always(),
    });
    let routes: Vec<Route> = routes.collect();
    let dead_letters = dead_letters.iter().copied();
    RoutingIndex::compile_apart_from(1, numbered(&routes), dead_letters)
        .expect("the routes compile")
}

fn glob(text: &str) -> TopicPattern {
    TopicPattern::Glob(text.into())
}

#[test]
fn patterns_match_neither_internal_nor_dead_letter_topics_and_exact_names_do() {
    let index = with_dead_letters(
        &[
            glob("*"),
            TopicPattern::Regex(".*".into()),
            glob("*offsets"),
            TopicPattern::Regex("^__".into()),
            TopicPattern::Exact("__consumer_offsets".into()),
            TopicPattern::Exact("orders.dlt".into()),
        ],
        &["{topic}.dlt", "abandoned"],
    );
    let table: [(&str, &[u32]); 10] = [
        ("orders", &[0, 1]),
        ("orders.dlt", &[5]),
        ("clicks.dlt", &[]),
        (".dlt", &[0, 1]),
        ("abandoned", &[]),
        ("__consumer_offsets", &[4]),
        ("__transaction_state", &[]),
        ("__share_group_state", &[]),
        ("_schemas", &[0, 1]),
        ("my__offsets", &[0, 1, 2]),
    ];
    for (topic, wanted) in table {
        let handlers: Vec<u32> = index.handlers_for(topic).iter().map(|ix| ix.0).collect();
        assert_eq!(handlers, wanted, "{topic}");
    }
}

#[test]
fn a_fixed_dead_letter_name_is_compared_whole() {
    let index = with_dead_letters(&[glob("dead*")], &["dead"]);
    for source in ["dead-reckoning", "dead-or-dead", "deaddead", "deadx"] {
        assert_eq!(index.handlers_for(source), [HandlerIx(0)], "{source}");
    }
    assert_eq!(index.handlers_for("dead"), []);
}

#[test]
fn a_subscription_lists_topic_names_and_reports_excluded_topics() {
    let index = with_dead_letters(
        &[
            glob("orders*"),
            glob("__*"),
            TopicPattern::Exact("user_events".into()),
            TopicPattern::Exact("__my_state".into()),
        ],
        &["{topic}.dlt"],
    );
    let cluster = [
        "orders",
        "orders.eu",
        "orders.dlt",
        "clicks",
        "__consumer_offsets",
        "__my_state",
    ];
    let subscription = index.subscription(cluster);
    assert_eq!(
        subscription.topics.iter().collect::<Vec<_>>(),
        ["__my_state", "orders", "orders.eu", "user_events"]
    );
    assert_eq!(
        subscription.taken_in.iter().collect::<Vec<_>>(),
        ["orders", "orders.eu"]
    );
    let left_out: Vec<(&str, LeftOut)> = subscription
        .left_out
        .iter()
        .map(|(topic, why)| (topic.as_str(), *why))
        .collect();
    assert_eq!(
        left_out,
        [
            ("__consumer_offsets", LeftOut::Internal),
            ("__my_state", LeftOut::Internal),
            ("orders.dlt", LeftOut::DeadLetter),
        ]
    );
}
