//! Replacement of the client after a topic was re-created, the group has forgotten the member, or the client is stuck.
//!
//! librdkafka keeps a partition's leader epoch while it knows the topic, and treats the metadata of a re-created topic, whose
//! epochs start again at 0, as outdated: it may never fetch from it. A new client has no state of the old topic. The member
//! leaves its group as at a stop, after draining and committing its in-flight records, and joins again.

use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_engine::source::{AssignmentId, Source, SourceError, TopicPartition, Wake};
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
    /// A subscribed topic was deleted and re-created. Offsets of the old topic are no longer committed.
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
            "the topic was deleted and created again; rejoining the group to read it from its beginning"
        );
        self.rejoin_without(&slots);
    }

    /// Rejoins if the group no longer knows this member and the client does not notice, as with the KIP-848 protocol after the
    /// group was deleted: otherwise no commit would ever succeed again.
    pub(super) fn rejoin_if_forgotten(&mut self) {
        if self.stopping.is_some() || !self.flow.has_lost_membership() {
            return;
        }
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        tracing::warn!(
            partitions = slots.len(),
            "the group no longer knows this member, for example after the group was deleted; rejoining, uncommitted records \
             are reprocessed"
        );
        self.rejoin_without(&slots);
    }

    /// Releases partitions that can no longer be committed, and rejoins the group with a new client.
    pub(super) fn rejoin_without(&mut self, slots: &[AssignmentId]) {
        self.flow.release(slots);
        if self.stopping.is_none() {
            // A stop that was requested before stays a stop.
            let last = self.last_rebalance.take();
            self.renewing = last.is_none();
            if self.renewing {
                self.reset_report();
            }
            self.start_stop(last.map_or_else(|| self.now_ms(), |last| last.requested_ms()));
        }
    }

    /// Replaces the client and subscribes it, which rejoins the group.
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
