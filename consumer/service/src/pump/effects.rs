//! Carries out what the engine wants done.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sluicegate_engine::event::{Effect, Event};
use sluicegate_engine::source::Membership;
use sluicegate_engine::source::{
    AssignmentId, CommitEntry, CommitError, CommitErrorKind, Rejection, SourceError, SourceEvent,
};
use sluicegate_kafka::RecordBuf;

use super::Pump;

impl Pump {
    /// Steps the engine and carries out the effects, also those of the completions, before it returns.
    pub(super) fn step(&mut self, event: Event<'_, RecordBuf>) {
        self.engine.step(event, &mut self.effects);
        while let Some(effect) = self.effects.pop_front() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Find { partitions, start } => self.source.find(&partitions, start),
            Effect::Start(partitions) => {
                if let Err(error) = self.source.start(&partitions) {
                    self.failed = Some(format!("cannot start the assigned partitions: {error}"));
                }
            }
            Effect::Seek(partition) => {
                let result = self.source.start(std::slice::from_ref(&partition));
                self.step(Event::Sought(partition.slot, result));
            }
            Effect::Release(partitions) => {
                if let Err(error) = self.source.release(&partitions) {
                    tracing::warn!(%error, "cannot release partitions");
                }
            }
            Effect::AskBounds(partitions) => self.source.ask_bounds(&partitions),
            Effect::LearnPositions(slots) => self.learn_positions(&slots),
            Effect::Pause(slot, paused) => self.source.pause(slot, paused),
            Effect::Commit(entries) => self.commit(&entries),
            Effect::ListTopics => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
            Effect::Leave { deadline_ms, renew } => self.leave(deadline_ms, renew),
            Effect::Fail(reason) => self.failed = Some(reason),
        }
    }

    fn learn_positions(&mut self, slots: &[AssignmentId]) {
        let mut positions = Vec::new();
        if !slots.is_empty() {
            self.source.consumed(slots, &mut positions);
        }
        self.step(Event::Positions(&positions));
    }

    /// A commit that cannot be sent is rejected as a whole.
    fn commit(&mut self, entries: &[CommitEntry]) {
        let Err(error) = self.source.commit(entries) else {
            return;
        };
        let kind = match error {
            SourceError::Retryable(_) => CommitErrorKind::Unavailable,
            SourceError::Terminal(_) => CommitErrorKind::Rejected(Rejection::Other),
        };
        let reason = error.to_string();
        let event = SourceEvent::Committed {
            results: Vec::new(),
            error: Some(CommitError { kind, reason }),
        };
        self.step(Event::Source(event, Membership::default()));
    }

    /// Leaves the group; then ends the pump, or renews its client.
    fn leave(&mut self, deadline_ms: u64, renew: bool) {
        let deadline = self.started + Duration::from_millis(deadline_ms);
        let confirmed = self.source.close(deadline);
        self.step(Event::Left { confirmed });
        if !renew {
            self.closed = true;
        } else if let Err(error) = self.renew() {
            self.failed = Some(error.to_string());
        }
    }
}
