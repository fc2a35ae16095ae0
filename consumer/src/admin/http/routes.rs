//! The routes and what answers them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::answer::{ErrorDetail, Refusal};
use super::origin;
use crate::admin::view::now_ms;
use crate::admin::{
    CommitCounts, Explanation, Gate, GateError, HandlerReport, PartitionReport, ServiceInfo,
    ServiceProblem, ServiceReport, ServiceSlot, ServiceView, TopicReport, metrics, openapi,
};

/// How long pumps have to answer.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);
/// How long they have when readiness is asked: probes give up after a second.
const READY_DEADLINE: Duration = Duration::from_millis(500);
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest request body in bytes; the only body there is holds one boolean.
const BODY_LIMIT: usize = 4 * 1024;
/// Requests that may ask the service something at the same time.
const MAX_ASKING: usize = 16;

#[derive(Clone)]
struct Admin {
    service: Arc<ServiceSlot>,
    asking: Arc<Semaphore>,
    /// Readiness has its own way past the others: however many of them there are, a probe is answered.
    probe: Arc<Probe>,
}

/// The last answer to readiness, and when it was begun.
#[derive(Default)]
struct Probe(tokio::sync::Mutex<Option<(Instant, Readiness)>>);

const STARTING: &str =
    "the service is starting: specs are read and plugins are loaded; its log says how that goes";

impl Admin {
    fn service(&self) -> Result<Arc<dyn ServiceView>, Refusal> {
        self.service
            .get()
            .cloned()
            .ok_or_else(|| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", STARTING))
    }

    /// Where the service stands, by its report alone. At most one question at a time goes to it, however many ask here;
    /// whoever has waited for one that was begun after they came is content with its answer.
    async fn readiness(&self) -> Result<Readiness, Refusal> {
        let came = Instant::now();
        let Some(view) = self.service.get().cloned() else {
            return Ok(Readiness::of(Err(STARTING.to_owned()), Vec::new()));
        };
        let mut last = self.probe.0.lock().await;
        if let Some((begun, readiness)) = &*last
            && *begun >= came
        {
            return Ok(readiness.clone());
        }
        let begun = Instant::now();
        let asked = tokio::task::spawn_blocking(move || view.report(READY_DEADLINE));
        let report = asked.await.map_err(|_| cannot_answer())?;
        let readiness = Readiness::of(report.readiness(now_ms()), report.facts.problems);
        *last = Some((begun, readiness.clone()));
        Ok(readiness)
    }

    /// Runs a question where blocking is allowed; refuses when too many are under way.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn ServiceView) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let Ok(permit) = Arc::clone(&self.asking).try_acquire_owned() else {
            let message = "too many requests at once; ask again in a moment";
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                message,
            ));
        };
        let view = self.service()?;
        let answer = tokio::task::spawn_blocking(move || {
            let answer = question(view.as_ref());
            drop(permit);
            answer
        });
        answer.await.map_err(|_| cannot_answer())
    }

    async fn report(&self) -> Result<ServiceReport, Refusal> {
        self.ask(|view| view.report(REPORT_DEADLINE)).await
    }
}

/// The service as a whole, as `/api/v1/status` gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// Version, group, snapshot.
    #[serde(flatten)]
    pub facts: ServiceInfo,
    /// As `/readyz` says: the group was joined, Kafka is not away for long, and some enabled handler takes records.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// Bytes of records in flight.
    pub in_flight_bytes: u64,
    /// Records in flight.
    pub in_flight_records: u64,
    /// Commits.
    pub commits: CommitCounts,
    /// Topics, by name.
    pub topics: Vec<TopicReport>,
    /// Number of handlers.
    pub handlers: usize,
    /// Number of partitions.
    pub partitions: usize,
    /// Partitions whose frontier has not moved for `stall_timeout` while records wait.
    pub stalled: Vec<String>,
}

/// The answer of `/readyz`, with 200 or 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// Whether it is ready.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// What does not progress, and what else an operator should mend. Most of it makes nobody unready.
    pub problems: Vec<ServiceProblem>,
}

