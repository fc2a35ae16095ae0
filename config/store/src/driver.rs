//! The threads of a store: callers block, clients are async.

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::failure::Failure;
use super::reflector::{WatchConnection, WatchTimings, follow};
use super::{KeyVersion, StoreError, StoreSink, StoreWatch, check_length};

/// A store's own runtime. It shuts down with its last user, without waiting for tasks that hang.
pub(super) struct Driver {
    /// Names the store in errors.
    store: String,
    runtime: Option<Runtime>,
}

impl Driver {
    /// Starts the threads. `store` names the store in errors.
    pub(super) fn start(store: String) -> Result<Arc<Self>, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unreachable {
                store: store.clone(),
                reason: format!("cannot start its threads: {error}"),
            })?;
        let runtime = Some(runtime);
        Ok(Arc::new(Self { store, runtime }))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("taken only in drop, after the last call")
    }

    /// Runs `call` to completion while the caller blocks; callable from any thread but the store's own.
    ///
    /// # Errors
    /// `None` when the call was abandoned because the store is being dropped.
    pub(super) fn run<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = blocking::sync_channel(1);
        self.runtime().spawn(async move {
            // The send cannot fail: the caller is blocked on the receiver.
            let _ = done.send(call.await);
        });
        result.recv().ok()
    }

    /// Runs `call` like [`Driver::run`]; `what` names it in a refusal.
    pub(super) fn call<T: Send + 'static>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let result = self.run(call);
        let result = result.unwrap_or_else(|| Err(Failure::away("the store is being closed")));
        result.map_err(|failure| failure.into_error(self.store.clone(), what))
    }

    /// Runs `write` with owned copies of `place` and `value`, unless the value is longer than `limit`. `write` returns
    /// `None` where the present value is not as expected.
    pub(super) fn write<W>(
        &self,
        place: String,
        value: Option<&[u8]>,
        limit: usize,
        write: impl FnOnce(String, Option<Vec<u8>>) -> W,
    ) -> Result<KeyVersion, StoreError>
    where
        W: Future<Output = Result<Option<KeyVersion>, Failure>> + Send + 'static,
    {
        check_length(&self.store, &place, value, limit)?;
        let what = match value {
            Some(_) => format!("the write of {place}"),
            None => format!("the delete of {place}"),
        };
        let written = self.call(&what, write(place.clone(), value.map(<[u8]>::to_vec)))?;
        written.ok_or(StoreError::Conflict { place })
    }

    /// Starts a task that is cancelled, at its next await, when the handle is dropped.
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
        timings: WatchTimings,
        sink: StoreSink,
    ) -> Box<dyn StoreWatch> {
        let (requests, rereads) = mpsc::unbounded_channel();
        let task = self.task(follow(link, timings, sink, rereads));
        Box::new(RunningWatch {
            requests,
            _task: task,
        })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running task; dropping it cancels the task and waits for its end.
pub(super) struct RunningTask {
    stop: Option<oneshot::Sender<()>>,
    // Behind a lock only because a receiver is not `Sync`.
    ended: Mutex<blocking::Receiver<()>>,
    driver: Arc<Driver>,
}

impl RunningTask {
    /// The runtime that it runs on.
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Cancels it and waits for its end.
    pub(super) fn end(&mut self) {
        drop(self.stop.take());
        // No value is ever sent: the end of the task closes the channel.
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
    requests: mpsc::UnboundedSender<()>,
    _task: RunningTask,
}

impl StoreWatch for RunningWatch {
    fn reread(&self) {
        // The loop receives as long as its task runs.
        let _ = self.requests.send(());
    }
}
