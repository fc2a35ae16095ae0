//! A bridge between etcd and ZooKeeper with its admin HTTP: what `sluicegate bridge` runs, and `run` with a `bridge:` block.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::bridge::{Bridge, BridgeConfig, BridgeSettings};
use sluicegate_config::store::StoreError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::admin::http::{self, AdminError};

/// Why a bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// A store's settings cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its admin HTTP cannot listen.
    #[error("bridge: {0}")]
    Admin(#[from] AdminError),
    /// The machine has no thread for it.
    #[error("bridge: its admin thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// A running bridge with its admin HTTP; dropping it finishes what is on its way and stops.
pub struct RunningBridge {
    // Before the admin server: what it says last can still be asked while it stops.
    bridge: Option<Bridge>,
    stop: Option<oneshot::Sender<()>>,
    admin: JoinHandle<()>,
    tokio: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

/// Time for the admin server's last answers.
const ADMIN_STOP: Duration = Duration::from_secs(1);

impl RunningBridge {
    /// Starts a bridge that works as `settings` say; stores that are away are waited for.
    ///
    /// # Errors
    /// [`BridgeError`]; nothing is left running then.
    pub fn start(config: &BridgeConfig, settings: BridgeSettings) -> Result<Self, BridgeError> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bridge-admin")
            .enable_all()
            .build()
            .map_err(BridgeError::Thread)?;
        let listener = tokio.block_on(http::bind(config.admin))?;
        let address = listener.local_addr().map_err(AdminError::Address)?;
        let bridge = Bridge::start(config.open()?, settings)?;
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

    /// Why it will not work any more, if that is so: one of its threads has ended without being asked to.
    pub fn failure(&self) -> Option<String> {
        let failed = self.bridge.as_ref().and_then(Bridge::failure);
        let is_mute = self.admin.is_finished();
        failed.or_else(|| is_mute.then(|| "the bridge's admin HTTP has ended".to_owned()))
    }

    /// Where its admin HTTP listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RunningBridge {
    fn drop(&mut self) {
        drop(self.bridge.take());
        if let Some(stop) = self.stop.take() {
            // The server may have failed before; then nobody listens.
            let _ = stop.send(());
        }
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_timeout(ADMIN_STOP);
        }
    }
}