impl Readiness {
    fn of(ready: Result<(), String>, problems: Vec<ServiceProblem>) -> Self {
        let error = ready.err().map(|message| ErrorDetail {
            code: "not_ready".to_owned(),
            message,
        });
        Self {
            ready: error.is_none(),
            error,
            problems,
        }
    }
}

/// A body that is an object: serde would take a list of its values too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        sluicegate_sdk::json::read(from).map(Self)
    }
}

/// The body of a gate change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateBody {
    /// Open (`true`) or shut (`false`).
    pub open: bool,
}

/// What a gate change did: the control plane holds the new value, and the service runs by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GateChange {
    /// The handler.
    pub name: String,
    /// Its gate as it is.
    pub gate: Gate,
}

/// What a restart did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerRestart {
    /// The handler.
    pub name: String,
    /// The generation that serves from now on.
    pub generation: u64,
    /// Whether it was built anew. Otherwise what is loaded was reset: no plugin in the folder serves the spec any more.
    #[serde(default = "rebuilt")]
    pub rebuilt: bool,
}

/// What a member of an earlier version does, which does not say it.
fn rebuilt() -> bool {
    true
}

/// What `control-plane/accept` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlPlaneAcceptance {
    /// Whether something was held back, which is applied from now on.
    pub accepted: bool,
}

/// The routes over a service.
pub(super) fn router(service: Arc<ServiceSlot>) -> Router {
    let admin = Admin {
        service,
        asking: Arc::new(Semaphore::new(MAX_ASKING)),
        probe: Arc::default(),
    };
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(prometheus))
        .route("/api/v1/status", get(status))
        .route("/api/v1/handlers", get(handlers))
        .route("/api/v1/handlers/{name}", get(handler))
        .route("/api/v1/handlers/{name}/gate", put(gate))
        .route("/api/v1/handlers/{name}/restart", post(restart))
        .route("/api/v1/control-plane/accept", post(accept))
        .route("/api/v1/partitions", get(partitions))
        .route("/api/v1/explain/{topic}/{partition}", get(explain_frontier))
        .route(
            "/api/v1/explain/{topic}/{partition}/{offset}",
            get(explain_record),
        )
        .route(
            "/api/v1/openapi.json",
            get(|| async { Json(openapi::document()) }),
        )
        .fallback(|request: Request| async move {
            let message = format!(
                "nothing at `{}`; see /api/v1/openapi.json",
                request.uri().path()
            );
            Refusal::not_found(message)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!(
                "`{}` does not take {}",
                request.uri().path(),
                request.method()
            );
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                message,
            )
        })
        .layer(middleware::from_fn(limit_time))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(admin)
}

fn cannot_answer() -> Refusal {
    Refusal::failed("the service could not answer; its log says why")
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message).into_response()
        }
    }
}

async fn ready(State(admin): State<Admin>) -> Result<(StatusCode, Json<Readiness>), Refusal> {
    let readiness = admin.readiness().await?;
    let status = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((status, Json(readiness)))
}

async fn prometheus(State(admin): State<Admin>) -> Result<Response, Refusal> {
    let text = metrics::encode(&admin.report().await?);
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(admin): State<Admin>) -> Result<Json<StatusReport>, Refusal> {
    let report = admin.report().await?;
    let ready = report.readiness(now_ms());
    let stalled = report
        .partitions
        .iter()
        .filter(|partition| partition.stalled);
    let stalled = stalled
        .map(|p| format!("{}/{}", p.topic, p.partition))
        .collect();
    Ok(Json(StatusReport {
        ready: ready.is_ok(),
        reason: ready.err(),
        in_flight_bytes: report.in_flight_bytes,
        in_flight_records: report.in_flight_records,
        commits: report.commits,
        handlers: report.handlers.len(),
        partitions: report.partitions.len(),
        stalled,
        topics: report.topics,
        facts: report.facts,
    }))
}

async fn handlers(State(admin): State<Admin>) -> Result<Json<Vec<HandlerReport>>, Refusal> {
    Ok(Json(admin.report().await?.handlers))
}

