//! The admin HTTP server: health, metrics and the JSON API.
//!
//! ```text
//!  GET  /livez /readyz /metrics
//!  GET  /api/v1/status, handlers, handlers/{name}, partitions, explain/{topic}/{partition}[/{offset}], openapi.json
//!  PUT  /api/v1/handlers/{name}/gate        only from this machine, and not from another site's page (see `origin`)
//!  POST /api/v1/handlers/{name}/restart, control-plane/accept    the same
//! ```
//!
//! Every answer under `/api` is JSON, errors too: `{"error": {"code": …, "message": …}}`.

mod answer;
mod bridge;
mod origin;
mod routes;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::{ServiceSlot, ServiceView};

pub use answer::{ErrorBody, ErrorDetail};
pub use bridge::{BridgeReporter, bridge_router, serve_bridge};
pub use routes::{
    ControlPlaneAcceptance, GateBody, GateChange, HandlerRestart, Readiness, StatusReport,
};

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {listen} for admin HTTP: {reason}; set `admin.listen` to a free address"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's words.
        reason: std::io::Error,
    },
    /// The address that was taken cannot be told.
    #[error("the admin HTTP address cannot be told: {0}")]
    Address(std::io::Error),
}

/// Takes the address, so that a second service on it fails at start.
///
/// # Errors
/// [`AdminError::Listen`].
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(listen)
        .await
        .map_err(|reason| AdminError::Listen { listen, reason })
}

/// Answers requests about `view` until `stop` is done, then finishes those under way.
pub async fn serve(
    listener: TcpListener,
    view: Arc<dyn ServiceView>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    serve_starting(listener, Arc::new(ServiceSlot::of(view)), stop).await;
}

/// As [`serve`], for a service that is still starting: until `slot` holds it, `/livez` says that the process lives, and
/// everything else that there is no service yet.
pub async fn serve_starting(
    listener: TcpListener,
    slot: Arc<ServiceSlot>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    server::serve(listener, routes::router(slot), stop).await;
}
