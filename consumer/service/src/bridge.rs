//! A bridge between etcd and ZooKeeper with its admin server: runs as `sluicegate bridge`, or inside `run` with a `bridge:` block.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_admin::http;
use sluicegate_admin::http::{AdminError, BridgeReporter};
use sluicegate_bridge::{Bridge, BridgeSettings, BridgeStores};
use sluicegate_config::service::BridgeConfig;
use sluicegate_store::StoreError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Why a bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// A store's settings are invalid.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The admin server cannot listen.
    #[error("bridge: {0}")]
    Admin(#[from] AdminError),
    /// The admin thread cannot be started.
    #[error("bridge: cannot start the admin thread: {0}")]
    Thread(std::io::Error),
}

/// A running bridge with its admin server. Dropping it finishes the transfers in progress and stops both.
pub struct RunningBridge {
    // Dropped before the admin server, so that its last report can be queried while it stops.
    bridge: Option<Bridge>,
    stop: Option<oneshot::Sender<()>>,
    admin: JoinHandle<()>,
    tokio: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

/// Time for the admin server to finish open requests.
const ADMIN_SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

impl RunningBridge {
    /// Starts a bridge with `settings`. Unreachable stores do not fail the start: the bridge retries them.
    ///
    /// # Errors
    /// [`BridgeError`]; nothing is left running in that case.
    pub fn start(config: &BridgeConfig, settings: BridgeSettings) -> Result<Self, BridgeError> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bridge-admin")
            .enable_all()
            .build()
            .map_err(BridgeError::Thread)?;
        let listener = tokio.block_on(http::bind(config.admin))?;
        let address = listener.local_addr().map_err(AdminError::Address)?;
        let bridge = Bridge::start(BridgeStores::open(config)?, settings)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let reporter = Arc::new(bridge.reporter());
        let admin = tokio.spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            http::serve_bridge(listener, reporter, stop).await;
        });
        Ok(Self {
            bridge: Some(bridge),
            stop: Some(stop),
            admin,
            tokio: Some(tokio),
            address,
        })
    }

    /// The reason for a permanent failure, if any: one of the bridge's threads has terminated unexpectedly.
    pub fn failure(&self) -> Option<String> {
        let failed = self.bridge.as_ref().and_then(Bridge::failure);
        let has_ended = self.admin.is_finished();
        failed.or_else(|| has_ended.then(|| "the bridge's admin server has terminated".to_owned()))
    }

    /// Returns its current report each time it is called, also after the bridge has stopped.
    pub fn reporter(&self) -> Option<BridgeReporter> {
        let bridge = self.bridge.as_ref()?;
        Some(Arc::new(bridge.reporter()))
    }

    /// The address of the admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RunningBridge {
    fn drop(&mut self) {
        drop(self.bridge.take());
        if let Some(stop) = self.stop.take() {
            // The receiver is gone if the server has already failed.
            let _ = stop.send(());
        }
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_timeout(ADMIN_SHUTDOWN_GRACE);
        }
    }
}
