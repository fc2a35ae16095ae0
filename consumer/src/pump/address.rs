//! A pump for other threads: requests that it runs between two turns, and its end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Pump, PumpError, StopReport};
use crate::admin::{Explanation, PumpReport};
use crate::dispatch::inbox::ControlRequest;
use crate::dispatch::{HandlerIx, Inbox, PumpMessage};
use crate::flow::handler::HandlerSettings;
use crate::routing::RoutingIndex;
use crate::source::{SourceError, TopicPartition};
use crate::trouble::panic_text;

/// How long a pump that its owner drops may take to leave the group.
const DROPPED: Duration = Duration::from_secs(5);

/// Where other threads reach a pump.
#[derive(Clone)]
pub struct PumpAddress {
    pub(super) inbox: Arc<Inbox>,
    pub(super) missed: Arc<AtomicU64>,
}

/// A pump's thread, for its owner.
pub struct PumpHandle {
    pub(super) address: PumpAddress,
    pub(super) thread: Option<JoinHandle<Result<StopReport, PumpError>>>,
}

struct Request<F>(F);

impl<F: FnOnce(&mut Pump) + Send> ControlRequest for Request<F> {
    fn run(self: Box<Self>, pump: &mut dyn Any) {
        if let Some(pump) = pump.downcast_mut() {
            (self.0)(pump);
        }
    }
}

impl PumpAddress {
    /// Runs `request` on the pump's thread between two turns and waits for its answer. `None`: no answer in time.
    fn ask<T: Send + 'static>(
        &self,
        deadline: Duration,
        request: impl FnOnce(&mut Pump) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.inbox.push(PumpMessage::Control(Box::new(Request(
            move |pump: &mut Pump| {
                // Whoever asked may have given up waiting.
                let _ = sender.send(request(pump));
            },
        ))));
        receiver.recv_timeout(deadline).ok()
    }

    /// Gives the pump handlers, routes and topics, all at once. `None`: no answer in time (it will still be applied).
    pub fn apply(
        &self,
        index: Arc<RoutingIndex>,
        handlers: Vec<(HandlerIx, HandlerSettings)>,
        topics: Vec<String>,
        deadline: Duration,
    ) -> Option<Result<(), SourceError>> {
        self.ask(deadline, move |pump| pump.apply(index, handlers, topics))
    }

    /// Gives the pump other topics for the same routes. `None`: no answer in time (it will still be applied).
    pub fn subscribe(
        &self,
        topics: Vec<String>,
        deadline: Duration,
    ) -> Option<Result<(), SourceError>> {
        self.ask(deadline, move |pump| pump.subscribe(topics))
    }

    /// How often the pump has met a topic that is not there, or may not be written to: it grows when the cluster's topics
    /// are worth a look.
    pub fn missed_topics(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Switches the log line a record on or off, between two turns.
    pub fn set_record_log(&self, on: bool) {
        let request = move |pump: &mut Pump| pump.flow.set_record_log(on);
        let request = PumpMessage::Control(Box::new(Request(request)));
        self.inbox.push(request);
    }

    /// What the pump says of itself. `None`: no answer in time.
    pub fn report(&self, deadline: Duration) -> Option<PumpReport> {
        self.ask(deadline, |pump| pump.report())
    }

    /// What holds a partition's frontier. `None`: not its partition, or no answer in time.
    pub fn explain(
        &self,
        at: TopicPartition,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation> {
        self.ask(deadline, move |pump| pump.explain(&at, offset, pump.clock))?
    }

    /// Begins to stop; [`PumpHandle::join_until`] waits for the end.
    pub fn stop(&self) {
        self.inbox.push(PumpMessage::Control(Box::new(Request(
            |pump: &mut Pump| pump.stop(),
        ))));
    }
}

impl PumpHandle {
    /// Where to reach it.
    pub fn address(&self) -> &PumpAddress {
        &self.address
    }

    /// Whether its thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end of the thread, and says what the next owners repeat.
    ///
    /// # Errors
    /// [`PumpError`] says why it did not end well, or that it has not ended by `deadline`.
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

/// A pump that nobody joined, since the service did not start after all: it has read nothing, and leaves the group.
impl Drop for PumpHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.address.stop();
            if let Err(error) = self.join_until(Instant::now() + DROPPED) {
                tracing::warn!(%error, "a pump that is not needed any more did not end well");
            }
        }
    }
}
