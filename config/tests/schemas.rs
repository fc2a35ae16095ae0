//! The JSON Schemas agree with the parser: the same names, defaults and bounds.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use serde_json::{Map, Value as Json, json};
use sluicegate_config::schema::{config_schema, handler_schema};
use sluicegate_config::service::read_service_config;
use sluicegate_config::{Environment, HandlerSpec, Problems, ServiceConfig, read_spec};

fn service(document: &Json) -> Result<ServiceConfig, Problems> {
    read_service_config(&document.to_string(), None, &Environment::default(), &[])
}

fn spec(document: &Json) -> Result<HandlerSpec, Problems> {
    read_spec(&document.to_string(), None, &Environment::default())
}

/// Collects the path and default of every leaf with a default.
fn defaults(schema: &Json, path: &[String], found: &mut Vec<(Vec<String>, Json)>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        let mut path = path.to_vec();
        path.push(name.clone());
        let required = schema["required"].as_array();
        let required = required.is_some_and(|names| names.contains(&json!(name)));
        if property["properties"].is_object() {
            if !required && property.get("default").is_none() {
                // The defaults of an optional object apply only if it is present.
                continue;
            }
            defaults(property, &path, found);
        } else if let Some(default) = property.get("default") {
            found.push((path, default.clone()));
        }
    }
}

fn put(document: &mut Json, path: &[String], value: Json) {
    match path {
        [] => *document = value,
        [first, rest @ ..] => {
            if !document.is_object() {
                *document = Json::Object(Map::new());
            }
            put(&mut document[first.as_str()], rest, value);
        }
    }
}

#[test]
fn writing_out_every_default_of_the_config_changes_nothing() {
    let mut found = Vec::new();
    defaults(&config_schema(), &[], &mut found);
    assert!(found.len() >= 20, "{found:?}");
    let empty = service(&json!({})).unwrap();
    let mut all = json!({});
    for (path, default) in found {
        let mut one = json!({});
        put(&mut one, &path, default.clone());
        assert_eq!(service(&one).as_ref(), Ok(&empty), "{path:?}");
        put(&mut all, &path, default);
    }
    assert_eq!(service(&all), Ok(empty));
}

#[test]
fn writing_out_every_default_of_a_spec_changes_nothing() {
    let short = json!({ "name": "a", "plugin": "relay", "route": { "topics": ["t"] } });
    let expected = spec(&short).unwrap();
    let mut found = Vec::new();
    defaults(&handler_schema(), &[], &mut found);
    assert!(found.len() >= 18, "{found:?}");
    let mut all = short;
    for (path, default) in found {
        put(&mut all, &path, default);
    }
    assert_eq!(spec(&all), Ok(expected));
}

/// Asserts that every object of a schema rejects unknown names.
fn is_closed(schema: &Json, path: &str) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    assert_eq!(
        schema["additionalProperties"],
        json!(false),
        "{path} accepts any name"
    );
    for (name, property) in properties {
        assert!(
            property["description"]
                .as_str()
                .is_some_and(|text| text.ends_with('.')),
            "{path}.{name} is not described"
        );
        is_closed(property, &format!("{path}.{name}"));
    }
}

#[test]
fn every_field_is_described_and_unknown_names_are_rejected_everywhere() {
    is_closed(&config_schema(), "config");
    is_closed(&handler_schema(), "handler");
}