async fn handler(
    State(admin): State<Admin>,
    Path(name): Path<String>,
) -> Result<Json<HandlerReport>, Refusal> {
    let report = admin.report().await?;
    let known: Vec<&str> = report.handlers.iter().map(|h| h.name.as_str()).collect();
    let message = format!("no handler `{name}`; there are: {}", known.join(", "));
    let found = report.handlers.into_iter().find(|h| h.name == name);
    found.map(Json).ok_or_else(|| Refusal::not_found(message))
}

async fn partitions(State(admin): State<Admin>) -> Result<Json<Vec<PartitionReport>>, Refusal> {
    Ok(Json(admin.report().await?.partitions))
}

async fn explain_frontier(
    State(admin): State<Admin>,
    path: Result<Path<(String, i32)>, PathRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Path((topic, partition)) = path.map_err(bad_place)?;
    explain(admin, topic, partition, None).await
}

async fn explain_record(
    State(admin): State<Admin>,
    path: Result<Path<(String, i32, i64)>, PathRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Path((topic, partition, offset)) = path.map_err(bad_place)?;
    explain(admin, topic, partition, Some(offset)).await
}

async fn explain(
    admin: Admin,
    topic: String,
    partition: i32,
    offset: Option<i64>,
) -> Result<Json<Explanation>, Refusal> {
    let place = format!("{topic}/{partition}");
    let asked = move |view: &dyn ServiceView| {
        let found = view.explain(&topic, partition, offset, REPORT_DEADLINE);
        found.ok_or_else(|| not_ours(&place, &topic, &view.report(REPORT_DEADLINE)))
    };
    let found = admin.ask(asked).await?;
    found.map(Json).map_err(Refusal::not_found)
}

/// That a partition is not ours, and what of the client, the group or the topic may be the reason.
fn not_ours(place: &str, topic: &str, report: &ServiceReport) -> String {
    let mut text = format!("{place} is not assigned to this process; see /api/v1/partitions");
    let may_be_why =
        |problem: &&ServiceProblem| problem.kind.is_of_client() || problem.is_missing_topic(topic);
    for problem in report.facts.problems.iter().filter(may_be_why) {
        text.push_str("; ");
        text.push_str(&problem.sentence());
    }
    text
}

fn bad_place(rejection: PathRejection) -> Refusal {
    let message = format!(
        "{}; partition and offset are numbers: /api/v1/explain/TOPIC/PARTITION[/OFFSET]",
        rejection.body_text()
    );
    Refusal::bad_request(message)
}

async fn gate(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Object<GateBody>>, JsonRejection>,
) -> Result<Json<GateChange>, Refusal> {
    origin::check(peer, &headers)?;
    let Json(Object(body)) = body.map_err(|rejection| {
        Refusal::bad_request(format!(
            "{}; send {{\"open\": true}} as JSON",
            rejection.body_text()
        ))
    })?;
    let handler = name.clone();
    let written = admin
        .ask(move |view| view.set_gate(&handler, body.open))
        .await?;
    written.map_err(refused)?;
    Ok(Json(GateChange {
        name,
        gate: if body.open { Gate::Open } else { Gate::Shut },
    }))
}

async fn restart(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<HandlerRestart>, Refusal> {
    origin::check(peer, &headers)?;
    let handler = name.clone();
    let restarted = admin.ask(move |view| view.restart(&handler)).await?;
    let restarted = restarted.map_err(refused)?;
    Ok(Json(HandlerRestart {
        name,
        generation: restarted.generation,
        rebuilt: restarted.rebuilt,
    }))
}

async fn accept(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Result<Json<ControlPlaneAcceptance>, Refusal> {
    origin::check(peer, &headers)?;
    let accepted = admin.ask(|view| view.accept_control_plane()).await?;
    Ok(Json(ControlPlaneAcceptance { accepted }))
}

fn refused(error: GateError) -> Refusal {
    let (status, code) = match error {
        GateError::Unknown { .. } => (StatusCode::NOT_FOUND, "not_found"),
        GateError::Removed { .. } => (StatusCode::CONFLICT, "removed"),
        GateError::NotWritten { .. } => (StatusCode::CONFLICT, "not_written"),
        GateError::NotShut { .. } => (StatusCode::CONFLICT, "not_shut"),
        GateError::NotServing { .. } => (StatusCode::CONFLICT, "not_serving"),
    };
    Refusal::new(status, code, error.to_string())
}
