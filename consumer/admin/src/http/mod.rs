//! The admin HTTP server: health, metrics and the JSON API.
//!
//! ```text
//!  GET  /livez /readyz /metrics
//!  GET  /api/v1/status, handlers, handlers/{name}, partitions, explain/{topic}/{partition}[/{offset}], openapi.json
//!  PUT  /api/v1/handlers/{name}/gate        only from this machine, never from another site's page (see `origin`)
//!  POST /api/v1/handlers/{name}/restart, control-plane/accept    the same
//! ```
//!
//! Every response under `/api` is JSON, including errors: `{"error": {"code": …, "message": …}}`.

mod answer;
mod bodies;
mod bridge;
mod origin;
mod routes;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::{ServiceSlot, ServiceView};

pub use answer::{ErrorBody, ErrorDetail};
pub use bodies::{
    ControlPlaneAcceptance, GateBody, GateChange, HandlerRestart, Readiness, StatusReport,
};
pub use bridge::{BridgeReporter, bridge_router, serve_bridge};

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The server cannot listen on the address.
    #[error(
        "cannot listen on {listen} for admin HTTP: {reason}; set `admin.listen` to a free address"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The operating system's error.
        reason: std::io::Error,
    },
    /// The bound address cannot be determined.
    #[error("cannot determine the admin HTTP address: {0}")]
    Address(std::io::Error),
}

/// Binds the address before the service starts, so that another service on the same address fails early.
///
/// # Errors
/// [`AdminError::Listen`].
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(listen)
        .await
        .map_err(|reason| AdminError::Listen { listen, reason })
}

/// Serves requests about `view` until `stop` resolves, then completes the requests in progress.
pub async fn serve(
    listener: TcpListener,
    view: Arc<dyn ServiceView>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    serve_starting(listener, Arc::new(ServiceSlot::of(view)), stop).await;
}

/// As [`serve`], for a service that is still starting: until `slot` is filled, `/livez` answers 200 and every other route
/// 503 `not_ready`.
pub async fn serve_starting(
    listener: TcpListener,
    slot: Arc<ServiceSlot>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    server::serve(listener, routes::router(slot), stop).await;
}
