//! The threads of a store: blocking calls on one side, async clients on the other.

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::reflector::{WatchConnection, WatchTimings, follow};
use super::{StoreError, StoreSink, StoreWatch};

/// A store's own runtime; it ends with its last user, without waiting for what hangs.
pub(super) struct Driver {
    runtime: Option<Runtime>,
}

impl Driver {
    /// Starts the threads. `store` is what errors call it.
    pub(super) fn start(store: &str) -> Result<Arc<Self>, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unreachable {
                store: store.to_owned(),
                reason: format!("its threads cannot be started: {error}"),
            })?;
        let runtime = Some(runtime);
        Ok(Arc::new(Self { runtime }))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("it is taken in drop alone, where nobody calls any more")
    }

    /// Runs `call` to its end and blocks meanwhile; callable from any thread but the store's own.
    ///
    /// # Errors
    /// `None` when the call was given up since the store is being dropped.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = blocking::sync_channel(1);
        self.runtime().spawn(async move {
            // The caller waits, so that somebody is there.
            let _ = done.send(call.await);
        });
        result.recv().ok()
    }

    /// Starts a task that ends, at its next await, when the handle is dropped.
    pub(super) fn task(
        self: &Arc<Self>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> RunningTask {
        let (stop, stopped) = oneshot::channel::<()>();
        let (done, ended) = blocking::channel::<()>();
        self.runtime().spawn(async move {
            tokio::select! {
                () = work => {}
                _ = stopped => {}
            }
            drop(done);
        });
        RunningTask {
            stop: Some(stop),
            ended: Mutex::new(ended),
            driver: Arc::clone(self),
        }
    }

    /// Starts a watch.
    pub(super) fn watch<L: WatchConnection + 'static>(
        self: &Arc<Self>,
        link: L,
        pace: WatchTimings,
        sink: StoreSink,
    ) -> Box<dyn StoreWatch> {
        let (asks, rereads) = mpsc::unbounded_channel();
        let task = self.task(follow(link, pace, sink, rereads));
        Box::new(RunningWatch { asks, _task: task })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A task; dropping it ends it and waits until it has ended.
pub(super) struct RunningTask {
    stop: Option<oneshot::Sender<()>>,
    // Behind a lock only since a receiver cannot be shared as it is.
    ended: Mutex<blocking::Receiver<()>>,
    driver: Arc<Driver>,
}

impl RunningTask {
    /// Where it runs.
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Ends it and waits until it has ended.
    pub(super) fn end(&mut self) {
        drop(self.stop.take());
        // Nothing is ever sent: the task's end closes the channel.
        let _ = self
            .ended
            .get_mut()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .recv();
    }
}

impl Drop for RunningTask {
    fn drop(&mut self) {
        self.end();
    }
}

struct RunningWatch {
    asks: mpsc::UnboundedSender<()>,
    _task: RunningTask,
}

impl StoreWatch for RunningWatch {
    fn reread(&self) {
        // The loop listens as long as its task runs.
        let _ = self.asks.send(());
    }
}