#[test]
fn all_names_of_the_reference_pages_exist() {
    let names = |schema: &Json, path: &[&str]| -> Vec<String> {
        let object = path
            .iter()
            .fold(schema, |schema, name| &schema["properties"][*name]);
        object["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    let config = config_schema();
    assert_eq!(
        names(&config, &[]),
        [
            "admin",
            "bridge",
            "emit",
            "handlers",
            "kafka",
            "logging",
            "plugins",
            "processing"
        ]
    );
    assert_eq!(
        names(&config, &["kafka"]),
        [
            "bootstrap_servers",
            "client",
            "clients",
            "group_id",
            "producer",
            "start"
        ]
    );
    assert_eq!(
        names(&config, &["processing"]),
        [
            "commit_interval",
            "drain_timeout",
            "guarantee",
            "max_uncommitted",
            "memory",
            "offset_out_of_range",
            "stall_timeout"
        ]
    );
    assert_eq!(
        names(&config, &["plugins"]),
        ["allow_unsigned", "cache", "folder"]
    );
    let handler = handler_schema();
    assert_eq!(
        names(&handler, &[]),
        [
            "config",
            "dead_letter",
            "enabled",
            "gate_closed",
            "group",
            "max_in_flight",
            "name",
            "on_failure",
            "order",
            "plugin",
            "pool",
            "restart",
            "retry",
            "route",
            "timeout",
            "version",
            "workers"
        ]
    );
    assert_eq!(handler["required"], json!(["name", "plugin", "route"]));
    assert_eq!(
        names(&handler, &["retry", "backoff"]),
        ["delay", "jitter", "max_delay", "multiplier"]
    );
}

#[test]
fn a_schema_validator_agrees_with_the_parser() {
    let config = jsonschema::draft202012::new(&config_schema()).unwrap();
    let handler = jsonschema::draft202012::new(&handler_schema()).unwrap();
    let good_config = json!({
        "kafka": { "clients": "${env:N}", "start": "latest", "client": { "session.timeout.ms": 6000 } },
        "processing": { "memory": "64MiB", "commit_interval": "1.5s" }, "admin": { "listen": "[::]:1" },
    });
    assert!(config.is_valid(&good_config));
    let when = json!({ "all": [
        { "header": "h", "in": ["a", 1] }, { "not": { "key": true, "prefix": "N" } }, { "partition": null, "ge": 3 },
    ]});
    let good = json!({ "name": "a", "plugin": "relay", "version": 1.2, "route": { "topics": ["/^x$/"], "when": when } });
    assert!(handler.is_valid(&good) && spec(&good).is_ok());
    let mut exported = good.clone();
    put(&mut exported, &["plugin".to_owned()], json!("orders/audit"));
    assert!(handler.is_valid(&exported) && spec(&exported).is_ok());
    let edits = [
        (vec!["workers"], json!(0)),
        (vec!["order"], json!("keys")),
        (vec!["group"], json!("dedicated")),
        (vec!["name"], json!("A b")),
        (vec!["plugin"], json!("orders/audit/more")),
        (vec!["plugin"], json!("/audit")),
        (vec!["plugin"], json!("../librelay.so")),
        (vec!["timeout"], json!(5)),
        (vec!["colour"], json!("red")),
        (vec!["retry", "backoff", "jitter"], json!(2)),
        (vec!["route", "topics"], json!([])),
        (vec!["route", "topics"], json!(["a b"])),
        (vec!["route", "when"], json!({ "any": [] })),
        (vec!["route", "when"], json!({ "header": "h" })),
        (
            vec!["route", "when"],
            json!({ "header": "h", "key": true, "equals": "x" }),
        ),
        (
            vec!["route", "when"],
            json!({ "partition": true, "prefix": "x" }),
        ),
        (vec!["dead_letter", "topic"], json!("{group}.x")),
        (vec!["config"], json!([])),
    ];
    for (path, value) in edits {
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        let mut bad = good.clone();
        put(&mut bad, &path, value);
        assert!(!handler.is_valid(&bad), "the schema accepts {bad}");
        assert!(spec(&bad).is_err(), "the parser accepts {bad}");
    }
    for bad in [
        json!({ "kafka": { "clients": 0 } }),
        json!({ "kafka": { "client": { "group.id": "x" } } }),
        json!({ "kafka": { "client": { "error_cb": "x" } } }),
        json!({ "handlers": { "etcd": {} } }),
        json!({ "processing": { "guarantee": "maybe" } }),
        json!({ "processing": { "memory": "256Mo" } }),
    ] {
        assert!(!config.is_valid(&bad) && service(&bad).is_err(), "{bad}");
    }
}
