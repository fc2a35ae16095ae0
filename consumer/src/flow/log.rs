//! Log lines about one record: topic, partition, offset and handler, never its value, nor the handler's own words, which
//! may quote it (they go into the dead letter's headers and the API).

use super::Flow;
use super::tasks::Task;
use crate::dispatch::{EntryKey, HandlerIx};

impl Flow {
    /// The record's dead letter is acknowledged.
    pub(super) fn log_dead_letter(&self, ix: HandlerIx, key: EntryKey, task: &Task) {
        let (Some(entry), Some(handler)) =
            (self.slab.get(key), self.handlers[ix.0 as usize].as_ref())
        else {
            return;
        };
        let at = &self.assignments[entry.slot.0 as usize].at;
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            offset = entry.offset(),
            handler = &*handler.settings.name,
            attempts = task.attempt,
            reason = task.class,
            "record given up; it is in the dead-letter topic"
        );
    }

    /// The record's dead letter was not written; it is tried again and the partition's frontier waits (G7).
    pub(super) fn log_dead_letter_failed(&self, ix: HandlerIx, key: EntryKey, error: &str) {
        let (Some(entry), Some(handler)) =
            (self.slab.get(key), self.handlers[ix.0 as usize].as_ref())
        else {
            return;
        };
        let at = &self.assignments[entry.slot.0 as usize].at;
        tracing::error!(
            topic = &*at.topic,
            partition = at.partition,
            offset = entry.offset(),
            handler = &*handler.settings.name,
            error,
            "dead letter not written; it is tried again and the frontier waits for it"
        );
    }
}
