//! Log lines about given-up records: topic, partition, offset and handler, never the record's value, nor the handler's own
//! words, which may quote it (they go into the dead letter's headers and the API).

use std::collections::BTreeMap;

use super::Flow;
use super::tasks::Task;
use crate::dispatch::{EntryKey, HandlerIx};

/// Between two lines about records that one handler gave up for one reason.
const INTERVAL_MS: u64 = 10_000;

/// When a given-up record of a handler and class was logged last, and how many were not since.
#[derive(Default)]
pub(super) struct GivenUp {
    last: BTreeMap<(HandlerIx, &'static str), (u64, u64)>,
}

impl GivenUp {
    /// Counts a record. `Some`: it is to be logged, with the number of records that the line stands for.
    fn count(&mut self, ix: HandlerIx, class: &'static str, now_ms: u64) -> Option<u64> {
        let Some((last_ms, untold)) = self.last.get_mut(&(ix, class)) else {
            self.last.insert((ix, class), (now_ms, 0));
            return Some(1);
        };
        *untold += 1;
        if now_ms.saturating_sub(*last_ms) < INTERVAL_MS {
            return None;
        }
        *last_ms = now_ms;
        Some(std::mem::take(untold))
    }
}

impl Flow {
    /// The record's dead letter is acknowledged.
    pub(super) fn log_dead_letter(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        let Some(records) = self.given_up.count(ix, task.class, self.now_ms) else {
            return;
        };
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
            records,
            "record given up; it is in the dead-letter topic"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_an_interval_stands_for_all_records_since_the_last() {
        let mut log = GivenUp::default();
        let mut lines = Vec::new();
        for now_ms in (0..30_000).step_by(100) {
            lines.extend(log.count(HandlerIx(0), "terminal", now_ms));
        }
        assert_eq!(lines, [1, 100, 100]);
        assert_eq!(log.count(HandlerIx(0), "emit_refused", 30_000), Some(1));
    }
}
