//! `misbehave` in the testing kit: its rules match as specified and count across instances.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use misbehave::Misbehave;
use serde_json::{Value, json};
use sluicegate_sdk::testing::{Kit, Outcome, TestRecord, record};

fn kit(rules: Value) -> Kit {
    Kit::of::<Misbehave>(json!({ "rules": rules })).unwrap()
}

fn flight(key: &str, offset: i64, carrier: &str, distance: &str) -> TestRecord {
    record("flights")
        .key(key)
        .at(1, offset)
        .header("carrier", carrier)
        .header("distance", distance)
}

/// Which of three records a condition matches.
fn fits(when: Value) -> Vec<bool> {
    let records = [
        flight("N1", 0, "UA", "90"),
        flight("N2", 1, "DL", "x"),
        record("flights").lane(9),
    ];
    let run = kit(json!([{ "when": when, "do": "drop" }])).run(records);
    run.outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Drop(_)))
        .collect()
}

#[test]
fn conditions_match_like_those_of_routes() {
    for (when, expected) in [
        (
            json!({ "header": "carrier", "equals": "UA" }),
            [true, false, false],
        ),
        (
            json!({ "header": "carrier", "in": ["UA", "DL"] }),
            [true, true, false],
        ),
        (
            json!({ "header": "carrier", "exists": false }),
            [false, false, true],
        ),
        (
            json!({ "header": "distance", "lt": 100 }),
            [true, false, false],
        ),
        (
            json!({ "header": "distance", "ge": 90, "le": 90 }),
            [true, false, false],
        ),
        (
            json!({ "header": "carrier", "regex": "^[DU]." }),
            [true, true, false],
        ),
        (json!({ "key": true, "suffix": "2" }), [false, true, false]),
        (json!({ "key": true, "exists": true }), [true, true, false]),
        (
            json!({ "partition": true, "equals": 1 }),
            [true, true, false],
        ),
        (
            json!({ "not": { "key": true, "prefix": "N" } }),
            [false, false, true],
        ),
        (
            json!({ "any": [{ "header": "carrier", "equals": "DL" }, { "partition": true, "equals": 0 }] }),
            [false, true, true],
        ),
        (
            json!({ "all": [{ "key": true, "prefix": "N" }, { "header": "carrier", "equals": "DL" }] }),
            [false, true, false],
        ),
    ] {
        assert_eq!(fits(when.clone()), expected, "{when}");
    }
}

#[test]
fn one_record_in_n_panics_and_the_new_instance_continues() {
    let mut kit = kit(json!([{ "when": { "one_in": 5 }, "do": "panic" }]));
    let mut panics = 0;
    for offset in 0..50 {
        let run = kit.run([flight("k", offset, "UA", "1")]);
        panics += usize::from(run.poisoned);
        assert_eq!(run.poisoned, offset % 5 == 4, "record {offset}");
    }
    assert_eq!(panics, 10);
}

#[test]
fn the_first_matching_rule_applies_as_often_as_configured() {
    let mut kit = kit(json!([
        { "when": { "key": true, "equals": "a" }, "do": "error", "class": "terminal", "times": 2 },
        { "when": { "key": true, "equals": "a" }, "do": "sleep", "for": "20ms", "times": 1 },
        { "when": { "key": true, "equals": "b" }, "do": "leak" },
    ]));
    let mut next = || kit.run([flight("a", 1, "UA", "1")]).outcomes.remove(0);
    assert!(matches!(next(), Outcome::DeadLetter(_)));
    assert!(matches!(next(), Outcome::DeadLetter(_)));
    let began = Instant::now();
    assert_eq!(next(), Outcome::Ack);
    assert!(began.elapsed() >= Duration::from_millis(20));
    assert_eq!(next(), Outcome::Ack);
    assert_eq!(
        kit.run([flight("b", 1, "UA", "1")]).outcomes,
        [Outcome::Ack]
    );
}

#[test]
fn rules_are_checked() {
    for (rule, words) in [
        (json!({ "when": {}, "do": "drop" }), "`when` is empty"),
        (
            json!({ "when": { "equals": 1 }, "do": "drop" }),
            "needs `header`, `key` or `partition`",
        ),
        (
            json!({ "when": { "one_in": 0 }, "do": "drop" }),
            "must be 1 or more",
        ),
        (
            json!({ "when": { "key": true, "regex": "(" }, "do": "drop" }),
            "regex",
        ),
        (
            json!({ "when": { "keys": true }, "do": "drop" }),
            "unknown field `keys`",
        ),
        (
            json!({ "when": { "one_in": 1 }, "do": "sleep" }),
            "needs `for`",
        ),
        (
            json!({ "when": { "one_in": 1 }, "do": "hang", "for": "1 hour" }),
            "is not a duration",
        ),
        (
            json!({ "when": { "one_in": 1 }, "do": "dance" }),
            "unknown variant `dance`",
        ),
    ] {
        let refusal = Kit::of::<Misbehave>(json!({ "rules": [rule] }))
            .err()
            .unwrap();
        assert!(refusal.contains(words), "{refusal}");
    }
}
