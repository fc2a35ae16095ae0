//! Access to a pump from other threads: requests that it runs between two turns, and the join of its thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::partition::trouble::panic_text;
use sluicegate_engine::queue::HandlerSettings;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{SourceError, TopicPartition};
use sluicegate_engine::status::{Explanation, PumpReport};

use super::command::{Commands, PumpCommand, Reply};
use super::{PumpError, StopReport};

/// Maximum time for a dropped pump to leave the group.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// Address of a pump, for requests from other threads.
#[derive(Clone, Default)]
pub struct PumpAddress {
    pub(super) commands: Arc<Commands>,
    pub(super) missed: Arc<AtomicU64>,
}

/// Owner's handle of a pump's thread.
pub struct PumpHandle {
    pub(super) address: PumpAddress,
    pub(super) thread: Option<JoinHandle<Result<StopReport, PumpError>>>,
}

impl PumpAddress {
    /// Sends the command that `make` builds, and blocks for its answer. `None`: no answer within `deadline`.
    fn call<T>(&self, deadline: Duration, make: impl FnOnce(Reply<T>) -> PumpCommand) -> Option<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands.push(make(reply));
        answer.recv_timeout(deadline).ok()
    }

    /// Applies handlers, routes and topics in one step. `None`: no answer within `deadline`; the request stays queued and is
    /// still applied.
    pub fn apply(
        &self,
        index: Arc<RoutingIndex>,
        handlers: Vec<(HandlerIx, HandlerSettings)>,
        topics: Vec<String>,
        deadline: Duration,
    ) -> Option<Result<(), SourceError>> {
        self.call(deadline, |reply| PumpCommand::Apply {
            index,
            handlers,
            topics,
            reply,
        })
    }

    /// Changes the subscription without changing the routes. `None`: no answer within `deadline`; the request stays queued and
    /// is still applied.
    pub fn subscribe(
        &self,
        topics: Vec<String>,
        deadline: Duration,
    ) -> Option<Result<(), SourceError>> {
        self.call(deadline, |reply| PumpCommand::Subscribe(topics, reply))
    }

    /// How often the pump has met a topic that does not exist or denies writes. An increase means that the cluster's topics
    /// should be listed again.
    pub fn missed_topics(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Switches the per-record log line on or off, between two turns. Does not block.
    pub fn set_record_log(&self, on: bool) {
        self.commands.push(PumpCommand::RecordLog(on));
    }

    /// The pump's report. `None`: no answer within `deadline`.
    pub fn report(&self, deadline: Duration) -> Option<PumpReport> {
        self.call(deadline, PumpCommand::Report)
    }

    /// What blocks a partition's frontier. `None`: not assigned to this pump, or no answer within `deadline`.
    pub fn explain(
        &self,
        at: TopicPartition,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation> {
        self.call(deadline, |reply| PumpCommand::Explain(at, offset, reply))?
    }

    /// Begins the stop; [`PumpHandle::join_until`] waits for its end.
    pub fn stop(&self) {
        self.commands.push(PumpCommand::Stop);
    }
}

impl PumpHandle {
    /// The pump's address.
    pub fn address(&self) -> &PumpAddress {
        &self.address
    }

    /// Whether the thread has exited.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread to exit, and returns the work that the next owners reprocess.
    ///
    /// # Errors
    /// [`PumpError`] if the pump failed, or has not exited by `deadline`.
    pub fn join_until(&mut self, deadline: Instant) -> Result<StopReport, PumpError> {
        while !self.is_finished() {
            if Instant::now() >= deadline {
                return Err(PumpError::Overdue);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(StopReport::default()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => Err(PumpError::Panicked(panic_text(&*panic).to_owned())),
        }
    }
}

/// Stops a pump that was never joined because the service's start failed: it has read nothing, and leaves the group.
impl Drop for PumpHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.address.stop();
            if let Err(error) = self.join_until(Instant::now() + DROP_GRACE) {
                tracing::warn!(%error, "unused pump did not stop cleanly");
            }
        }
    }
}
