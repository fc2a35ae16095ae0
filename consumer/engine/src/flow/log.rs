//! Log lines about dead-lettered records: topic, partition, offset and handler; never the record's value, nor the
//! handler's own error text, which may quote it (that goes into the dead letter's headers and the API).

use std::collections::BTreeMap;

use super::Flow;
use super::tasks::Task;
use crate::dispatch::{EntryKey, HandlerIx};
use crate::record::Record;
use crate::source::TopicPartition;

/// Minimum time between two lines about one handler and reason.
const INTERVAL_MS: u64 = 10_000;

/// Per handler and reason: when a dead-lettered record was last logged, and how many were suppressed since.
#[derive(Default)]
pub(super) struct DeadLetterLog {
    last: BTreeMap<(HandlerIx, &'static str), (u64, u64)>,
}

impl DeadLetterLog {
    /// Counts a record. `Some`: log it, with the number of records that the line stands for.
    fn count(&mut self, ix: HandlerIx, class: &'static str, now_ms: u64) -> Option<u64> {
        let Some((last_ms, suppressed)) = self.last.get_mut(&(ix, class)) else {
            self.last.insert((ix, class), (now_ms, 0));
            return Some(1);
        };
        *suppressed += 1;
        if now_ms.saturating_sub(*last_ms) < INTERVAL_MS {
            return None;
        }
        *last_ms = now_ms;
        Some(std::mem::take(suppressed))
    }

    /// Takes the counts that no line stands for yet, `all` of them or those older than the interval: handler, reason,
    /// records. Cheap while there are none.
    fn suppressed(&mut self, now_ms: u64, all: bool) -> Vec<(HandlerIx, &'static str, u64)> {
        let due = |last_ms: u64| all || now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
        let waiting = self
            .last
            .iter_mut()
            .filter(|(_, (last_ms, suppressed))| *suppressed > 0 && due(*last_ms));
        let taken = waiting.map(|(&(ix, class), (last_ms, suppressed))| {
            *last_ms = now_ms;
            (ix, class, std::mem::take(suppressed))
        });
        taken.collect()
    }
}

impl<R: Record> Flow<R> {
    /// Logs the suppressed counts that no later record has reported: `all` of them, when the pump ends, or those older
    /// than the interval.
    pub fn log_suppressed(&mut self, all: bool) {
        for (ix, class, records) in self.dead_letter_log.suppressed(self.now_ms, all) {
            let handler = self.handlers.get(ix.0 as usize).and_then(Option::as_ref);
            tracing::warn!(
                handler = handler.map_or("(removed)", |handler| &*handler.settings.name),
                reason = class,
                records,
                "more records dead-lettered"
            );
        }
    }

    /// A call hangs on this record. Each such call costs the handler a thread, so the bound on abandoned threads also
    /// bounds these lines.
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
            "call hangs on this record: the attempt has failed"
        );
    }

    /// Position of a record and name of the handler, while both exist.
    fn place_of(&self, ix: HandlerIx, key: EntryKey) -> Option<(&TopicPartition, i64, &str)> {
        let entry = self.slab.get(key)?;
        let handler = self.handlers[ix.0 as usize].as_ref()?;
        let at = &self.partitions[entry.slot].at;
        Some((at, entry.offset(), &handler.settings.name))
    }

    /// The record's dead letter is acknowledged.
    pub(super) fn log_dead_letter(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        let Some(records) = self.dead_letter_log.count(ix, task.class, self.now_ms) else {
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
            "record dead-lettered"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_counts_all_records_since_the_last() {
        let mut log = DeadLetterLog::default();
        let mut lines = Vec::new();
        for now_ms in (0..30_000).step_by(100) {
            lines.extend(log.count(HandlerIx(0), "terminal", now_ms));
        }
        assert_eq!(lines, [1, 100, 100]);
        assert_eq!(log.count(HandlerIx(0), "emit_refused", 30_000), Some(1));
        let rest = (HandlerIx(0), "terminal", 99);
        assert_eq!(
            log.suppressed(29_999, false),
            [],
            "the next record may still report it"
        );
        assert_eq!(
            log.suppressed(30_000, false),
            [rest],
            "no other record arrived"
        );
        assert_eq!(log.suppressed(60_000, true), [], "it is reported once");
        assert_eq!(log.count(HandlerIx(0), "terminal", 30_100), None);
        assert_eq!(
            log.suppressed(30_100, true),
            [(HandlerIx(0), "terminal", 1)]
        );
    }
}
