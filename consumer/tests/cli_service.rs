//! Commands that query a running service, against a scripted one, and their errors when there is none.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_admin::{GateError, Restarted, ServiceView, http};
use sluicegate_engine::status::{
    Explanation, HandlerReport, HeldBy, RecordStatus, ServiceReport, WaitsFor,
};

#[derive(Default)]
struct Scripted {
    gates: Mutex<Vec<(String, bool)>>,
}

impl ServiceView for Scripted {
    fn report(&self, _deadline: Duration) -> ServiceReport {
        let handler = HandlerReport {
            name: "relay".into(),
            version: "1.0.0".into(),
            ..HandlerReport::default()
        };
        ServiceReport {
            handlers: vec![handler],
            ..ServiceReport::default()
        }
    }

    fn explain(
        &self,
        topic: &str,
        partition: i32,
        offset: Option<i64>,
        _: Duration,
    ) -> Option<Explanation> {
        let held = HeldBy {
            offset: offset.unwrap_or(7),
            handler: "relay".into(),
            attempt: 2,
            since_ms: 0,
            waits_for: WaitsFor::Handler,
        };
        (topic == "a.b c").then(|| Explanation {
            topic: topic.to_owned(),
            partition,
            offset: offset.unwrap_or(7),
            frontier: 7,
            delivered: 9,
            status: RecordStatus::InFlight,
            reason: None,
            held_by: vec![held],
        })
    }

    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError> {
        if handler != "relay" {
            return Err(GateError::Unknown {
                name: handler.to_owned(),
                known: "relay".to_owned(),
            });
        }
        self.gates
            .lock()
            .expect("no panic while it was held")
            .push((handler.to_owned(), open));
        Ok(())
    }

    fn restart(&self, handler: &str) -> Result<Restarted, GateError> {
        match handler {
            "relay" => Ok(Restarted {
                generation: 3,
                rebuilt: true,
            }),
            "fileless" => Ok(Restarted {
                generation: 2,
                rebuilt: false,
            }),
            _ => Err(GateError::Removed {
                name: handler.to_owned(),
                in_flight: 2,
            }),
        }
    }
}

struct Service {
    view: Arc<Scripted>,
    admin: String,
    _runtime: tokio::runtime::Runtime,
}

fn start() -> Service {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let listener = runtime.block_on(http::bind(any)).expect("a free port");
    let admin = format!("http://{}", listener.local_addr().expect("an address"));
    let view = Arc::new(Scripted::default());
    let served: Arc<dyn ServiceView> = view.clone();
    runtime.spawn(http::serve(listener, served, std::future::pending()));
    Service {
        view,
        admin,
        _runtime: runtime,
    }
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.args(arguments).output().expect("the binary runs")
}

impl Service {
    fn run(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--admin", &self.admin]].concat())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn handlers_are_listed_as_json_away_from_a_terminal_and_as_a_table_on_request() {
    let service = start();
    let output = service.run(&["handlers", "list"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(listed[0]["name"], "relay");
    let table = text(
        &service
            .run(&["handlers", "list", "--output", "table"])
            .stdout,
    );
    assert!(table.starts_with("NAME   VERSION  GENERATION"), "{table}");
    assert!(
        table
            .lines()
            .nth(1)
            .is_some_and(|row| row.starts_with("relay  1.0.0")),
        "{table}"
    );
    let shown = service.run(&["handlers", "show", "relay", "--output", "json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["version"], "1.0.0");
}

#[test]
fn gates_are_written_through_the_service() {
    let service = start();
    let output = service.run(&["handlers", "off", "relay"]);
    let change: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(change, json!({ "name": "relay", "gate": "closed" }));
    let output = service.run(&["handlers", "on", "relay", "--output", "table"]);
    assert_eq!(text(&output.stdout), "gate of `relay` is open\n");
    let gates = service
        .view
        .gates
        .lock()
        .expect("no panic while it was held")
        .clone();
    assert_eq!(
        gates,
        [("relay".to_owned(), false), ("relay".to_owned(), true)]
    );
    for action in ["show", "off"] {
        let output = service.run(&["handlers", action, "unknown"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            text(&output.stderr),
            "error: no handler `unknown`; known handlers: relay\n"
        );
    }
}

#[test]
fn explain_names_the_handler_that_holds_a_record() {
    let service = start();
    let printed = text(
        &service
            .run(&["explain", "a.b c/3", "--output", "table"])
            .stdout,
    );
    assert!(
        printed.starts_with("a.b c/3/7 is in flight (frontier 7)\nhandler `relay`, attempt 2,"),
        "{printed}"
    );
    let output = service.run(&["explain", "a.b c/3/8"]);
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(explained["offset"], 8);
    let output = service.run(&["explain", "other/1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: other/1 is not assigned to this process"));
    let output = service.run(&["explain", "other"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("such as flights/3"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_unreachable_service_is_reported_with_a_remedy() {
    let output = run(&["handlers", "list", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("error: no service answers at http://127.0.0.1:1 ("),
        "{message}"
    );
    assert!(
        message.ends_with("start it with `sluicegate run`, or set --admin\n"),
        "{message}"
    );
    let output = run(&["handlers", "list", "--admin", "localhost"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn help_version_and_completions_go_to_the_standard_output() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    for command in ["produce", "handlers", "explain", "completions"] {
        assert!(
            text(&help.stdout).contains(command),
            "{}",
            text(&help.stdout)
        );
    }
    assert!(text(&run(&["--version"]).stdout).starts_with("sluicegate "));
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(
            output.status.success() && text(&output.stdout).contains("sluicegate"),
            "{shell}"
        );
    }
    let output = run(&["nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nonsense"));
}

#[test]
fn a_restart_reports_the_serving_generation_or_the_reason_for_none() {
    let service = start();
    let done = service.run(&["handlers", "restart", "relay", "--output", "table"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let printed = text(&done.stdout);
    assert!(
        printed.contains("`relay` is restarted: generation 3 is running"),
        "{printed}"
    );
    let reset = service.run(&["handlers", "restart", "fileless", "--output", "table"]);
    let printed = String::from_utf8_lossy(&reset.stdout).into_owned();
    assert!(
        printed.contains(
            "runs again from the loaded plugin, generation 2: no plugin in the plugins folder"
        ),
        "{printed}"
    );
    let gone = service.run(&["handlers", "restart", "gone"]);
    assert_eq!(gone.status.code(), Some(1));
    let printed = text(&gone.stderr);
    assert!(
        printed.contains("is deleted; it has 2 records left"),
        "{printed}"
    );
}
