//! The admin HTTP server of a bridge: health, metrics and its report.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use sluicegate_bridge::BridgeReport;
use tokio::net::TcpListener;

use super::answer::Refusal;
use super::server;
use crate::metrics;

/// Returns a bridge's current report.
pub type BridgeReporter = Arc<dyn Fn() -> BridgeReport + Send + Sync>;

/// Serves requests about a bridge until `stop` resolves, then completes the requests in progress.
pub async fn serve_bridge(
    listener: TcpListener,
    report: BridgeReporter,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    server::serve(listener, bridge_router(report), stop).await;
}

/// The routes of a bridge.
pub fn bridge_router(report: BridgeReporter) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(prometheus))
        .route("/api/v1/bridge", get(full_report))
        .fallback(|request: Request| async move {
            let path = request.uri().path();
            Refusal::not_found(format!(
                "no route `{path}`; a bridge serves /livez, /readyz, /metrics and /api/v1/bridge"
            ))
        })
        .with_state(report)
}

async fn ready(State(report): State<BridgeReporter>) -> Result<&'static str, Refusal> {
    let problems = report().problems();
    if problems.is_empty() {
        return Ok("ready\n");
    }
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Err(Refusal::new(status, "not_ready", problems.join("; ")))
}

async fn prometheus(State(report): State<BridgeReporter>) -> Response {
    let text = metrics::encode_bridge(&report());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn full_report(State(report): State<BridgeReporter>) -> Json<BridgeReport> {
    Json(report())
}
