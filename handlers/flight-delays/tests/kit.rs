//! `flight-delays` through the testing kit.

use flight_delays::FlightDelays;
use serde_json::{Value, json};
use sluicegate_sdk::testing::{Kit, Outcome, record};

fn flight(dep_time: Value, dep_delay: Value) -> Value {
    json!({
        "year": 2013, "month": 1, "day": "7", "dep_time": dep_time, "sched_dep_time": 905, "dep_delay": dep_delay,
        "arr_delay": 500, "carrier": "UA", "tailnum": "N14228", "origin": "EWR", "dest": "IAH",
    })
}

fn kit() -> Kit {
    let config = json!({ "topic": "late", "threshold_minutes": 60 });
    Kit::of::<FlightDelays>(config).expect("the config is fine")
}

#[test]
fn a_flight_at_the_threshold_is_late_and_one_below_is_not() {
    let run = kit().run([
        record("flights")
            .key("N14228")
            .json(&flight(json!(1005), json!(60))),
        record("flights")
            .key("N2")
            .json(&flight(json!(1004), json!(59))),
        record("flights")
            .key("N3")
            .json(&flight(json!("1006"), json!("61.5"))),
    ]);
    assert_eq!(run.outcomes, [Outcome::Ack, Outcome::Ack, Outcome::Ack]);
    assert_eq!(run.emits.len(), 2);
    let late = &run.emits[0];
    assert_eq!(
        (late.topic.as_str(), late.key.as_deref()),
        ("late", Some(&b"N14228"[..]))
    );
    assert_eq!(
        late.json(),
        json!({
            "tail_number": "N14228", "carrier": "UA", "origin": "EWR", "destination": "IAH",
            "delay_minutes": 60, "scheduled": "2013-01-07T09:05",
        })
    );
    assert_eq!(run.emits[1].json()["delay_minutes"], json!(61.5));
}

#[test]
fn cancelled_flights_are_dropped_with_that_reason() {
    for none in [Value::Null, json!(""), json!("NA")] {
        let run = kit().run([record("flights").json(&flight(none, Value::Null))]);
        let [Outcome::Drop(reason)] = &run.outcomes[..] else {
            panic!("{:?}", run.outcomes)
        };
        assert!(reason.starts_with("cancelled"), "{reason}");
    }
}

#[test]
fn values_that_are_not_flights_are_dead_lettered_without_quoting_them() {
    let run = kit().run([
        record("flights").value("secret").lane(1),
        record("flights")
            .json(&flight(json!(1), json!("secret")))
            .lane(2),
        record("flights").lane(3),
        record("flights")
            .json(&flight(json!(1), Value::Null))
            .lane(4),
        // A list of the fields in order is not a flight.
        record("flights")
            .value("[2013, 1, 1, 517, 515, 90, \"N1\", \"UA\", \"EWR\", \"IAH\"]")
            .lane(5),
    ]);
    for outcome in run.outcomes {
        let Outcome::DeadLetter(reason) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(!reason.contains("secret"), "{reason}");
    }
}

#[test]
fn configs_are_checked() {
    for bad in [
        json!({}),
        json!({ "topic": "" }),
        json!({ "topic": "t", "treshold": 3 }),
    ] {
        assert!(
            Kit::of::<FlightDelays>(bad)
                .err()
                .unwrap()
                .starts_with("config refused: ")
        );
    }
}
