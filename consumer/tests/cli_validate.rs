//! `sluicegate validate` and `run` on invalid input: exit code 2, every problem with its location, as lines and as JSON.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::{Command, Output};

const SPEC: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";

fn sluicegate(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(arguments)
        .current_dir(folder)
        .env("SLUICEGATE__KAFKA__GROUP_ID", "from-the-environment")
        .output()
        .unwrap()
}

fn folder(config: &str, spec: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("handlers.d")).unwrap();
    std::fs::write(folder.path().join("sluicegate.yaml"), config).unwrap();
    std::fs::write(folder.path().join("handlers.d/a.yaml"), spec).unwrap();
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_problem_is_reported_at_once_and_the_exit_code_is_2() {
    let folder = folder(
        "kafka: { clinets: 2, client: { group.id: x } }\n",
        &format!("{SPEC}workers: 0\n"),
    );
    let out = sluicegate(folder.path(), &["validate", "-c", "sluicegate.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(
        text(&out.stderr),
        "error: handlers.d/a.yaml:4:10: workers: expected a whole number from 1 to 1024, found the number 0\n\
         error: sluicegate.yaml:1:10: kafka.clinets: `clinets` is unknown; did you mean `clients`?\n\
         error: sluicegate.yaml:1:32: kafka.client.group.id: `group.id` is managed by the service; set `kafka.group_id`\n"
    );
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["valid"], false);
    assert_eq!(json["plugins_checked"], false);
    assert_eq!(json["problems"][0]["path"], "workers");
    assert_eq!(json["problems"][0]["line"], 4);

    let table = ["validate", "-c", "sluicegate.yaml", "--output", "table"];
    let out = sluicegate(folder.path(), &table);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0));
}

#[test]
fn run_refuses_what_validate_refuses() {
    let folder = folder("{}\n", "name: a\nplugin: relay\nroutes: {}\n");
    let out = sluicegate(folder.path(), &["run", "-c", "sluicegate.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    let message = text(&out.stderr);
    assert!(
        message
            .contains("handlers.d/a.yaml:3:1: routes: `routes` is unknown; did you mean `route`?"),
        "{message}"
    );
    let out = sluicegate(folder.path(), &["run", "-c", "missing.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("missing.yaml: cannot be read"));
}

#[test]
fn a_value_that_librdkafka_refuses_is_reported_by_validate_and_at_the_start_of_run() {
    for (map, key, value) in [
        ("client", "session.timeout.ms", "abc"),
        ("client", "partition.assignment.strategy", "nonsense"),
        ("producer", "max.in.flight", "6"),
    ] {
        let config = format!("kafka: {{ {map}: {{ {key}: {value} }} }}\n");
        let folder = folder(&config, SPEC);
        for command in ["validate", "run"] {
            let out = sluicegate(folder.path(), &[command, "-c", "sluicegate.yaml"]);
            assert_eq!(out.status.code(), Some(2), "{command}: {key}");
            let message = text(&out.stderr);
            let column = 1 + config.find(value).unwrap();
            let place = format!("error: sluicegate.yaml:1:{column}: kafka.{map}: ");
            assert!(
                message.contains(&place) && message.contains(key),
                "{message}"
            );
        }
    }
}

#[test]
fn a_good_config_is_valid_and_overrides_are_checked_too() {
    let folder = folder("{}\n", SPEC);
    let good = [
        "validate",
        "-c",
        "sluicegate.yaml",
        "--set",
        "processing.memory=1GiB",
    ];
    let out = sluicegate(folder.path(), &good);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let bad = [
        "validate",
        "-c",
        "sluicegate.yaml",
        "--set",
        "processing.memroy=1GiB",
    ];
    let out = sluicegate(folder.path(), &bad);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("did you mean `memory`? (set by --set processing.memroy)"));
}

/// A result without problems says that it has not searched for the plugins, to people and to programs.
#[test]
fn a_valid_config_is_reported_with_whether_its_plugins_were_checked() {
    let folder = folder("{}\n", SPEC);
    let validate = |form| {
        let out = sluicegate(folder.path(), &["validate", "--output", form]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let checked = || {
        let json: serde_json::Value = serde_json::from_str(&validate("json")).unwrap();
        assert_eq!(json["valid"], true);
        json["plugins_checked"].clone()
    };
    let plugins = folder.path().join("plugins");
    assert_eq!(checked(), false);
    std::fs::write(&plugins, "").unwrap();
    assert_eq!(checked(), false);
    let printed = validate("table");
    assert!(
        printed.contains("plugins were not checked: `plugins.folder` is not a readable folder"),
        "{printed}"
    );
    std::fs::remove_file(&plugins).unwrap();
    std::fs::create_dir(&plugins).unwrap();
    std::fs::remove_file(folder.path().join("handlers.d/a.yaml")).unwrap();
    assert_eq!(checked(), true);
    let printed = validate("table");
    assert!(!printed.contains("not checked"), "{printed}");
}

#[test]
fn a_spec_that_no_plugin_serves_is_reported_if_there_is_a_plugins_folder() {
    let folder = folder("plugins: { allow_unsigned: true }\n", SPEC);
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    std::fs::write(folder.path().join("plugins/libbroken.so"), "no library").unwrap();
    let out = sluicegate(folder.path(), &["validate", "-c", "sluicegate.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    let message = text(&out.stderr);
    assert!(
        message.starts_with(
            "error: handlers.d/a.yaml:2:9: handler `a`: no plugin in `plugins` is named `relay`; available: "
        ),
        "{message}"
    );
    assert!(message.contains("libbroken.so"), "{message}");
}

#[test]
fn the_schemas_are_printed_with_their_defaults() {
    let folder = folder("{}\n", SPEC);
    for (kind, field, default) in [
        ("config", "logging", "{}"),
        ("handler", "timeout", "\"5s\""),
    ] {
        let out = sluicegate(folder.path(), &["schema", kind]);
        let schema: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(schema["properties"][field]["default"].to_string(), default);
    }
}

/// The content of a document can neither forge a line of the errors nor send terminal escapes.
#[test]
fn a_problem_is_one_line_whatever_the_document_holds() {
    let folder = folder(
        "kafka: { \"x\\nerror: forged\\e[2J\": 1 }\n",
        "name: a\nplugin: relay\nroute: { topics: [t] }\n",
    );
    let out = sluicegate(folder.path(), &["validate", "-c", "sluicegate.yaml"]);
    assert_eq!(out.status.code(), Some(2));
    let message = text(&out.stderr);
    assert_eq!(message.lines().count(), 1, "{message:?}");
    assert!(
        message.contains("x\\nerror: forged\\u{1b}[2J"),
        "{message:?}"
    );
}

/// Even if stderr cannot be written (a full disk, a closed pipe), the exit code is correct.
#[test]
fn a_broken_stderr_changes_no_exit_code() {
    let folder = folder("{ kafka: { clinets: 2 } }\n", SPEC);
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let ends: [std::process::Stdio; 2] = [closed.into(), full.into()];
    for stderr in ends {
        let status = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "-c", "sluicegate.yaml"])
            .current_dir(folder.path())
            .stderr(stderr)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(2), "{status}");
    }
}
