//! Replacement of the client after a topic was re-created, the group has forgotten the member, or the client is stuck.
//!
//! librdkafka keeps a partition's leader epoch while it knows the topic, and treats the metadata of a re-created topic, whose
//! epochs start again at 0, as outdated: it may never fetch from it. A new client has no state of the old topic. The member
//! leaves its group as at a stop, after draining and committing its in-flight records, and joins again.

use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_engine::event::Event;
use sluicegate_engine::source::{Source, SourceError, Wake};
use sluicegate_kafka::RecordBuf;

use super::{Pump, PumpError};

/// Wakes the pump's current client.
pub(super) struct PumpWake(Mutex<Arc<dyn Wake>>);

impl PumpWake {
    pub(super) fn new(client: Arc<dyn Wake>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(client)))
    }

    fn follow(&self, client: Arc<dyn Wake>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

impl Wake for PumpWake {
    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wake();
    }
}

/// Creates sources on the pump's thread: one at its start, and one per renewal.
pub type SourceFactory =
    Box<dyn Fn() -> Result<Box<dyn Source<Record = RecordBuf>>, SourceError> + Send>;

impl Pump {
    /// Replaces the client and subscribes it, which rejoins the group.
    pub(super) fn renew(&mut self) -> Result<(), PumpError> {
        let failed = |error: SourceError| PumpError::Source(error.to_string());
        let now_ms = self.now_ms();
        self.client.renew(now_ms);
        self.step(Event::ClientRenewed);
        self.source = (self.make_source)().map_err(failed)?;
        self.wake.follow(self.source.waker());
        self.client.subscribed(!self.topics.is_empty(), now_ms);
        self.source.subscribe(&self.topics).map_err(failed)
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
