//! `fraud-detector` through the testing kit.

use fraud_detector::FraudDetector;
use serde_json::{Value, json};
use sluicegate_sdk::testing::{Kit, Outcome, TestRecord, record};

fn payment(key: &str, offset: i64, amount: Value) -> TestRecord {
    record("payments")
        .key(key)
        .at(0, offset)
        .json(&json!({ "payment": { "amount": amount } }))
}

fn kit() -> Kit {
    let config =
        json!({ "topic": "alerts", "field": "payment.amount", "threshold": 3, "warm_up": 10 });
    Kit::of::<FraudDetector>(config).expect("the config is fine")
}

/// Ten records of each of two keys: 9 and 11 in turn, and their hundredfold.
fn warm(kit: &mut Kit) {
    for offset in 0..10 {
        let amount = if offset % 2 == 0 { 9 } else { 11 };
        let small = payment("small", offset * 2, json!(amount));
        let large = payment("large", offset * 2 + 1, json!((amount * 100).to_string()));
        assert!(kit.run([small, large]).emits.is_empty());
    }
}

#[test]
fn an_outlier_for_its_key_causes_an_alert() {
    let mut kit = kit();
    warm(&mut kit);
    let run = kit.run([
        payment("small", 50, json!(1000)),
        payment("large", 51, json!(1000)),
    ]);
    assert_eq!(run.outcomes, [Outcome::Ack, Outcome::Ack]);
    let [alert] = &run.emits[..] else {
        panic!("one alert, got {:?}", run.emits)
    };
    assert_eq!(
        (alert.topic.as_str(), alert.key.as_deref()),
        ("alerts", Some(&b"small"[..]))
    );
    let alert = alert.json();
    assert_eq!(
        (&alert["value"], &alert["mean"], &alert["records"]),
        (&json!(1000.0), &json!(10.0), &json!(10))
    );
    assert_eq!(alert["source"], json!("payments/0/50"));
    assert_eq!(kit.counter("alerts"), 1.0);
}

#[test]
fn warming_up_causes_no_alerts_and_a_retry_repeats_its_alert() {
    let mut kit = kit();
    assert!(
        kit.run([payment("k", 0, json!(1)), payment("k", 1, json!(1e9))])
            .emits
            .is_empty()
    );
    let mut kit = self::kit();
    warm(&mut kit);
    let first = kit.run([payment("small", 50, json!(1000))]).emits;
    let again = kit
        .run([payment("small", 50, json!(1000)).attempt(2)])
        .emits;
    assert_eq!(first, again);
}

#[test]
fn a_revoked_partition_is_forgotten() {
    let mut kit = kit();
    warm(&mut kit);
    kit.revoked("payments", 0, 1).unwrap();
    assert!(
        kit.run([payment("small", 50, json!(1000))])
            .emits
            .is_empty()
    );
}

#[test]
fn records_without_key_or_number_are_dropped_and_other_text_is_dead_lettered() {
    let run = kit().run([
        record("payments").json(&json!({})),
        payment("a", 1, json!("much")),
        record("payments").key("b").value("no json"),
    ]);
    assert!(matches!(
        run.outcomes[..],
        [Outcome::Drop(_), Outcome::Drop(_), Outcome::DeadLetter(_)]
    ));
}

#[test]
fn configs_are_checked_and_the_state_is_declared() {
    for bad in [
        json!({ "threshold": 0 }),
        json!({ "warm_up": 1 }),
        json!({ "field": "" }),
        json!({ "max": 1 }),
    ] {
        assert!(
            Kit::of::<FraudDetector>(bad)
                .err()
                .unwrap()
                .starts_with("config refused: ")
        );
    }
    let kit = Kit::of::<FraudDetector>(json!({ "threshold": 0.95 })).unwrap();
    assert_eq!(kit.description()["keeps_key_state"], json!(true));
}

#[test]
fn a_new_threshold_applies_immediately_and_keeps_the_statistics() {
    let mut kit = kit();
    warm(&mut kit);
    let config = |field: &str, threshold: f64| json!({ "topic": "alerts", "field": field, "threshold": threshold, "warm_up": 10 });
    let outlier = |offset| payment("small", offset, json!(14));
    kit.reconfigure(&config("payment.amount", 30.0)).unwrap();
    assert!(kit.run([outlier(50)]).emits.is_empty());
    let refused = kit
        .reconfigure(&config("payment.amount", -1.0))
        .unwrap_err();
    assert!(refused.contains("above 0"), "{refused}");
    assert!(
        kit.run([outlier(51)]).emits.is_empty(),
        "the previous config"
    );
    kit.reconfigure(&config("payment.amount", 1.0)).unwrap();
    assert_eq!(kit.run([outlier(52)]).emits.len(), 1);
    kit.reconfigure(&config("payment.tip", 1.0)).unwrap();
    kit.reconfigure(&config("payment.amount", 1.0)).unwrap();
    assert!(
        kit.run([outlier(53)]).emits.is_empty(),
        "the statistics of another field are discarded"
    );
}
