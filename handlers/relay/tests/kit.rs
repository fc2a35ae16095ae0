//! `relay` through the testing kit.

use relay::Relay;
use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome, record};

#[test]
fn a_copy_keeps_key_value_headers_and_timestamp() {
    let mut kit = Kit::of::<Relay>(json!({ "topic": "out" })).unwrap();
    let run = kit.run([
        record("in")
            .key("k")
            .value("v")
            .header("a", "1")
            .header("a", "2")
            .timestamp_ms(77),
        record("in"),
    ]);
    assert_eq!(run.outcomes, [Outcome::Ack, Outcome::Ack]);
    let [full, empty] = &run.emits[..] else {
        panic!("two copies")
    };
    assert_eq!((full.topic.as_str(), full.timestamp_ms), ("out", Some(77)));
    assert_eq!(
        (full.key.as_deref(), full.value.as_deref()),
        (Some(&b"k"[..]), Some(&b"v"[..]))
    );
    assert_eq!(
        full.headers,
        [
            ("a".into(), Some(b"1".to_vec())),
            ("a".into(), Some(b"2".to_vec()))
        ]
    );
    assert_eq!(
        (&empty.key, &empty.value, empty.headers.len()),
        (&None, &None, 0)
    );
}

#[test]
fn headers_are_set_and_dropped_and_provenance_is_added() {
    let config = json!({
        "topic": "out", "set_headers": { "b": "new" }, "drop_headers": ["a"], "provenance": true
    });
    let mut kit = Kit::of::<Relay>(config).unwrap();
    let run = kit.run([record("in")
        .at(3, 9)
        .epoch(4)
        .attempt(2)
        .header("a", "1")
        .header("b", "old")
        .header("sluicegate.source", "earlier/0/1")
        .header("c", "")]);
    let headers: Vec<String> = run.emits[0]
        .headers
        .iter()
        .map(|(name, value)| {
            format!(
                "{name}={}",
                String::from_utf8_lossy(value.as_deref().unwrap())
            )
        })
        .collect();
    assert_eq!(
        headers,
        [
            "c=",
            "b=new",
            "sluicegate.source=in/3/9",
            concat!("sluicegate.handler=test@", env!("CARGO_PKG_VERSION")),
            "sluicegate.epoch=4",
            "sluicegate.attempt=2"
        ]
    );
}

#[test]
fn the_record_after_a_copied_one_of_the_same_key_is_copied_in_the_same_call() {
    let mut kit = Kit::of::<Relay>(json!({ "topic": "out" })).unwrap();
    let run = kit.run([
        record("in").key("k"),
        record("in").key("other"),
        record("in").key("k"),
    ]);
    assert_eq!(run.outcomes, [Outcome::Ack, Outcome::Ack, Outcome::Ack]);
    assert_eq!(run.emits.len(), 3);
}

#[test]
fn a_loop_onto_its_own_topic_and_invalid_configs_are_refused() {
    let mut kit = Kit::of::<Relay>(json!({ "topic": "out" })).unwrap();
    assert!(matches!(
        kit.run([record("out")]).outcomes[..],
        [Outcome::DeadLetter(_)]
    ));
    for bad in [
        json!({}),
        json!({ "topic": "" }),
        json!({ "topic": "x", "colour": 1 }),
    ] {
        assert!(
            Kit::of::<Relay>(bad)
                .err()
                .unwrap()
                .starts_with("config refused: ")
        );
    }
    assert!(kit.description()["config_schema"]["properties"]["set_headers"].is_object());
}
