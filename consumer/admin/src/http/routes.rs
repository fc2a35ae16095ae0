//! The routes and their handlers.

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
use serde::Deserialize;
use sluicegate_engine::status::{
    Explanation, Gate, HandlerReport, PartitionReport, ServiceProblem, ServiceReport,
};
use sluicegate_pool::clock::now_ms;
use tokio::sync::Semaphore;

use super::answer::Refusal;
use super::bodies::{
    ControlPlaneAcceptance, GateBody, GateChange, HandlerRestart, Readiness, StatusReport,
};
use super::origin;
use crate::{GateError, ServiceSlot, ServiceView, metrics, openapi};

/// How long pumps may take to report.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);
/// The same for readiness; below the one-second default timeout of Kubernetes probes.
const READY_DEADLINE: Duration = Duration::from_millis(500);
/// Upper bound for a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum request body in bytes; the only body that the API takes holds one boolean.
const BODY_LIMIT: usize = 4 * 1024;
/// Maximum number of concurrent queries to the service.
const MAX_CONCURRENT_QUERIES: usize = 16;

#[derive(Clone)]
struct Admin {
    service: Arc<ServiceSlot>,
    query_permits: Arc<Semaphore>,
    /// Readiness bypasses the query limit: a probe is answered however many queries are in progress.
    probe: Arc<Probe>,
}

/// The last readiness result, and when its evaluation started.
#[derive(Default)]
struct Probe(tokio::sync::Mutex<Option<(Instant, Readiness)>>);

const STARTING: &str =
    "the service is starting: reading specs and loading plugins; see its log for progress";

impl Admin {
    fn service(&self) -> Result<Arc<dyn ServiceView>, Refusal> {
        self.service
            .get()
            .cloned()
            .ok_or_else(|| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", STARTING))
    }

    /// Readiness according to the service's report. Evaluations are serialized: a request that waited for an evaluation
    /// which started after the request arrived reuses its result.
    async fn readiness(&self) -> Result<Readiness, Refusal> {
        let arrived = Instant::now();
        let Some(view) = self.service.get().cloned() else {
            return Ok(Readiness::of(Err(STARTING.to_owned()), Vec::new()));
        };
        let mut last = self.probe.0.lock().await;
        if let Some((started, readiness)) = &*last
            && *started >= arrived
        {
            return Ok(readiness.clone());
        }
        let started = Instant::now();
        let task = tokio::task::spawn_blocking(move || view.report(READY_DEADLINE));
        let report = task.await.map_err(|_| query_failed())?;
        let readiness = Readiness::of(report.readiness(now_ms()), report.facts.problems);
        *last = Some((started, readiness.clone()));
        Ok(readiness)
    }

    /// Runs a query on a blocking thread; fails with `busy` at the limit of concurrent queries.
    async fn query<T: Send + 'static>(
        &self,
        run: impl FnOnce(&dyn ServiceView) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let Ok(permit) = Arc::clone(&self.query_permits).try_acquire_owned() else {
            let message = "too many concurrent requests; retry in a moment";
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                message,
            ));
        };
        let view = self.service()?;
        let answer = tokio::task::spawn_blocking(move || {
            let answer = run(view.as_ref());
            drop(permit);
            answer
        });
        answer.await.map_err(|_| query_failed())
    }

    async fn report(&self) -> Result<ServiceReport, Refusal> {
        self.query(|view| view.report(REPORT_DEADLINE)).await
    }
}

/// A body that must be a JSON object: serde would also accept a list of the values.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        sluicegate_sdk::json::read(from).map(Self)
    }
}

/// The routes of a service.
pub(super) fn router(service: Arc<ServiceSlot>) -> Router {
    let admin = Admin {
        service,
        query_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_QUERIES)),
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
                "no route `{}`; see /api/v1/openapi.json",
                request.uri().path()
            );
            Refusal::not_found(message)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!(
                "`{}` does not support {}",
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

fn query_failed() -> Refusal {
    Refusal::failed("the service failed to answer; see its log")
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("request timed out after {} s", REQUEST_TIMEOUT.as_secs());
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
    let message = format!("no handler `{name}`; known handlers: {}", known.join(", "));
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
    let Path((topic, partition)) = path.map_err(invalid_path)?;
    explain(admin, topic, partition, None).await
}

async fn explain_record(
    State(admin): State<Admin>,
    path: Result<Path<(String, i32, i64)>, PathRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Path((topic, partition, offset)) = path.map_err(invalid_path)?;
    explain(admin, topic, partition, Some(offset)).await
}

async fn explain(
    admin: Admin,
    topic: String,
    partition: i32,
    offset: Option<i64>,
) -> Result<Json<Explanation>, Refusal> {
    let place = format!("{topic}/{partition}");
    let query = move |view: &dyn ServiceView| {
        let found = view.explain(&topic, partition, offset, REPORT_DEADLINE);
        found.ok_or_else(|| not_assigned(&place, &topic, &view.report(REPORT_DEADLINE)))
    };
    let found = admin.query(query).await?;
    found.map(Json).map_err(Refusal::not_found)
}

/// Says that a partition is not assigned here, with the client, group and topic problems that may explain it.
fn not_assigned(place: &str, topic: &str, report: &ServiceReport) -> String {
    let mut text = format!("{place} is not assigned to this process; see /api/v1/partitions");
    let may_be_why =
        |problem: &&ServiceProblem| problem.kind.is_of_client() || problem.is_missing_topic(topic);
    for problem in report.facts.problems.iter().filter(may_be_why) {
        text.push_str("; ");
        text.push_str(&problem.sentence(now_ms()));
    }
    text
}

fn invalid_path(rejection: PathRejection) -> Refusal {
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
        .query(move |view| view.set_gate(&handler, body.open))
        .await?;
    written.map_err(refused)?;
    Ok(Json(GateChange {
        name,
        gate: if body.open { Gate::Open } else { Gate::Closed },
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
    let restarted = admin.query(move |view| view.restart(&handler)).await?;
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
    let accepted = admin.query(|view| view.accept_control_plane()).await?;
    Ok(Json(ControlPlaneAcceptance { accepted }))
}

fn refused(error: GateError) -> Refusal {
    let (status, code) = match error {
        GateError::Unknown { .. } => (StatusCode::NOT_FOUND, "not_found"),
        GateError::Removed { .. } => (StatusCode::CONFLICT, "removed"),
        GateError::NotWritten { .. } => (StatusCode::CONFLICT, "not_written"),
        GateError::NotClosed { .. } => (StatusCode::CONFLICT, "not_closed"),
        GateError::NotServing { .. } => (StatusCode::CONFLICT, "not_serving"),
    };
    Refusal::new(status, code, error.to_string())
}
