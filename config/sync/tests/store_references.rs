//! References in a store's values resolve only to variables and files that the service config lists (G15).
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::Arc;

use sluicegate_config::Environment;
use sluicegate_config::control::ControlKey;
use sluicegate_config::control::Rollout;
use sluicegate_config::service::References;
use sluicegate_store::{Expected, MemoryStore, Store};
use sluicegate_sync::source::{SpecSource, StoreSource, StoreSourceSettings};

fn spec(more: &str) -> String {
    format!("name: a\nplugin: relay\nroute: {{ topics: [t] }}\n{more}")
}

fn put(store: &MemoryStore, key: &ControlKey, value: &[u8]) {
    store.write(key, Some(value), Expected::Any).unwrap();
}

/// The result of `config: { x: TEXT }` in each key that can have a config: its value, or the problems.
fn refer(references: &References, text: &str) -> Vec<Result<String, String>> {
    let spec_text = spec(&format!("config: {{ x: \"{text}\" }}\n"));
    let json = serde_json::json!({ "x": text });
    let rollout = |spec, config| {
        let members = vec!["host-1".to_owned()];
        let id = "r".to_owned();
        Rollout {
            id,
            spec,
            config,
            members,
            ..Rollout::default()
        }
        .to_json()
    };
    let plain = spec("");
    let environment = Environment::from_iter([("SECRET", "hidden"), ("OTHER", "not for specs")]);
    let spec_key = ControlKey::spec("a").unwrap();
    let config_key = ControlKey::config("a").unwrap();
    let rollout_key = ControlKey::Rollout("a".to_owned());
    [
        (spec_key.clone(), spec_text.clone().into_bytes()),
        (config_key, json.to_string().into_bytes()),
        (rollout_key.clone(), rollout(Some(spec_text), None)),
        (rollout_key, rollout(None, Some(json))),
    ]
    .into_iter()
    .map(|(key, value)| {
        let store = MemoryStore::new();
        put(&store, &spec_key, plain.as_bytes());
        put(&store, &key, &value);
        let settings = StoreSourceSettings {
            references: references.clone(),
            environment: environment.clone(),
            member: "host-1".to_owned(),
            ..StoreSourceSettings::default()
        };
        match StoreSource::new(Arc::new(store), settings).snapshot() {
            Err(refused) => Err(refused.to_string()),
            Ok(now) => match now.rejections.first() {
                Some(rejection) => Err(rejection.problems.to_string()),
                None => Ok(now.handlers["a"].config.expose()["x"].to_string()),
            },
        }
    })
    .collect()
}

#[test]
fn values_of_a_store_can_reference_only_listed_variables_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("secrets.d");
    std::fs::create_dir_all(inside.join("..data")).unwrap();
    std::fs::write(inside.join("..data/token"), "inside\n").unwrap();
    std::fs::write(folder.path().join("sluicegate.yaml"), "outside").unwrap();
    std::os::unix::fs::symlink("..data/token", inside.join("token")).unwrap();
    std::os::unix::fs::symlink("../sluicegate.yaml", inside.join("leads-out")).unwrap();
    let pipe = std::process::Command::new("mkfifo")
        .arg(inside.join("pipe"))
        .status();
    assert!(pipe.unwrap().success());
    let listed = References {
        env: ["SECRET".to_owned(), "MISSING".to_owned()].into(),
        folder: Some(inside),
    };
    for (text, expected) in [
        ("a ${env:SECRET}", "\"a hidden\""),
        ("${file:token}", "\"inside\""),
        ("${file:./..data/token}", "\"inside\""),
    ] {
        for value in refer(&listed, text) {
            assert_eq!(value.as_deref(), Ok(expected), "{text}");
        }
        for value in refer(&References::default(), text) {
            let refused = value.unwrap_err();
            assert!(
                refused.contains("is not allowed in a store's keys"),
                "{refused}"
            );
            assert!(refused.contains("`handlers.references."), "{refused}");
        }
    }
    for (text, words) in [
        ("${env:OTHER}", "is not allowed in a store's keys"),
        (
            "${env:NOT_THERE_AT_ALL}",
            "is not allowed in a store's keys",
        ),
        ("${env:MISSING}", "is not set"),
        ("${file:../sluicegate.yaml}", "absolute or contains `..`"),
        ("${file:/etc/hostname}", "absolute or contains `..`"),
        ("${file:leads-out}", "does not exist"),
        ("${file:no-such}", "does not exist"),
        ("${file:pipe}", "is not a regular file"),
        ("${vault:x}", "is not a valid reference"),
    ] {
        for value in refer(&listed, text) {
            let refused = value.unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
            for hidden in ["not for specs", "outside", "hidden"] {
                assert!(!refused.contains(hidden), "{text}: {refused}");
            }
        }
    }
}
