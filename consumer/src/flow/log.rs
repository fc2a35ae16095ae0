//! Log lines about given-up records: topic, partition, offset and handler, never the record's value, nor the handler's own
//! words, which may quote it (they go into the dead letter's headers and the API).

use std::collections::BTreeMap;

use super::Flow;
use super::tasks::Task;
use crate::dispatch::{EntryKey, HandlerIx};
use crate::source::TopicPartition;

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

    /// What no line stands for yet, `all` of it or what has waited for an interval: handler, class, records. Cheap while there
    /// is nothing.
    fn untold(&mut self, now_ms: u64, all: bool) -> Vec<(HandlerIx, &'static str, u64)> {
        let due = |last_ms: u64| all || now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
        let waiting = self
            .last
            .iter_mut()
            .filter(|(_, (last_ms, untold))| *untold > 0 && due(*last_ms));
        let told = waiting.map(|(&(ix, class), (last_ms, untold))| {
            *last_ms = now_ms;
            (ix, class, std::mem::take(untold))
        });
        told.collect()
    }
}

impl Flow {
    /// Tells of records that were given up since the last line about their handler and reason, and that no further one will
    /// stand for: `all`, since this ends, or those that have waited long enough.
    pub(crate) fn log_untold(&mut self, all: bool) {
        for (ix, class, records) in self.given_up.untold(self.now_ms, all) {
            let handler = self.handlers.get(ix.0 as usize).and_then(Option::as_ref);
            tracing::warn!(
                handler = handler.map_or("a removed one", |handler| &*handler.settings.name),
                reason = class,
                records,
                "more records given up; they are in the dead-letter topic"
            );
        }
    }

    /// A call hangs on the record. Each costs the handler a thread, so that its bound on those bounds the lines as well.
    pub(super) fn log_hung(&self, ix: HandlerIx, key: EntryKey, attempt: u32, reason: &str) {
        let Some((at, offset, handler)) = self.place_of(ix, key) else {
            return;
        };
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            offset,
            handler,
            attempt,
            reason,
            "a call hangs on this record: the attempt has failed"
        );
    }

    /// Where a record stands, and the name of a handler of it, while both are there.
    fn place_of(&self, ix: HandlerIx, key: EntryKey) -> Option<(&TopicPartition, i64, &str)> {
        let entry = self.slab.get(key)?;
        let handler = self.handlers[ix.0 as usize].as_ref()?;
        let at = &self.assignments[entry.slot.0 as usize].at;
        Some((at, entry.offset(), &handler.settings.name))
    }

    /// The record's dead letter is acknowledged.
    pub(super) fn log_dead_letter(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        let Some(records) = self.given_up.count(ix, task.class, self.now_ms) else {
            return;
        };
        let Some((at, offset, handler)) = self.place_of(ix, key) else {
            return;
        };
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            offset,
            handler,
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
        let rest = (HandlerIx(0), "terminal", 99);
        assert_eq!(
            log.untold(29_999, false),
            [],
            "it may still come with the next"
        );
        assert_eq!(log.untold(30_000, false), [rest], "no other record came");
        assert_eq!(log.untold(60_000, true), [], "it is told once");
        assert_eq!(log.count(HandlerIx(0), "terminal", 30_100), None);
        assert_eq!(log.untold(30_100, true), [(HandlerIx(0), "terminal", 1)]);
    }
}
