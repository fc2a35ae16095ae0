//! Log lines about dead-lettered records: topic, partition, offset and handler; never the record's value, nor the
//! handler's own error text, which may quote it (that goes into the dead letter's headers and the API).

use std::collections::BTreeMap;

use super::HandlerQueue;
use super::context::Context;
use super::deferred::Share;
use crate::dispatch::RecordId;
use crate::record::Record;
use crate::source::TopicPartition;

/// Minimum time between two lines about one reason.
const INTERVAL_MS: u64 = 10_000;

/// Lines about hanging calls in an interval.
const MAX_HUNG_LINES: u32 = 20;

/// Calls that hang, of which some in an interval are logged.
#[derive(Default)]
pub(super) struct HungLog {
    since_ms: u64,
    lines: u32,
    suppressed: u64,
}

impl HungLog {
    /// Counts a call; whether it is to be logged.
    fn count(&mut self, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.since_ms) >= INTERVAL_MS {
            (self.since_ms, self.lines) = (now_ms, 0);
        }
        let is_logged = self.lines < MAX_HUNG_LINES;
        match is_logged {
            true => self.lines += 1,
            false => self.suppressed += 1,
        }
        is_logged
    }

    /// Takes the number of calls that were not logged, once the interval is over or `all` of them.
    fn suppressed(&mut self, now_ms: u64, all: bool) -> u64 {
        match all || now_ms.saturating_sub(self.since_ms) >= INTERVAL_MS {
            true => std::mem::take(&mut self.suppressed),
            false => 0,
        }
    }
}

/// Per reason: when a dead-lettered record was last logged, and how many were suppressed since.
#[derive(Default)]
pub(super) struct DeadLetterLog {
    last: BTreeMap<&'static str, (u64, u64)>,
}

impl DeadLetterLog {
    /// Counts a record. `Some`: log it, with the number of records that the line stands for.
    fn count(&mut self, class: &'static str, now_ms: u64) -> Option<u64> {
        let Some((last_ms, suppressed)) = self.last.get_mut(class) else {
            self.last.insert(class, (now_ms, 0));
            return Some(1);
        };
        *suppressed += 1;
        if now_ms.saturating_sub(*last_ms) < INTERVAL_MS {
            return None;
        }
        *last_ms = now_ms;
        Some(std::mem::take(suppressed))
    }

    /// Takes the counts that no line stands for yet, `all` of them or those older than the interval: reason,
    /// records. Cheap while there are none.
    fn suppressed(&mut self, now_ms: u64, all: bool) -> Vec<(&'static str, u64)> {
        let due = |last_ms: u64| all || now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
        let waiting = self
            .last
            .iter_mut()
            .filter(|(_, (last_ms, suppressed))| *suppressed > 0 && due(*last_ms));
        let taken = waiting.map(|(&class, (last_ms, suppressed))| {
            *last_ms = now_ms;
            (class, std::mem::take(suppressed))
        });
        taken.collect()
    }
}

impl HandlerQueue {
    /// Logs the suppressed counts that no later record has reported: `all` of them, when the pump or the handler ends, or
    /// those older than the interval.
    pub(crate) fn log_suppressed(&mut self, now_ms: u64, all: bool) {
        for (class, records) in self.dead_letter_log.suppressed(now_ms, all) {
            tracing::warn!(
                handler = &*self.settings.name,
                reason = class,
                records,
                "more records dead-lettered"
            );
        }
        let calls = self.hung_log.suppressed(now_ms, all);
        if calls > 0 {
            tracing::warn!(handler = &*self.settings.name, calls, "more calls hung");
        }
    }

    /// A call hangs on this record. A timeout that is too short makes that of many calls.
    pub(super) fn log_hung<R: Record>(
        &mut self,
        ctx: &Context<R>,
        key: RecordId,
        attempt: u32,
        reason: &str,
    ) {
        let Some((at, offset)) = place_of(ctx, key) else {
            return;
        };
        if !self.hung_log.count(ctx.now_ms) {
            return;
        }
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            offset,
            handler = &*self.settings.name,
            attempt,
            reason,
            "call hangs on this record: the attempt has failed"
        );
    }

    /// The record's dead letter is acknowledged.
    pub(super) fn log_dead_letter<R: Record>(
        &mut self,
        ctx: &Context<R>,
        key: RecordId,
        share: &Share,
    ) {
        let Some(records) = self.dead_letter_log.count(share.class, ctx.now_ms) else {
            return;
        };
        let Some((at, offset)) = place_of(ctx, key) else {
            return;
        };
        tracing::warn!(
            topic = &*at.topic,
            partition = at.partition,
            offset,
            handler = &*self.settings.name,
            attempts = share.attempt,
            reason = share.class,
            records,
            "record dead-lettered"
        );
    }
}

/// Position of a record, while it exists.
fn place_of<R: Record>(ctx: &Context<R>, key: RecordId) -> Option<(&TopicPartition, i64)> {
    let entry = ctx.records.slab.get(key)?;
    Some((ctx.records.partitions[entry.slot].at(), entry.offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_hanging_calls_of_an_interval_are_logged_and_the_others_counted() {
        let mut log = HungLog::default();
        let logged = (0..100).filter(|_| log.count(5));
        assert_eq!(logged.count(), 20);
        assert_eq!(log.suppressed(6, false), 0);
        assert_eq!(log.suppressed(10_005, false), 80);
        assert!(log.count(10_005));
        assert_eq!(log.suppressed(10_006, true), 0);
    }

    #[test]
    fn one_line_per_interval_counts_all_records_since_the_last() {
        let mut log = DeadLetterLog::default();
        let mut lines = Vec::new();
        for now_ms in (0..30_000).step_by(100) {
            lines.extend(log.count("terminal", now_ms));
        }
        assert_eq!(lines, [1, 100, 100]);
        assert_eq!(log.count("emit_refused", 30_000), Some(1));
        let rest = ("terminal", 99);
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
        assert_eq!(log.count("terminal", 30_100), None);
        assert_eq!(log.suppressed(30_100, true), [("terminal", 1)]);
    }
}
