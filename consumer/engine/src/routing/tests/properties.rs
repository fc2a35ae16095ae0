//! Random routes and records: the index agrees with the oracle.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluicegate_config::spec::{PartitionTest, Predicate, Route, Test, TopicPattern};

use super::super::{Router, RoutingIndex};
use super::{OwnedRecord, ask, block, numbered, router, truth};

const NAMES: &[&str] = &["a", "tenant", "mode", "a-long-header", "a-long-heaven"];
const TOPICS: &[&str] = &[
    "orders",
    "orders.eu",
    "orders-eu",
    "clicks",
    "x",
    "__consumer_offsets",
];

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static [u8]> = vec![
        b"",
        b"a",
        b"ab",
        b"abc",
        b"abcabc",
        b"bc",
        b"5",
        b"5.0",
        b"-1",
        b"1e3",
        b"10",
        b"nan",
        b"inf",
        b" 5",
        b"\xff\xfe",
        b"ab\xff",
        b"\xffbc",
        b"caf\xc3\xa9",
    ];
    prop_oneof![
        4 => select(known).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..4),
        1 => (-20i32..20).prop_map(|n| n.to_string().into_bytes()),
    ]
}

fn any_bound() -> impl Strategy<Value = f64> {
    prop_oneof![
        select(vec![
            -1.0,
            0.0,
            -0.0,
            5.0,
            5.5,
            10.0,
            f64::INFINITY,
            f64::NEG_INFINITY
        ]),
        -20.0..20.0,
    ]
}

fn any_test() -> impl Strategy<Value = Test> {
    let regexes = vec![
        "^a", "bc$", "^ab?c*$", "b", "^(ab|bc)", "(?i)ABC", "[0-9]+", "^$", "", "é", ".", "^a|^5",
        r"\bbc", "(?m)^bc", "[^a]",
    ];
    prop_oneof![
        2 => any_bytes().prop_map(Test::Equals),
        2 => vec(any_bytes(), 1..4).prop_map(Test::In),
        1 => any::<bool>().prop_map(Test::Exists),
        1 => any_bytes().prop_map(Test::Prefix),
        1 => any_bytes().prop_map(Test::Suffix),
        1 => select(regexes).prop_map(|r| Test::Regex(r.into())),
        1 => any_bound().prop_map(Test::Lt),
        1 => any_bound().prop_map(Test::Le),
        1 => any_bound().prop_map(Test::Gt),
        1 => any_bound().prop_map(Test::Ge),
    ]
}

fn any_partition_test() -> impl Strategy<Value = PartitionTest> {
    let number = -2..6i32;
    prop_oneof![
        number.clone().prop_map(PartitionTest::Equals),
        vec(number.clone(), 1..3).prop_map(PartitionTest::In),
        number.clone().prop_map(PartitionTest::Lt),
        number.clone().prop_map(PartitionTest::Le),
        number.clone().prop_map(PartitionTest::Gt),
        number.prop_map(PartitionTest::Ge),
    ]
}

fn any_predicate() -> impl Strategy<Value = Predicate> {
    let atom = prop_oneof![
        5 => (select(NAMES), any_test()).prop_map(|(name, test)| Predicate::Header {
            name: name.into(),
            test,
        }),
        2 => any_test().prop_map(Predicate::Key),
        1 => any_partition_test().prop_map(Predicate::Partition),
    ];
    atom.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Predicate::All),
            vec(inner.clone(), 0..4).prop_map(Predicate::Any),
            inner.prop_map(|p| Predicate::Not(Box::new(p))),
        ]
    })
}

fn any_topic_pattern() -> impl Strategy<Value = TopicPattern> {
    let globs = vec!["orders*", "*", "orders.?u", "o*s", "*-eu"];
    let regexes = vec![
        "^orders",
        "eu$",
        "^(orders|clicks)$",
        "orders[.-]",
        "^$",
        "c",
    ];
    prop_oneof![
        2 => select(TOPICS).prop_map(|t| TopicPattern::Exact(t.into())),
        1 => select(globs).prop_map(|g| TopicPattern::Glob(g.into())),
        1 => select(regexes).prop_map(|r| TopicPattern::Regex(r.into())),
    ]
}

