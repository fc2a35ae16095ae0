//! Situation: a shipped plugin as built. Property: it loads, reports its identity and handles records.

mod support;

use sluicegate_native::NativeRuntime;
use sluicegate_runtime::{
    CallStatus, CreateError, CreateRequest, HandlerRuntime, outcome_code, outcome_flag,
};
use support::{built, codes, handle, load, records};

#[test]
fn relay_loads_and_copies_a_record() {
    let path = built("sluicegate-handler-relay");
    let identity = NativeRuntime.inspect(&path).unwrap();
    assert_eq!(
        (identity.name.as_str(), &identity.handlers[..]),
        ("relay", &["relay".to_string()][..])
    );
    assert!(NativeRuntime.recognises(&path));

    let loaded = load(&path);
    assert_eq!(loaded.plugin.identity(), &identity);
    let [handler] = loaded.plugin.handlers() else {
        panic!("one handler")
    };
    assert!(handler.config_schema.contains("set_headers") && !handler.takes_batches);

    let mut relay = loaded.create("relay", r#"{ "topic": "out" }"#);
    let (status, outcomes, output) = handle(relay.as_mut(), &records(&["a", "b"]));
    assert_eq!(status, CallStatus::Usable);
    assert_eq!(codes(&outcomes), [outcome_code::ACK; 2]);
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.flags & outcome_flag::EMITTED != 0)
    );
    let second = output.emits.get(1).expect("both have emitted");
    assert_eq!(
        (second.record, second.to.topic, second.to.value),
        (1, "out", Some(&b"b"[..]))
    );
    assert_eq!(relay.health(), Ok(()));
    drop(relay);
    loaded.plugin.shutdown(100);

    let services = loaded.captured.clone();
    let refusal = loaded
        .plugin
        .create(CreateRequest::new(
            "relay",
            "x",
            "{\"topic\":5}",
            services.clone(),
        ))
        .err()
        .unwrap();
    assert_eq!(
        refusal.to_string(),
        "config refused: `topic`: invalid type: integer `5`, expected a string at line 1 column 10"
    );
    let unknown = loaded
        .plugin
        .create(CreateRequest::new("relai", "x", "{}", services))
        .err()
        .unwrap();
    assert!(matches!(unknown, CreateError::Unknown { .. }));
    assert_eq!(
        unknown.to_string(),
        "no handler `relai` in this plugin; it exports: relay"
    );
}
