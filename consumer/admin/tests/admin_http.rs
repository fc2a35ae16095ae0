//! The admin HTTP server over a scripted service: every route of its OpenAPI document, errors, and authorization of changes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_admin::{GateError, Restarted, ServiceSlot, ServiceView, http};
use sluicegate_engine::status::{
    Explanation, HandlerReport, PartitionReport, ProblemKind, RecordStatus, ServiceInfo,
    ServiceProblem, ServiceReport,
};

#[derive(Default)]
struct Scripted {
    stopping: AtomicBool,
    gates: Mutex<Vec<(String, bool)>>,
    /// Explanations of the topic `slow` block on it.
    slow: Mutex<Option<Receiver<()>>>,
    /// Number of blocked explanations.
    waiting: AtomicUsize,
}

impl ServiceView for Scripted {
    fn report(&self, _deadline: Duration) -> ServiceReport {
        let handler = HandlerReport {
            name: "relay".into(),
            ..HandlerReport::default()
        };
        let partition = PartitionReport {
            topic: "flights".into(),
            partition: 2,
            frontier: 40,
            stalled: true,
            ..PartitionReport::default()
        };
        let facts = ServiceInfo {
            stopping: self.stopping.load(Ordering::Relaxed),
            problems: vec![lost_group()],
            ..ServiceInfo::default()
        };
        ServiceReport {
            facts,
            handlers: vec![handler],
            partitions: vec![partition],
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
        if topic == "slow" {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let held = self.slow.lock().expect("no panic while it was held");
            let _ = held.as_ref().map(Receiver::recv);
        }
        (topic == "flights" && partition == 2).then(|| Explanation {
            topic: topic.to_owned(),
            partition,
            offset: offset.unwrap_or(40),
            frontier: 40,
            delivered: 50,
            status: RecordStatus::InFlight,
            reason: None,
            held_by: Vec::new(),
        })
    }

    fn set_gate(&self, handler: &str, open: bool) -> Result<(), GateError> {
        match handler {
            "relay" => {
                let mut gates = self.gates.lock().expect("no panic while it was held");
                gates.push((handler.to_owned(), open));
                Ok(())
            }
            "read-only" => Err(GateError::NotWritten {
                name: handler.to_owned(),
                reason: "the folder is read-only".to_owned(),
            }),
            other => Err(GateError::Unknown {
                name: other.to_owned(),
                known: "relay".to_owned(),
            }),
        }
    }

    fn restart(&self, handler: &str) -> Result<Restarted, GateError> {
        self.restarted(handler)
    }
}

fn lost_group() -> ServiceProblem {
    ServiceProblem {
        kind: ProblemKind::Group,
        what: "group g has revoked every partition".into(),
        since_ms: 7,
        count: 3,
        cause: "Broker: Group authorization failed".into(),
        remedy: "grant the service READ on the group".into(),
    }
}

impl Scripted {
    fn restarted(&self, handler: &str) -> Result<Restarted, GateError> {
        let name = handler.to_owned();
        match handler {
            "relay" => Ok(Restarted {
                generation: 7,
                rebuilt: true,
            }),
            "gone" => Err(GateError::Removed { name, in_flight: 3 }),
            "broken" => Err(GateError::NotServing {
                name,
                reason: "its config is refused".to_owned(),
            }),
            _ => Err(GateError::Unknown {
                name,
                known: "relay".to_owned(),
            }),
        }
    }
}

struct Running {
    view: Arc<Scripted>,
    base: String,
    agent: ureq::Agent,
    _runtime: tokio::runtime::Runtime,
}

fn start() -> Running {
    let view = Arc::new(Scripted::default());
    let slot = ServiceSlot::of(view.clone());
    start_with(view, Arc::new(slot))
}

fn start_with(view: Arc<Scripted>, slot: Arc<ServiceSlot>) -> Running {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let listener = runtime.block_on(http::bind(any)).expect("a free port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    runtime.spawn(http::serve_starting(listener, slot, std::future::pending()));
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    Running {
        view,
        base,
        agent: config.build().into(),
        _runtime: runtime,
    }
}

impl Running {
    fn get(&self, path: &str) -> (u16, String) {
        let mut response = self
            .agent
            .get(format!("{}{path}", self.base))
            .call()
            .expect("an answer");
        let body = response.body_mut().read_to_string().expect("a text");
        (response.status().as_u16(), body)
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    fn put(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        self.send(
            self.agent.put(format!("{}{path}", self.base)),
            headers,
            body,
        )
    }

    fn post(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.send(self.agent.post(format!("{}{path}", self.base)), headers, "")
    }

    fn send(
        &self,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value) {
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let mut response = request.send(body).expect("an answer");
        let text = response.body_mut().read_to_string().expect("a text");
        let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        (response.status().as_u16(), body)
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn every_documented_route_answers() {
    let service = start();
    let document = service.json("/api/v1/openapi.json");
    let paths = document["paths"].as_object().expect("paths");
    let expected = [
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/api/v1/handlers",
        "/api/v1/handlers/{name}",
        "/api/v1/handlers/{name}/gate",
        "/api/v1/handlers/{name}/restart",
        "/api/v1/control-plane/accept",
        "/api/v1/partitions",
        "/api/v1/explain/{topic}/{partition}",
        "/api/v1/explain/{topic}/{partition}/{offset}",
        "/api/v1/openapi.json",
    ];
    let mut listed: Vec<&str> = paths.keys().map(String::as_str).collect();
    let mut wanted = expected.to_vec();
    listed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    for (path, operations) in paths {
        let real = path
            .replace("{name}", "relay")
            .replace("{topic}", "flights")
            .replace("{partition}", "2")
            .replace("{offset}", "41");
        for method in operations.as_object().expect("operations").keys() {
            let status = match method.as_str() {
                "get" => service.get(&real).0,
                "put" => service.put(&real, &[JSON], r#"{"open": true}"#).0,
                "post" => service.post(&real, &[]).0,
                other => panic!("unexpected method {other}"),
            };
            assert_eq!(status, 200, "{method} {path}");
        }
    }
}

#[test]
fn readiness_lists_problems_and_gives_the_reason_when_not_ready() {
    let service = start();
    assert_eq!(service.get("/livez"), (200, "alive\n".to_owned()));
    let problems = json!([{
        "kind": "group",
        "what": "group g has revoked every partition",
        "since_ms": 7,
        "count": 3,
        "cause": "Broker: Group authorization failed",
        "remedy": "grant the service READ on the group",
    }]);
    let ready = json!({ "ready": true, "problems": problems });
    assert_eq!(service.json("/readyz"), ready);
    service.view.stopping.store(true, Ordering::Relaxed);
    let (status, body) = service.get("/readyz");
    assert_eq!(status, 503);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&body["ready"], &body["problems"]),
        (&json!(false), &problems)
    );
    assert_eq!(body["error"]["code"], "not_ready");
    let reason = &body["error"]["message"];
    assert!(
        reason.as_str().expect("a reason").contains("shutting down"),
        "{reason}"
    );
    let status = service.json("/api/v1/status");
    assert_eq!(
        (&status["ready"], &status["reason"]),
        (&json!(false), reason)
    );
    assert_eq!(status["problems"], problems);
    assert_eq!(status["stalled"], json!(["flights/2"]));
    let metrics = service.get("/metrics").1;
    assert!(
        metrics.contains("sluicegate_problems{kind=\"group\"} 1"),
        "{metrics}"
    );
}

#[test]
fn explain_takes_a_partition_or_a_record() {
    let service = start();
    assert_eq!(service.json("/api/v1/explain/flights/2")["offset"], 40);
    assert_eq!(service.json("/api/v1/explain/flights/2/47")["offset"], 47);
    for (path, status, words) in [
        (
            "/api/v1/explain/flights/9",
            404,
            "flights/9 is not assigned to this process; see /api/v1/partitions; group g has revoked every partition",
        ),
        (
            "/api/v1/explain/flights/two",
            400,
            "partition and offset are numbers",
        ),
        (
            "/api/v1/explain/flights/2/x",
            400,
            "partition and offset are numbers",
        ),
        (
            "/api/v1/handlers/unknown",
            404,
            "no handler `unknown`; known handlers: relay",
        ),
        (
            "/api/v2",
            404,
            "no route `/api/v2`; see /api/v1/openapi.json",
        ),
    ] {
        let (found, body) = service.get(path);
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let message = body["error"]["message"].as_str().expect("a message");
        assert_eq!(found, status, "{path}: {message}");
        assert!(message.contains(words), "{path}: {message}");
    }
    let (status, body) = service.put("/api/v1/status", &[JSON], "{}");
    assert_eq!(
        (status, &body["error"]["code"]),
        (405, &json!("method_not_allowed"))
    );
}

#[test]
fn gates_change_for_this_machine_and_not_for_a_page_of_another_site() {
    let service = start();
    let gate = "/api/v1/handlers/relay/gate";
    let (status, body) = service.put(gate, &[JSON], r#"{"open": false}"#);
    assert_eq!(
        (status, body),
        (200, json!({ "name": "relay", "gate": "closed" }))
    );
    for (headers, body, status) in [
        (
            vec![JSON, ("host", "evil.example")],
            r#"{"open": true}"#,
            403,
        ),
        (
            vec![JSON, ("origin", "http://evil.example")],
            r#"{"open": true}"#,
            403,
        ),
        (
            vec![("content-type", "text/plain")],
            r#"{"open": true}"#,
            400,
        ),
        (vec![JSON], r#"{"open": "yes"}"#, 400),
        (vec![JSON], "[true]", 400),
        (vec![JSON], r#"{"open": true, "closed": false}"#, 400),
        (vec![JSON], "", 400),
    ] {
        let (found, answer) = service.put(gate, &headers, body);
        assert_eq!(found, status, "{headers:?} {body}: {answer}");
    }
    let long = format!(r#"{{"open": {}true}}"#, " ".repeat(10_000));
    assert_eq!(service.put(gate, &[JSON], &long).0, 400);
    let (status, body) = service.put(
        "/api/v1/handlers/unknown/gate",
        &[JSON],
        r#"{"open": true}"#,
    );
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")));
    let (status, body) = service.put(
        "/api/v1/handlers/read-only/gate",
        &[JSON],
        r#"{"open": true}"#,
    );
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("not_written"))
    );
    let gates = service
        .view
        .gates
        .lock()
        .expect("no panic while it was held")
        .clone();
    assert_eq!(gates, [("relay".to_owned(), false)]);
}

#[test]
fn a_used_address_is_refused_with_the_key_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = taken.local_addr().expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let error = runtime
        .block_on(http::bind(listen))
        .expect_err("it is taken")
        .to_string();
    assert!(
        error.starts_with(&format!("cannot listen on {listen} for admin HTTP: ")),
        "{error}"
    );
    assert!(
        error.ends_with("; set `admin.listen` to a free address"),
        "{error}"
    );
}

#[test]
fn a_restart_reports_the_serving_generation_or_the_reason_for_none() {
    let service = start();
    let restart = |name: &str| service.post(&format!("/api/v1/handlers/{name}/restart"), &[]);
    let done = json!({ "name": "relay", "generation": 7, "rebuilt": true });
    assert_eq!(restart("relay"), (200, done));
    for (name, status, code, words) in [
        ("unknown", 404, "not_found", "known handlers: relay"),
        ("gone", 409, "removed", "it has 3 records left"),
        ("broken", 409, "not_serving", "its config is refused"),
    ] {
        let (found, body) = restart(name);
        let error = &body["error"];
        assert_eq!(
            (found, error["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{message}");
    }
    let page = [("origin", "http://elsewhere.example")];
    let (status, body) = service.post("/api/v1/handlers/relay/restart", &page);
    assert_eq!((status, &body["error"]["code"]), (403, &json!("forbidden")));
}

#[test]
fn a_starting_service_is_live_and_not_ready() {
    let (view, slot) = (
        Arc::new(Scripted::default()),
        Arc::new(ServiceSlot::default()),
    );
    let running = start_with(view.clone(), Arc::clone(&slot));
    assert_eq!(running.get("/livez"), (200, "alive\n".to_owned()));
    for path in ["/readyz", "/metrics", "/api/v1/status", "/api/v1/handlers"] {
        let (status, body) = running.get(path);
        assert_eq!(status, 503, "{path}: {body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["error"]["code"], "not_ready", "{path}");
    }
    slot.fill(view);
    assert_eq!(running.get("/readyz").0, 200);
    running.json("/api/v1/status");
}

/// Slow queries hold every permit; probes bypass the limit.
#[test]
fn probes_are_answered_while_queries_are_blocked() {
    let running = start();
    let (release, held) = channel();
    *running.view.slow.lock().expect("not poisoned") = Some(held);
    let path = format!("{}/api/v1/explain/slow/0", running.base);
    let queries: Vec<_> = (0..16)
        .map(|_| {
            let (agent, path) = (running.agent.clone(), path.clone());
            std::thread::spawn(move || agent.get(path).call().expect("an answer").status().as_u16())
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while running.view.waiting.load(Ordering::SeqCst) < 16 {
        assert!(Instant::now() < deadline, "the queries do not arrive");
        std::thread::yield_now();
    }
    assert_eq!(running.get("/api/v1/status").0, 503, "every permit is held");
    assert_eq!(running.get("/livez").0, 200);
    std::thread::scope(|scope| {
        let probes: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| running.get("/readyz").0))
            .collect();
        for probe in probes {
            assert_eq!(probe.join().expect("a probe"), 200);
        }
    });
    drop(release);
    for query in queries {
        assert_eq!(query.join().expect("a query"), 404);
    }
}