fn any_route() -> impl Strategy<Value = Route> {
    let when = prop_oneof![
        1 => Just(Predicate::always()),
        6 => any_predicate(),
    ];
    (vec(any_topic_pattern(), 1..3), when).prop_map(|(topics, when)| Route { topics, when })
}

fn any_record() -> impl Strategy<Value = OwnedRecord> {
    let names = prop_oneof![4 => select(NAMES), 1 => select(vec!["other", "", "b"])];
    let headers = vec((names, proptest::option::weighted(0.9, any_bytes())), 0..5);
    (
        select(TOPICS),
        -1..6i32,
        proptest::option::weighted(0.8, any_bytes()),
        headers,
    )
        .prop_map(|(topic, partition, key, headers)| OwnedRecord {
            topic: topic.into(),
            partition,
            key,
            block: block(headers.iter().map(|(n, v)| (n.as_bytes(), v.as_deref()))),
        })
}

fn check(
    router: &mut Router,
    routes: &[Route],
    records: &[OwnedRecord],
) -> Result<(), TestCaseError> {
    for record in records {
        let plan = router.plan(&record.topic);
        prop_assert_eq!(
            ask(router, plan, record),
            truth(routes, record),
            "record {:?}",
            record
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_agrees_with_the_oracle(
        routes in vec(any_route(), 1..12),
        records in vec(any_record(), 1..30),
    ) {
        let mut router = router(&routes);
        check(&mut router, &routes, &records)?;
        // Again, with every result cached.
        check(&mut router, &routes, &records)?;
    }

    #[test]
    fn after_a_swap_only_the_new_routes_count(
        old in vec(any_route(), 1..6),
        new in vec(any_route(), 1..6),
        records in vec(any_record(), 1..20),
    ) {
        let mut router = router(&old);
        check(&mut router, &old, &records)?;
        router.swap(RoutingIndex::compile(2, numbered(&new)).expect("the routes compile"));
        check(&mut router, &new, &records)?;
        prop_assert_eq!(router.index().revision(), 2);
    }

    #[test]
    fn a_garbled_header_block_is_read_alike_and_never_panics(
        routes in vec(any_route(), 1..6),
        mut record in any_record(),
        garbage in vec(any::<u8>(), 0..40),
        cut in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let mut router = router(&routes);
        let whole = record.block.clone();
        record.block.truncate(cut.index(whole.len() + 1));
        check(&mut router, &routes, std::slice::from_ref(&record))?;
        record.block = whole;
        if !record.block.is_empty() {
            let at = flip.0.index(record.block.len());
            record.block[at] ^= flip.1;
        }
        check(&mut router, &routes, std::slice::from_ref(&record))?;
        record.block = garbage;
        check(&mut router, &routes, std::slice::from_ref(&record))?;
    }

    #[test]
    fn a_topic_is_subscribed_to_exactly_when_a_route_can_want_its_records(
        routes in vec(any_route(), 1..6),
        dead_letters in vec(select(vec!["{topic}.dlt", "x{topic}", "clicks", "o", "__x"]), 0..3),
        made_up in vec("[_a-z.-]{1,8}", 0..12),
    ) {
        let index = RoutingIndex::compile_apart_from(1, numbered(&routes), dead_letters.iter().copied())
            .expect("the routes compile");
        let cluster = || made_up.iter().map(String::as_str).chain(TOPICS.iter().copied());
        let subscription = index.subscription(cluster());
        for topic in cluster() {
            let wanted = !index.handlers_for(topic).is_empty();
            prop_assert_eq!(subscription.topics.contains(topic), wanted, "{}", topic);
            let named = index.exact_topics().any(|(name, _)| name == topic);
            if topic.starts_with("__") || dead_letters.contains(&topic) {
                prop_assert!(named || !wanted, "{} is matched by a pattern", topic);
            } else if routes.iter().flat_map(|route| &route.topics).any(|one| one.matches(topic)) {
                let template = |dead: &&str| dead.contains("{topic}") && {
                    let ends: Vec<&str> = dead.split("{topic}").collect();
                    topic.starts_with(ends[0]) && topic.ends_with(ends[1])
                };
                prop_assert!(wanted || dead_letters.iter().any(template), "{} is left out", topic);
            }
        }
    }
}
