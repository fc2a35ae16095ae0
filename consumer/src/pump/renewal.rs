//! A new client in the place of one whose topic is not what it was.
//!
//! librdkafka keeps a partition's leader epoch while it knows the topic, and takes the metadata of a new topic, whose epochs
//! begin anew, for outdated: it may never read from it. A new client knows nothing of the old topic. The member leaves its
//! group as at a stop, everything that it has begun finished and committed, and joins again.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Pump, PumpError};
use crate::source::{AssignmentId, Source, SourceError, TopicPartition, Wake};

/// Wakes whichever client the pump has.
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

/// Makes sources on the pump's thread: one at its start, and one for each renewal.
pub type SourceFactory = Box<dyn Fn() -> Result<Box<dyn Source>, SourceError> + Send>;

impl Pump {
    /// A topic that is read was deleted and created again. Nothing of the old one is committed any more.
    pub(super) fn topic_recreated(&mut self, topic: &Arc<str>) {
        let (partitions, slots): (Vec<TopicPartition>, Vec<AssignmentId>) = self
            .flow
            .partitions()
            .filter(|(at, _)| at.topic == *topic)
            .map(|(at, slot)| (at.clone(), slot))
            .unzip();
        tracing::warn!(
            topic = &**topic,
            partitions = partitions.len(),
            "the topic was deleted and created again; joining the group anew to read it from its beginning"
        );
        self.join_anew_without(&slots);
    }

    /// The group has lost us and the client does not notice, as with the newer group protocol when the group was deleted:
    /// nothing would ever be committed again.
    pub(super) fn join_anew_if_forgotten(&mut self) {
        if self.stopping.is_some() || !self.flow.is_forgotten() {
            return;
        }
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        tracing::warn!(
            partitions = slots.len(),
            "the group does not know this member any more, as after it was deleted: what is not committed is handled again \
             after joining it anew"
        );
        self.join_anew_without(&slots);
    }

    /// Lets go of partitions that cannot be committed for, and joins the group again with a new client.
    fn join_anew_without(&mut self, slots: &[AssignmentId]) {
        self.flow.release(slots);
        if self.stopping.is_none() {
            // A stop that was told already stays one.
            let last = self.last_rebalance.take();
            self.renewing = last.is_none();
            if self.renewing {
                self.forget_what_was_left();
            }
            self.start_stop(last.map_or_else(|| self.now_ms(), |last| last.told_ms()));
        }
    }

    /// Joins the group again with a new client.
    pub(super) fn renew(&mut self) -> Result<(), PumpError> {
        let failed = |error: SourceError| PumpError::Source(error.to_string());
        self.renewing = false;
        self.stopping = None;
        let now_ms = self.now_ms();
        self.client.renew(now_ms);
        self.attention.clear();
        self.starting.forget_all();
        self.missing.clear();
        self.unreadable.clear();
        self.revokes.clear();
        self.flow.client_renewed();
        self.source = (self.make_source)().map_err(failed)?;
        self.wake.follow(self.source.waker());
        self.client.subscribed(!self.topics.is_empty(), now_ms);
        self.source.subscribe(&self.topics).map_err(failed)
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
