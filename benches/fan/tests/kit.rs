//! `fan` through the testing kit.

use fan::Fan;
use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome, record};

#[test]
fn each_record_has_its_copies_or_none() {
    let config = json!({ "topic": "out", "copies": 3, "drop_percent": 90 });
    let mut kit = Kit::of::<Fan>(config).unwrap();
    let at = |offset: i64| {
        let key = format!("k{offset}");
        record("in").key(key).value("v").at(0, offset)
    };
    let run = kit.run([at(89), at(90), at(99), at(100)]);
    assert!(
        run.outcomes.iter().all(|outcome| *outcome == Outcome::Ack),
        "{:?}",
        run.outcomes
    );
    let sources: Vec<usize> = run.emits.iter().map(|emit| emit.record).collect();
    assert_eq!(sources, [1, 1, 1, 2, 2, 2]);
    let first = &run.emits[0];
    assert_eq!(
        (first.key.as_deref(), first.value.as_deref()),
        (Some(&b"k90"[..]), Some(&b"v"[..]))
    );
}
